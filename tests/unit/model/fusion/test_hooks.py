"""What a model leaves behind on its language model: nothing, whatever was done with it."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus import testing
from isthmus.errors import ConfigError
from isthmus.model.backbones.language import LanguageModel, load_language
from isthmus.model.backbones.vision import load_vision
from isthmus.model.batch import Batch
from isthmus.model.vlm import VisionLanguageModel

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "cross_attention": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2),
    "hybrid": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, inline=True),
}


def made(fusion: str = "cross_attention", language: Any = "tiny-lm") -> VisionLanguageModel:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", language, im.Resampler(latents=3, depth=1), FUSIONS[fusion])
    testing.open_gates(model)
    return model


def hooks_on(language: LanguageModel) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in language.modules()
    )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_copy_sees_images(fusion: str) -> None:
    testing.check_copies(made(fusion))


def test_a_moving_average_of_copies_is_the_model() -> None:
    """As for an average of weights: a copy whose weights are overwritten from the original's."""
    model = made()
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(0.1)
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.data.lerp_(theirs.data, 1.0)
    batch = testing.prompts_of(model)
    assert torch.equal(average(batch).logits, model(batch).logits)


def test_a_copy_made_inside_of_a_pass_carries_no_hooks_later() -> None:
    model = made()
    batch = testing.prompts_of(model)
    with model.in_sight(batch):
        pass
    other = copy.deepcopy(model.language)
    assert hooks_on(other) == 0


@torch.no_grad()
def test_three_models_on_one_language_model_in_any_order() -> None:
    language = load_language("tiny-lm")
    models = [made(fusion, language) for fusion in FUSIONS]
    alone = [made(fusion) for fusion in FUSIONS]
    batches = [testing.prompts_of(model) for model in models]
    expected = [model(batch).logits for model, batch in zip(alone, batches, strict=True)]
    for number in (0, 1, 2, 2, 1, 0, 1, 1, 0, 2):
        assert torch.equal(models[number](batches[number]).logits, expected[number])
    assert hooks_on(language) == 0


def test_a_deleted_model_is_gone() -> None:
    language = load_language("tiny-lm")
    before = hooks_on(language)
    dead = []
    for fusion in FUSIONS:
        model = made(fusion, language)
        loss = model(testing.prompts_of(model)).logits.sum()
        dead += [weakref.ref(model.fusion), weakref.ref(model.special_tokens)]
        del model, loss
    gc.collect()
    assert [ref() for ref in dead] == [None] * len(dead)
    assert hooks_on(language) == before == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_inner_decoder_is_bare_after_a_pass_with_gradients(fusion: str) -> None:
    testing.check_language_model_is_free(made(fusion))


def test_no_graph_is_held_after_a_pass() -> None:
    model = made()
    kept: list[Tensor] = []
    handle = model.connector.register_forward_hook(lambda module, args, out: kept.append(out))
    loss = model(testing.prompts_of(model)).logits[..., :5].sum()
    handle.remove()
    dead = weakref.ref(kept[0])
    assert dead() is not None
    kept.clear()
    del loss
    gc.collect()
    assert dead() is None, "the visual tokens, and their graph, outlive the loss"


def _recompute_whole_calls(model: VisionLanguageModel) -> None:
    """Layers as in Transformers 5.17, which recompute `__call__`, hooks included."""
    for layer in model.language.layers:
        kind: Any = type(layer)
        forward = kind.forward.__wrapped__

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            run = partial(nn.Module.__call__, self, **kwargs)
            if self.gradient_checkpointing and self.training:
                return self._gradient_checkpointing_func(run, *args)
            return run(*args)

        old = type(kind.__name__, (kind,), {"__call__": call})
        old.forward = forward  # type: ignore[attr-defined]
        layer.__class__ = old


@pytest.mark.parametrize("whole_calls", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradient_checkpointing_of_either_kind(fusion: str, whole_calls: bool) -> None:
    model = made(fusion)
    if whole_calls:
        _recompute_whole_calls(model)
    testing.check_gradient_checkpointing(model)
    assert hooks_on(model.language) == 0


@pytest.mark.parametrize("whole_calls", [False, True])
def test_each_backward_pass_recomputes_its_own_images(whole_calls: bool) -> None:
    """Two forward passes, then their backward passes in the wrong order."""
    model = made()
    if whole_calls:
        _recompute_whole_calls(model)
    batches = [testing.prompts_of(model, seed) for seed in (0, 1)]

    def gradients(checkpointing: bool) -> list[Tensor]:
        model.language.checkpoint_activations(checkpointing)
        model.train()
        model.zero_grad(set_to_none=True)
        losses = [model(_labelled(model, b)).loss for b in batches]
        for weight, loss in zip((1.0, 2.0), losses, strict=True):
            (weight * loss).backward()
        model.eval()
        return [p.grad for p in model.trained_parameters().values()]

    expected = gradients(False)
    for got, wanted in zip(gradients(True), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def _labelled(model: VisionLanguageModel, batch: Batch) -> Batch:
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    labels = labels.masked_fill(labels == model.special_tokens.image_id, -100)
    return Batch(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixels=batch.pixels,
        labels=labels,
    )


class Dropped(nn.Module):
    """A connector with dropout."""

    num_tokens, width = 16, 64

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 64)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(features), 0.5, self.training)


def test_compose_and_load_return_evaluation_mode(tmp_path: Any) -> None:
    """A connector with dropout: greedy answers to one question are one answer."""
    model = im.compose("tiny-vit", "tiny-lm", Dropped())
    testing.check_evaluation_mode(model)
    again = im.load(im.save(model, tmp_path), connector=Dropped())
    testing.check_evaluation_mode(again)
    image = torch.randn(3, 32, 32)
    batch = again.prepare(["<image>a"], [[image]])
    answers = [im.generate(again, batch, max_new_tokens=8).tolist() for _ in range(4)]
    assert answers[1:] == answers[:-1]


def test_a_shared_part_is_not_converted() -> None:
    language, vision = load_language("tiny-lm"), load_vision("tiny-vit")
    first = im.compose(vision, language, im.Linear())
    for parts in ((vision, "tiny-lm"), ("tiny-vit", language)):
        with pytest.raises(ConfigError, match="may be part of other models"):
            im.compose(*parts, im.Linear(), dtype=torch.bfloat16)
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    half = copy.deepcopy(language).to(torch.bfloat16)
    second = im.compose("tiny-vit", half, im.Linear(), dtype=torch.bfloat16)
    assert {p.dtype for p in second.parameters()} == {torch.bfloat16}


def test_a_model_is_pickled_with_gradient_checkpointing_on() -> None:
    model = made()
    model.language.checkpoint_activations()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    batch = testing.prompts_of(model)
    assert torch.equal(again(batch).logits, model(batch).logits)
