"""Serving: an engine that batches requests as they come, and an OpenAI-compatible server on it."""
