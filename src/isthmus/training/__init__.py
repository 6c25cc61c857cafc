"""Training the strip: objectives, optimiser, loop, resumable state."""
