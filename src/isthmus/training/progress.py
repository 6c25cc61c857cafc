"""STUB."""


class ProgressBar:
    def __init__(self, total, done, quiet): ...
    def __enter__(self):
        return self

    def __exit__(self, *a): ...
    def update(self, step, loss, samples, tokens): ...
    def rates(self):
        return {"samples_per_second": 0.0, "tokens_per_second": 0.0}
