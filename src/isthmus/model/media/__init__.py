"""Media: what lies between an attachment and its visual tokens. One file each.

`base` says what a medium is, `image` has images and clips, which every model takes. A file of
another medium holds the medium, its kind (see `media.kinds`) if it has files of its own, and its
configuration: a frozen dataclass that is registered by name in `MEDIA`, with `build(parts)`, which
makes the medium. Nothing else needs to know of it.
"""
