"""From a batch of prompts to text."""
