"""STUB."""


def prefetch(items, work, *, workers, ahead):
    for i in items:
        yield work(i)
