"""Each promise broken on purpose, and the published check that finds it.

A check that cannot fail promises nothing. Every test here runs a check on a sound model first,
then on one whose code was changed in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus import testing
from isthmus.model import vlm as model_module
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.fusion import cross_attention, sight
from isthmus.model.fusion.cross_attention import GatedCrossAttentionBlock
from isthmus.model.fusion.inline import InlineFusion
from isthmus.model.fusion.sight import Sight, image_of_token
from isthmus.model.reading import block_mask
from isthmus.model.vlm import VisionLanguageModel

Patch = pytest.MonkeyPatch


def made(family: str = "llama", fusion: Any = None, **options: Any) -> VisionLanguageModel:
    if fusion is None:
        fusion = im.CrossAttention(every=2, heads=2, head_dim=8, **options)
    connector = im.Resampler(latents=3, depth=1, heads=2, head_dim=8)
    torch.manual_seed(0)
    return im.compose(
        "tiny-vit",
        tiny_language_model(family),
        connector,
        fusion,
        tokenizer=byte_tokenizer(),
    ).eval()


# --- 1: closed gates and text alone are the bare language model --------------------------------


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_a_gate_that_starts_open(monkeypatch: Patch, gate: float) -> None:
    """Gates of 0, or output maps of 0: either way a model that was never trained is silent."""
    testing.check_closed_gates(made(gate=gate), fresh=True)
    start = GatedCrossAttentionBlock.__init__

    def open_from_the_start(self: GatedCrossAttentionBlock, *args: Any) -> None:
        start(self, *args)
        nn.init.ones_(self.attention_gate)
        nn.init.normal_(self.attention.out_projection.weight)

    monkeypatch.setattr(GatedCrossAttentionBlock, "__init__", open_from_the_start)
    with pytest.raises(AssertionError, match="closed gates change the logits"):
        testing.check_closed_gates(made(gate=gate), fresh=True)


@pytest.mark.parametrize("gate", ["attention_gate", "ffw_gate"])
def test_a_gate_that_does_not_close(monkeypatch: Patch, gate: str) -> None:
    model = made()
    testing.check_closed_gates(model)
    forward = GatedCrossAttentionBlock.forward

    def ajar(self: GatedCrossAttentionBlock, *args: Any) -> Tensor:
        getattr(self, gate).data += 1e-3
        return forward(self, *args)

    monkeypatch.setattr(GatedCrossAttentionBlock, "forward", ajar)
    with pytest.raises(AssertionError, match="closed gates change the logits"):
        testing.check_closed_gates(model)


def test_a_block_that_also_changes_tokens_without_a_image(monkeypatch: Patch) -> None:
    """As in implementations that mask the attention and forget the feed-forward."""
    model = made()
    testing.check_text_is_untouched(model)
    forward = GatedCrossAttentionBlock.forward

    def everywhere(self: GatedCrossAttentionBlock, hidden: Tensor, *args: Any) -> Tensor:
        hidden = forward(self, hidden, *args)
        return hidden + self.ffw_gate.tanh() * self.ffw(hidden)

    monkeypatch.setattr(GatedCrossAttentionBlock, "forward", everywhere)
    shown = model.shown

    def always(seen: Sight | None, *rest: Any) -> Any:
        nothing = torch.full((1, 64), -1)
        seen = seen or Sight(visual=torch.zeros(1, 3, 32), prompt=nothing, begin=nothing)
        return shown(seen, *rest)

    monkeypatch.setattr(model, "shown", always)
    with pytest.raises(AssertionError, match="a text-only prompt differs"):
        testing.check_text_is_untouched(model)


def test_embeddings_that_are_almost_the_models(monkeypatch: Patch) -> None:
    model = made()
    testing.check_text_is_untouched(model)
    embed = AddedTokens.embed

    def shifted(self: AddedTokens, ids: Tensor) -> Tensor:
        return embed(self, ids) * (1 + 1e-6)

    monkeypatch.setattr(AddedTokens, "embed", shifted)
    with pytest.raises(AssertionError, match="a text-only prompt differs"):
        testing.check_text_is_untouched(model)


def test_images_that_stay_in_sight(monkeypatch: Patch) -> None:
    """What one prompt showed must be gone when the next one comes."""
    model = made()
    testing.check_text_is_untouched(model)
    show = model.shown

    shown: list[Tensor] = []

    def once_shown_always_shown(seen: Sight | None, *rest: Any) -> Any:
        if seen is not None:
            shown.append(seen.visual)
        elif shown:
            prompt = torch.zeros(1, 64).long()
            seen = Sight(visual=shown[-1], prompt=prompt, begin=prompt)
        return show(seen, *rest)

    monkeypatch.setattr(model, "shown", once_shown_always_shown)
    with pytest.raises(AssertionError, match="differs after images"):
        testing.check_text_is_untouched(model)


# --- 3: a token sees the images before it, and with "last" only the last ---------------------


def seen_by(shift: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """`image_of_token` with the number of the image changed where there is one."""
    right = sight.image_of_token

    def wrong(is_image: Tensor, mask: Tensor, positions: Any = None) -> Tensor:
        numbers = right(is_image, mask)
        changed = shift(numbers, is_image).clamp(0, int(is_image.sum()) - 1)
        return torch.where(numbers < 0, numbers, changed)

    return wrong


SHIFTS: dict[str, Any] = {
    "the next image": (lambda n, tags: n + 1, "tokens before the changed image: they differ"),
    "the image before": (lambda n, tags: n - 1, "the changed image has no effect"),
    # the tag itself still sees the image before it
    "one token late": (
        lambda n, tags: n - tags.long(),
        "tokens behind the second image, the first changed: they differ",
    ),
    "always the first": (lambda n, tags: n * 0, "the changed image has no effect"),
    "always the last": (lambda n, tags: n * 0 + 9, "tokens before the changed image"),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_sight_that_is_off(monkeypatch: Patch, name: str) -> None:
    model = made()
    testing.check_sight(model)
    shift, message = SHIFTS[name]
    monkeypatch.setattr(model_module, "image_of_token", seen_by(shift))
    with pytest.raises(AssertionError, match=message):
        testing.check_sight(model)


def test_last_that_sees_all_previous_images(monkeypatch: Patch) -> None:
    model = made()
    testing.check_sight(model)
    testing.check_sight(made(sees="previous"))  # there it is right
    monkeypatch.setattr(
        GatedCrossAttentionBlock, "_read_last", GatedCrossAttentionBlock._read_previous
    )
    with pytest.raises(AssertionError, match="tokens behind the second image"):
        testing.check_sight(model)


def test_inline_tokens_in_the_wrong_order(monkeypatch: Patch) -> None:
    model = made(fusion=im.Inline())
    testing.check_sight(model)
    embed = InlineFusion.embed

    def reversed_images(
        self: InlineFusion, embeddings: Tensor, is_image: Tensor, visual: Tensor
    ) -> Tensor:
        return embed(self, embeddings, is_image, visual.flip(0))

    monkeypatch.setattr(InlineFusion, "embed", reversed_images)
    with pytest.raises(AssertionError, match="tokens before the changed image"):
        testing.check_sight(model)


# --- 4: padding, and decoding with a cache -----------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_that_count_padding(monkeypatch: Patch, family: str) -> None:
    """Learned positions: rotary ones are relative, and would hide it."""
    model = made(family)
    testing.check_padding(model)

    forward = model.language.model.forward

    def from_zero(**inputs: Any) -> Any:
        length = inputs["inputs_embeds"].shape[1]
        return forward(**{**inputs, "position_ids": torch.arange(length)[None]})

    monkeypatch.setattr(model.language.model, "forward", from_zero)
    with pytest.raises(AssertionError, match="row 1 padded left and alone: they differ"):
        testing.check_padding(model)


def test_padding_that_is_attended_to(monkeypatch: Patch) -> None:
    model = made()
    testing.check_padding(model)
    forward = model.language.model.forward

    def unmasked(**inputs: Any) -> Any:
        mask = torch.ones_like(inputs["attention_mask"])
        return forward(**{**inputs, "attention_mask": mask})

    monkeypatch.setattr(model.language.model, "forward", unmasked)
    with pytest.raises(AssertionError, match="row 1 padded left and alone: they differ"):
        testing.check_padding(model)


def test_images_counted_without_the_rows_before(monkeypatch: Patch) -> None:
    """The image of the third row would be taken from the first."""
    model = made()
    testing.check_padding(model)
    right = sight.image_of_token

    def by_row(is_image: Tensor, mask: Tensor, positions: Any = None) -> Tensor:
        rows = [right(is_image[i : i + 1], mask[i : i + 1]) for i in range(len(mask))]
        return torch.cat(rows)

    monkeypatch.setattr(model_module, "image_of_token", by_row)
    with pytest.raises(AssertionError, match="row 2 padded left and alone: they differ"):
        testing.check_padding(model)


def test_an_end_of_chunk_for_rows_without_images(monkeypatch: Patch) -> None:
    """A row may only end a chunk if it has an image, whoever stands beside it."""
    model = made()
    testing.check_padding(model)
    add = AddedTokens._add_columns

    def for_all(self: AddedTokens, module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        if self.may_end is not None:
            self.may_end = torch.ones_like(self.may_end)
        return add(self, module, args, logits)

    monkeypatch.setattr(AddedTokens, "_add_columns", for_all)
    broken = made()  # hooks hold the method as it was when they were made
    with pytest.raises(AssertionError, match="a row without images may end a chunk"):
        testing.check_padding(broken)


def first_instead_of_last(self: Sight) -> None:
    """`narrow` that keeps each row's first image."""
    index = self.begin[:, 0].clamp(max=self.visual.shape[0] - 1)
    self.visual = self.visual[index]
    self.keys_values = {b: (k[index], v[index]) for b, (k, v) in self.keys_values.items()}
    rows = torch.arange(len(index))
    self.prompt = torch.where(self.last < 0, self.last, rows)[:, None]


