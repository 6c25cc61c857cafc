"""Ways to reach an answer, and what runs them on an engine: one question or many, at once or live.

A way to reason is a program (`programs`): a generator that yields requests, receives what the model
wrote, and returns an `Answer`. It knows nothing of who asks. `drivers` runs programs on an
`Engine`, many together or one with its text shown. `live` runs one on a `ServingEngine`, within
asyncio.
"""
