"""Prompts, templates, wordings and the parsers of answers. No torch."""