def keys_values_left_behind(self: Sight) -> None:
    """`narrow` that renumbers the images and leaves K and V in the old order."""
    last = self.last
    self.prompt = torch.where(last < 0, last, torch.arange(len(last)))[:, None]


def values_of_the_first(self: Sight) -> None:
    """`narrow` that is right about everything but the values."""
    last, first = self.last, self.begin[:, 0].clamp(max=self.visual.shape[0] - 1)
    index = last.clamp(min=0)
    self.visual = self.visual[index]
    self.keys_values = {b: (k[index], v[first]) for b, (k, v) in self.keys_values.items()}
    self.prompt = torch.where(last < 0, last, torch.arange(len(last)))[:, None]


@pytest.mark.parametrize(
    "wrong", [first_instead_of_last, keys_values_left_behind, values_of_the_first]
)
def test_a_cache_narrowed_wrongly(monkeypatch: Patch, wrong: Callable[[Sight], None]) -> None:
    model = made()
    testing.check_decoding(model)
    monkeypatch.setattr(Sight, "narrow", wrong)
    with pytest.raises(AssertionError, match=r"token \d differs from full recomputation"):
        testing.check_decoding(model)


def test_decoded_tokens_that_see_nothing(monkeypatch: Patch) -> None:
    model = made(sees="previous")
    testing.check_decoding(model)
    monkeypatch.setattr(Sight, "last", property(lambda self: torch.full((3,), -1)))
    with pytest.raises(AssertionError, match=r"token \d differs from full recomputation"):
        testing.check_decoding(model)


