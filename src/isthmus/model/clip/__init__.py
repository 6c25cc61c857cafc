"""Dual encoders."""
