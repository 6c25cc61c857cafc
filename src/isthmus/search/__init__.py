"""An index of images by what is in them."""
