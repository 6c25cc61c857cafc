"""The page that an audit writes; each part has one function that shows it."""