# --- 5: frozen is frozen, trained is trained ---------------------------------------------------


def test_a_language_model_that_was_not_frozen(monkeypatch: Patch) -> None:
    testing.check_training_step(made())
    start = LanguageModel.__init__

    def thawed(self: LanguageModel, *args: Any) -> None:
        start(self, *args)
        self.layers[-1].requires_grad_(True)

    monkeypatch.setattr(LanguageModel, "__init__", thawed)
    with pytest.raises(AssertionError, match=r"not frozen, and no part of the strip: language\."):
        testing.check_training_step(made())


@pytest.mark.parametrize("part", ["language", "vision"])
def test_a_frozen_tensor_that_moves(part: str) -> None:
    model = made()
    testing.check_training_step(model)
    tensor = next(getattr(model, part).parameters())

    def drift(module: nn.Module, args: Any) -> None:
        tensor.data.view(-1)[0] += 1e-3

    model.register_forward_pre_hook(drift)
    with pytest.raises(AssertionError, match=rf"the frozen {part}\..* has changed"):
        testing.check_training_step(model)


def test_a_frozen_buffer_that_moves() -> None:
    """As the statistics of a batch norm do that is left in training mode."""
    model = made()
    norm = nn.BatchNorm1d(32)
    model.vision.register_module("late", norm.requires_grad_(False))
    model.vision.register_forward_hook(lambda m, a, out: norm(out.mT).mT)
    testing.check_training_step(model)

    def wake(module: nn.Module, args: Any) -> None:
        norm.train()

    model.vision.register_forward_pre_hook(wake)
    with pytest.raises(AssertionError, match=r"the frozen vision\.late\.running_mean has changed"):
        testing.check_training_step(model)


