"""STUB."""


def read_data(source, *, root=None):
    raise NotImplementedError
