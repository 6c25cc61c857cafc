"""Records and the features of their images."""
