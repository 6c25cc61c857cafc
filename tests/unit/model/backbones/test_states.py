"""States go in and come out under the name that a model has for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from isthmus.model.backbones.language import load_language
from isthmus.model.backbones.states import as_states, states_in


class New(nn.Module):
    def forward(self, ids: Tensor, cache: object = None) -> None: ...


class Old(nn.Module):
    def forward(self, ids: Tensor, past_key_values: object = None) -> None: ...


class Open(nn.Module):
    def forward(self, ids: Tensor, **rest: object) -> None: ...


@pytest.mark.parametrize(
    ("model", "name"), [(New(), "cache"), (Old(), "past_key_values"), (Open(), "past_key_values")]
)
def test_the_name(model: nn.Module, name: str) -> None:
    states = object()
    named = as_states(model, states)
    assert named == {name: states}
    assert states_in(named) is states


def test_none() -> None:
    assert states_in({}) is None
    assert states_in({"cache": None, "past_key_values": None}) is None


def test_a_model_goes_on_from_its_states() -> None:
    model = load_language("tiny-lm").model.eval()
    ids = torch.tensor([[5, 9, 3, 7]])
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[0, -1]
        first = model(input_ids=ids[:, :3], use_cache=True)
        then = model(input_ids=ids[:, 3:], **as_states(model, states_in(first)), use_cache=True)
    torch.testing.assert_close(then.logits[0, -1], whole, atol=1e-5, rtol=0)
