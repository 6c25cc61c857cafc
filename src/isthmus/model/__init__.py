"""The core: encoders, connectors, fusions and the joined models."""
