"""What can be chosen: checked dataclasses, the registries of parts, TOML files. No torch."""
