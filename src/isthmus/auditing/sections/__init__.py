"""What an audit asks, section by section; a part is a function of a `Bench`."""
