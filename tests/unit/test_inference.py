from __future__ import annotations

import pytest
import torch

import isthmus as im
from isthmus.errors import PromptError

PICTURE = torch.zeros(3, 32, 32)


@pytest.fixture
def model() -> im.VisionLanguageModel:
    return im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))


def test_a_reader_who_leaves_ends_the_stream(model: im.VisionLanguageModel) -> None:
    steps = []
    model.language.model.register_forward_hook(lambda *_: steps.append(1))
    pieces = im.stream(model, (), "Count to a thousand.", max_new_tokens=2000, stop=())
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert len(steps) < 2000
    text = model.prepare(["words"])
    bare = model.language.model(input_ids=text.input_ids).logits
    assert torch.equal(model(text).logits, bare)


def test_an_empty_stop_string_is_refused(model: im.VisionLanguageModel) -> None:
    with pytest.raises(PromptError, match="empty stop string"):
        im.ask(model, (), "Why?", stop=("",))
