"""Training the strip: losses, optimiser, loop, resumable state."""