def test_a_part_of_the_strip_without_a_gradient(monkeypatch: Patch) -> None:
    model = made()
    testing.check_training_step(model)
    cut = model.connector.forward
    monkeypatch.setattr(model.connector, "forward", lambda features: cut(features).detach())
    with pytest.raises(AssertionError, match=r"connector\.latents got no gradient"):
        testing.check_training_step(model)


def test_a_gradient_that_is_not_finite() -> None:
    model = made()
    testing.check_training_step(model)
    model.connector.latents.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(AssertionError, match=r"latents got a gradient that is not finite"):
        testing.check_training_step(model)


def test_modules_that_are_used_are_the_ones_patched() -> None:
    """The names that the tests above replace are those the model looks up."""
    assert model_module.image_of_token is sight.image_of_token
    assert cross_attention.Sight is Sight


def test_packing_that_leaks(monkeypatch: Patch) -> None:
    """One mask of ones over a row of several samples lets each see those before it."""
    model = made()
    testing.check_packing(model)
    places = LanguageModel.places

    def of_one_sample(self: LanguageModel, mask: Tensor, *given: Tensor | None) -> Any:
        return places(self, mask, None)

    monkeypatch.setattr(LanguageModel, "places", of_one_sample)
    with pytest.raises(AssertionError, match=r"sample \d packed and alone: they differ"):
        testing.check_packing(model)


def test_images_of_the_sample_before(monkeypatch: Patch) -> None:
    """A packed sample without an image must not see its neighbour's."""
    model = made()
    testing.check_packing(model)

    def across(tags: Tensor, mask: Tensor, positions: Any = None) -> Tensor:
        return image_of_token(tags, mask)

    monkeypatch.setattr(model_module, "image_of_token", across)
    with pytest.raises(AssertionError, match=r"sample \d packed and alone: they differ"):
        testing.check_packing(model)


def test_positions_that_go_on_through_a_row(monkeypatch: Patch) -> None:
    """Packed positions that do not start anew give other logits, with absolute positions."""
    model = made("gpt2")
    testing.check_packing(model)
    places = LanguageModel.places

    def running(self: LanguageModel, mask: Tensor, positions: Tensor | None, *own: Any) -> Any:
        found = places(self, mask, positions, *own)
        if positions is not None:
            found["attention_mask"] = block_mask(positions, torch.float32)
            found["position_ids"] = torch.arange(positions.shape[1]).expand_as(positions)
        return found

    monkeypatch.setattr(LanguageModel, "places", running)
    with pytest.raises(AssertionError, match=r"sample \d packed and alone: they differ"):
        testing.check_packing(model)
