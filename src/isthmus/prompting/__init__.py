"""Choosing, ordering and calibrating demonstrations, and reasoning in steps."""
