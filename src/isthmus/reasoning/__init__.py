"""Ways to reach an answer."""
