"""Records and the features of their pictures."""
