"""The limits of a classifier, measured in one command: bias, prompts, attacks, confidence."""
