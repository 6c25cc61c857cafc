"""A model in the browser and in the shell."""
