"""Changes of an image that change its label, and remedies against them."""
