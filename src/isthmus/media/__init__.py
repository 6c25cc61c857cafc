"""From bytes to what a model reads: fetching."""
