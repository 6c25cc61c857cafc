"""Serving: an OpenAI-compatible server, and the page and shell on the same service."""
