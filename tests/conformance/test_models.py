"""Every language-model family x fusion, and every connector x fusion, through the same suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import isthmus as im
from isthmus import testing
from isthmus.model.backbones.tiny import FAMILIES, byte_tokenizer, tiny_language_model
from isthmus.model.connectors.norm_pool import NormPool
from isthmus.model.vlm import VisionLanguageModel

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "cross_attention": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2),
    "cross_attention_previous": im.CrossAttention(
        every=2, offset=1, heads=2, head_dim=8, ffw_mult=2, sees="previous"
    ),
}
# NVLM-H: visual tokens in the text and through gated blocks; open gates, zero output maps
FUSIONS["hybrid"] = im.CrossAttention(
    every=2, heads=2, head_dim=8, ffw_mult=2, inline=True, gate=0.5
)
CONNECTORS: dict[str, Any] = {
    "linear": im.Linear(),
    "mlp": im.MLP(),
    "pixel_shuffle": im.PixelShuffle(factor=2),
    "pixel_shuffle_mlp": im.PixelShuffleMLP(factor=2),
    "pool": im.Pool(tokens=4),
    "attention_pool": im.AttentionPool(tokens=3, heads=2),
    "resampler": im.Resampler(latents=3, depth=2, heads=2, head_dim=8),
    "qformer": im.QFormer(queries=3, depth=2, heads=2, width=16),
    "c_abstractor": im.CAbstractor(tokens=4, depth=1, hidden=16),
    "norm_pool": NormPool(tokens=4),
    "names": im.Names().toy(),
}


def model_of(family: str, connector: str, fusion: str) -> VisionLanguageModel:
    options = FUSIONS[fusion]
    reads_regions = connector == "names"
    if reads_regions and isinstance(options, im.CrossAttention):
        options = im.CrossAttention(
            every=2, heads=2, head_dim=8, visual_width=64, inline=options.inline
        )
    torch.manual_seed(0)
    language = tiny_language_model(family)
    vision = im.VisionConfig(name="tiny-cnn", regions=True) if reads_regions else "tiny-vit"
    return im.compose(vision, language, CONNECTORS[connector], options, tokenizer=byte_tokenizer())


@pytest.fixture(scope="module", params=[(f, x) for f in FAMILIES for x in FUSIONS], ids="-".join)
def by_family(request: pytest.FixtureRequest) -> VisionLanguageModel:
    family, fusion = request.param
    return model_of(family, "resampler", fusion)


def test_text_only_is_bit_for_bit_the_bare_model(by_family: VisionLanguageModel) -> None:
    testing.check_text_is_untouched(by_family)


def test_closed_gates_are_bit_for_bit_the_bare_model(by_family: VisionLanguageModel) -> None:
    if by_family.fusion.in_text:
        pytest.skip("inline tokens stand in the text whatever the gates are")
    testing.check_closed_gates(by_family)


def test_copies_give_the_same_logits(by_family: VisionLanguageModel) -> None:
    testing.check_copies(by_family)


def test_the_language_model_stays_free(by_family: VisionLanguageModel) -> None:
    testing.check_language_model_is_free(by_family)


def test_a_token_sees_only_images_before_it(by_family: VisionLanguageModel) -> None:
    testing.check_sight(by_family)


def test_a_padded_row_equals_the_row_alone(by_family: VisionLanguageModel) -> None:
    testing.check_padding(by_family)


def test_packed_samples_do_not_see_each_other(by_family: VisionLanguageModel) -> None:
    testing.check_packing(by_family)


def test_cached_decoding_equals_recomputation(by_family: VisionLanguageModel) -> None:
    testing.check_decoding(by_family)


def test_gradient_checkpointing_changes_nothing(by_family: VisionLanguageModel) -> None:
    testing.check_gradient_checkpointing(by_family)


def test_frozen_tensors_survive_a_training_step(by_family: VisionLanguageModel) -> None:
    testing.check_training_step(by_family)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("connector", CONNECTORS)
def test_every_connector_with_every_fusion(connector: str, fusion: str) -> None:
    model = model_of("llama", connector, fusion)
    testing.check_evaluation_mode(model)
    testing.check_text_is_untouched(model)
    testing.check_sight(model)
    testing.check_padding(model)
    testing.check_decoding(model)
    testing.check_training_step(model)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("connector", CONNECTORS)
def test_saved_and_loaded_is_the_same(connector: str, fusion: str) -> None:
    model = model_of("llama", connector, fusion)
    language = tiny_language_model("llama")
    testing.check_save_and_load(model, language=language, tokenizer=byte_tokenizer())
