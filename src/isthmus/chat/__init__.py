"""Talking to a model: a page in the browser, and a shell."""
