"""Prompts, templates, the chat format and the parsers of answers. No torch."""
