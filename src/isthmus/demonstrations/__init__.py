"""Which demonstrations a prompt shows, in which order, written by hand or by the model."""
