"""Dual encoders: two towers that put pictures and texts into one space, and classifiers on them."""
