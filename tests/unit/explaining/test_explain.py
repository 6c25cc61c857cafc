"""`explain`: what is kept, what it comes from, and that the model stays as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import isthmus as im
from isthmus.cpu import Kernel
from isthmus.cpu import int8_kernel as kernel
from isthmus.errors import ConfigError, InputError, PromptError
from isthmus.explaining.inputs import Inputs
from isthmus.explaining.words import depths_for
from isthmus.generation.encode import PromptEncoder
from isthmus.model.backbones import int8_layers
from isthmus.model.backbones.int8_layers import Int8Linear, to_int8
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model

QUESTION = "What is it?"


def scrambled(model: im.VisionLanguageModel) -> im.VisionLanguageModel:
    """Weights that make the answer depend on the images."""
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


def inline(connector: Any = None, **options: Any) -> im.VisionLanguageModel:
    fusion = im.Inline(**options)
    return scrambled(im.compose("tiny-vit", "tiny-lm", connector or im.Linear(), fusion))


def gated(sees: str = "last", **options: Any) -> im.VisionLanguageModel:
    resampler = im.Resampler(latents=5, depth=2, heads=2, head_dim=8)
    fusion = im.CrossAttention(every=2, heads=2, head_dim=8, sees=sees, **options)  # type: ignore[arg-type]
    return scrambled(im.compose("tiny-vit", "tiny-lm", resampler, fusion))


def pictures(count: int = 1) -> list[Image.Image]:
    return [
        Image.fromarray(torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8).numpy())
        for _ in range(count)
    ]


def batch_of(
    model: im.VisionLanguageModel, found: im.Explanation, images: Sequence[Any]
) -> im.Batch:
    """The prompt and the answer, made anew from pixels."""
    encoded, _ = PromptEncoder(model)(im.Prompt(found.prompt, tuple(images)))
    inputs = Inputs(encoded.ids, tuple(t.id for t in found.tokens), tuple(encoded.layouts))
    pixels = [p if isinstance(p, Tensor) else model.vision.preprocess(p) for p in images]
    visual = model.connector(model.vision(torch.stack(pixels)))
    return inputs.batch([list(visual)], model.device)


@torch.no_grad()
def logprobs_of(
    model: im.VisionLanguageModel, found: im.Explanation, images: Sequence[Any]
) -> Tensor:
    """(T,) log-probabilities of the answer's tokens, by the model alone."""
    batch = batch_of(model, found, images)
    logits = model(batch, last=len(found.tokens)).logits[0]
    ids = torch.tensor([token.id for token in found.tokens])
    return logits.log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]


@pytest.mark.parametrize(
    "make",
    [
        inline,
        lambda: inline(adapter=im.Adapter(rank=2)),
        gated,
        lambda: gated("previous"),
        lambda: scrambled(
            im.compose(
                "tiny-vit",
                "tiny-lm",
                im.MLP(),
                im.CrossAttention(every=1, heads=2, head_dim=8, inline=True),
            )
        ),
    ],
    ids=["inline", "adapter", "gated", "gated previous", "both"],
)
def test_the_answer_is_ask_s_and_nothing_stays_changed(make: Any) -> None:
    model, images = make(), pictures(2)
    answer = im.ask(model, images, QUESTION, max_new_tokens=5)
    prepared = model.prepare([answer.prompt], [images])
    with torch.no_grad():
        before = model(prepared).logits
    found = im.explain(model, images, QUESTION, max_new_tokens=5, heads=True, side=2)
    with torch.no_grad():
        after = model(prepared).logits
    assert torch.equal(before, after)
    assert model.language.model.config._attn_implementation == "sdpa"
    hooks = [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    assert not any(hooks)
    assert found.answer == answer.written
    assert found.prompt == answer.prompt
    assert 1 <= len(found.tokens) <= 5
    got = torch.tensor([token.logprob for token in found.tokens])
    torch.testing.assert_close(got, logprobs_of(model, found, images), rtol=1e-4, atol=1e-4)
    for kind in found.kinds:
        heads = found.heads(1, kind)
        assert heads is not None
        torch.testing.assert_close(heads.mean(dim=2), found.attention(1, kind))
    json.dumps(found.to_dict())


def test_a_map_is_attention_laid_out_on_the_patches() -> None:
    found = im.explain(inline(), pictures(2), QUESTION, max_new_tokens=3, side=0)
    weights = found.attention(1)
    assert weights.shape == (3, 4, 16)
    assert found.images[1].text == tuple(range(16, 32))  # the second image, behind the first
    assert found.text is not None
    torch.testing.assert_close(weights, found.text.weights[..., 16:32])
    layer = found.map(2, 1, layer=3)
    assert layer is not None
    torch.testing.assert_close(layer, weights[2, 3].view(4, 4))
    mean = found.map(2, 1)
    assert mean is not None
    torch.testing.assert_close(mean, weights[2].mean(dim=0).view(4, 4))
    with pytest.raises(InputError, match=r"got layer 9: expected one of \(0, 1, 2, 3\)"):
        found.map(0, layer=9)
    with pytest.raises(InputError, match='got kind "blocks": expected text'):
        found.map(0, kind="blocks")


def test_connectors_that_merge_patches_share_attention_among_them() -> None:
    for connector in (im.PixelShuffle(factor=2), im.Pool(tokens=4)):
        found = im.explain(inline(connector), pictures(), QUESTION, max_new_tokens=1, side=0)
        assert found.images[0].cells == (2, 2)
        weights, got = found.attention(0)[0].mean(dim=0), found.map(0)
        assert got is not None
        expected = weights.view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
        torch.testing.assert_close(got, expected)


def test_a_class_token_is_of_no_place() -> None:
    vision = im.VisionConfig(name="tiny-vit", keep_cls=True)
    model = scrambled(im.compose(vision, "tiny-lm", im.Linear(), im.Inline()))
    assert model.vision.patch_grid == (1, (4, 4))
    found = im.explain(model, pictures(), QUESTION, max_new_tokens=1, side=0)
    got = found.map(0, layer=1)
    assert got is not None
    torch.testing.assert_close(got.flatten(), found.attention()[0, 1, 1:])
    queries = im.QFormer(queries=3, depth=1, heads=2, width=16)
    model = scrambled(im.compose(vision, "tiny-lm", queries, im.Inline()))
    found = im.explain(model, pictures(), QUESTION, max_new_tokens=1, side=0)
    shares = found.images[0].shares
    assert shares is not None
    assert shares.shape == (3, 16)
    assert (shares.sum(dim=1) < 1).all()


@pytest.mark.parametrize("sees", ["last", "previous"])
def test_gated_blocks_show_the_weights_that_they_read_with(sees: str) -> None:
    model, images = gated(sees), pictures(2)
    found = im.explain(model, images, QUESTION, max_new_tokens=3, side=0)
    assert found.kinds == ("blocks",)
    assert found.blocks is not None
    assert found.blocks.layers == (0, 2)
    sums = torch.stack([w.sum(dim=-1) for w in found.blocks.weights])
    torch.testing.assert_close(sums.sum(dim=0), torch.ones(3, 2))
    if sees == "last":
        assert float(found.blocks.weights[0].sum()) == 0
    batch = batch_of(model, found, images)
    states: dict[int, Tensor] = {}
    for number in (0, 2):  # before the fusion's own hooks, so what goes into its blocks
        model.language.layers[number].register_forward_pre_hook(
            lambda module, args, kwargs, n=number: states.update(
                {n: args[0] if args else kwargs["hidden_states"]}
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(batch)
    assert isinstance(batch.visual, Tensor)
    context = batch.visual[1:] if sees == "last" else batch.visual
    for k, number in enumerate((0, 2)):
        block: Any = model.fusion.blocks[str(number)]
        attention = block.attention
        queries = block.norm(states[number][0, -3:])
        q = (queries @ attention.query_projection.weight.T).view(3, 2, 8)
        keys = (context.flatten(0, 1) @ attention.context_projection.weight.T)[:, :16]
        scores = torch.einsum("qhd,chd->qhc", q, keys.view(-1, 2, 8)) / math.sqrt(8)
        expected = scores.softmax(dim=-1).mean(dim=1).detach()
        shown = found.blocks.weights[1:] if sees == "last" else found.blocks.weights
        got = torch.cat([w[:, k] for w in shown], dim=-1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        gate = float(block.attention_gate.detach().tanh())
        assert found.blocks.gates[k]["attention"] == pytest.approx(gate)


def test_attention_to_latents_becomes_a_map_by_composition() -> None:
    model, images = gated(), pictures()
    found = im.explain(model, images, QUESTION, max_new_tokens=2, side=0)
    features = model.vision(model.vision.preprocess(images[0])[None])
    connector: Any = model.connector
    shares = connector.patch_shares(features)[0].detach()
    got = found.map(1, layer=2)
    assert got is not None
    torch.testing.assert_close(got, (found.attention(0, "blocks")[1, 1] @ shares).view(4, 4))
    assert float(got.sum()) == pytest.approx(1.0, abs=1e-5)
    assert found.images[0].cells is None


def test_a_covered_region_is_scored_by_the_model_itself() -> None:
    model, images = inline(), pictures(2)
    found = im.explain(model, images, QUESTION, max_new_tokens=3, side=3)
    pixels = [model.vision.preprocess(image) for image in images]
    grey = model.vision.preprocess(Image.new("RGB", (32, 32), (128, 128, 128)))
    changed = pixels[1].clone()
    changed[:, 10:21, 21:32] = grey[:, 10:21, 21:32]  # row 1, column 2 of three
    whole = logprobs_of(model, found, pixels)
    expected = logprobs_of(model, found, [pixels[0], changed]) - whole
    covered = found.covered[1]
    assert covered is not None
    torch.testing.assert_close(covered.change[5], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(covered.map()[1, 2], expected.sum(), rtol=1e-3, atol=1e-4)
    assert covered.map(2).shape == (3, 3)
    assert float(covered.change.abs().max()) > 1e-2


def test_whether_the_answer_stays_is_whether_it_would_be_given_again() -> None:
    model, [image] = inline(), pictures()
    found = im.explain(model, image, QUESTION, max_new_tokens=2, side=2)
    covered = found.covered[0]
    assert covered is not None
    pixels = model.vision.preprocess(image)
    grey = model.vision.preprocess(Image.new("RGB", (32, 32), (128, 128, 128)))
    ids = [token.id for token in found.tokens]
    for region, (row, column) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        changed = pixels.clone()
        part = slice(row, row + 16), slice(column, column + 16)
        changed[:, *part] = grey[:, *part]
        prompt = im.Prompt(found.prompt, (changed,))
        [made] = im.Engine(model).generate([prompt], max_new_tokens=2)
        assert covered.stays[region] == (list(made.completions[0].ids) == ids)


def test_the_blank_answer_is_that_to_grey_images() -> None:
    model, images = inline(), pictures(2)
    found = im.explain(model, images, QUESTION, max_new_tokens=4, side=0)
    grey = [Image.new("RGB", (32, 32), (128, 128, 128))] * 2
    assert found.blanked is not None
    assert found.blanked.answer == im.ask(model, grey, QUESTION, max_new_tokens=4).written
    change = logprobs_of(model, found, grey) - logprobs_of(model, found, images)
    torch.testing.assert_close(found.blanked.change, change, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "gemma"])
def test_words_at_the_input_and_behind_the_last_layer(family: str) -> None:
    language: Any = tiny_language_model(family)
    parts = im.load_language(language, tokenizer=byte_tokenizer())
    model = scrambled(im.compose("tiny-vit", parts, im.Linear(), im.Inline()))
    with torch.no_grad():  # every visual token is the embedding of "Q", longer
        projection: Any = model.connector.projection
        projection.weight.zero_()
        projection.bias.copy_(parts.input_embedding.weight[ord("Q")] * 3)
    images = pictures(2)
    found = im.explain(model, images, QUESTION, max_new_tokens=2, side=0, words=2)
    near = found.words[1]
    assert near is not None
    assert near.layers == ("input", "after 2 layers", "after 4 layers")
    assert {words[0] for words in near.words[0]} == {("Q", 1.0)}
    assert near.words[0][0][1][1] < 1
    batch = batch_of(model, found, images)
    with torch.no_grad():
        logits = model(batch).logits[0, 16:32, : len(parts.tokenizer)]
        all_logits = model(batch).logits[0, 16:32, : parts.vocab_rows]
    assert not found.notes
    best = logits.argmax(dim=-1)
    chances = all_logits.softmax(dim=-1).gather(1, best[:, None])[:, 0]
    for m, (word, value) in enumerate(words[0] for words in near.words[2]):
        assert word == parts.tokenizer.decode([int(best[m])])
        assert value == pytest.approx(float(chances[m]), abs=1e-3)


def test_depths_end_with_the_last_layer() -> None:
    for layers in range(1, 40):
        for most in range(1, 9):
            found = depths_for(layers, most)
            assert found[-1] == layers
            assert len(set(found)) == len(found) <= most
            assert found[0] >= 1


def test_what_computes_in_int8_is_explained_with_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coarse = Kernel("coarse", 3, lambda w, s: lambda x: (x.round() @ w.float().T * s).float())
    found_kernel = kernel() or coarse
    monkeypatch.setattr(int8_layers, "int8_kernel", lambda: found_kernel)
    language = tiny_language_model("llama", width=128, heads=2, layers=2)
    parts = im.load_language(language, tokenizer=byte_tokenizer())
    model = scrambled(im.compose("tiny-vit", parts, im.Linear(), im.Inline()))
    [image] = pictures()
    exact = im.explain(model, image, QUESTION, max_new_tokens=1)
    assert to_int8(model.language.model) > 0
    got = im.explain(model, image, QUESTION, max_new_tokens=1)
    assert exact.text is not None
    assert got.text is not None
    assert torch.equal(got.text.weights, exact.text.weights)
    assert any(isinstance(m, Int8Linear) for m in model.language.model.modules())
    batch = batch_of(model, exact, [image])
    with torch.no_grad():
        rounded = model(batch).logits  # int8 again, and so it differs
        with int8_layers.exactly():
            assert not torch.equal(rounded, model(batch).logits)


def test_names_are_labelled_by_what_they_are() -> None:
    vision = im.VisionConfig(name="tiny-cnn", regions=True)
    small = replace(im.Names().toy(), region_others=1, free=3)
    model = im.compose(vision, "tiny-lm", small, im.Inline())
    [image] = pictures()
    features = model.vision(model.vision.preprocess(image)[None])
    connector: Any = model.connector
    connector.image.linear.normal_()  # or nothing lies anywhere in the analysis
    [labels] = connector.token_labels(features)
    assert len(labels) == connector.num_tokens

    def changed_by(*parameters: Tensor) -> list[str]:
        """The labels of the tokens that depend on parameters."""
        with torch.no_grad():
            before = connector(features)[0]
            for parameter in parameters:
                parameter.add_(1)
            after = connector(features)[0]
            for parameter in parameters:
                parameter.sub_(1)
        differs = (before - after).abs().amax(dim=1) > 1e-3
        return [label for label, own in zip(labels, differs.tolist(), strict=True) if own]

    places = ["top left", "top right", "bottom left", "bottom right", "middle"]
    assert changed_by(connector.places) == [f"{place}: place" for place in places]
    assert changed_by(connector.sureness.bias) == ["how sure"]
    assert changed_by(connector.alike.weight) == ["analysis"]
    assert changed_by(connector.out_norm.bias) == ["gathered 1", "gathered 2"]
    others = [f"{place}: next likeliest 1" for place in places]
    assert changed_by(connector.other_sureness.bias) == ["next likeliest 1", *others]
    found = im.explain(model, image, QUESTION, max_new_tokens=1, side=2)
    assert list(found.images[0].labels) == labels
    assert found.map(0) is None
    assert "not parts of it" in found.notes[0]


def test_a_clip_has_bars_and_no_picture() -> None:
    resampler = im.Resampler(latents=4, depth=1, heads=2, head_dim=8, max_frames=3)
    model = scrambled(im.compose("tiny-vit", "tiny-lm", resampler, im.Inline()))
    found = im.explain(model, [tuple(pictures(2))], QUESTION, max_new_tokens=2)
    assert found.images[0].picture is None
    assert found.covered == (None,)
    assert found.blanked is None
    assert found.map(0) is None
    assert found.attention().shape == (2, 4, 4)
    assert "nothing was covered" in found.notes[0]


def test_an_empty_answer_is_explained_by_what_it_ended_with() -> None:
    model = inline()
    for _ in range(50):  # until the answer begins with a whole character
        images = pictures()
        first = im.explain(model, images, QUESTION, max_new_tokens=1, side=0).tokens[0]
        if len(first.text) == 1:
            break
    found = im.explain(model, images, QUESTION, max_new_tokens=3, side=0, stop=(first.text,))
    assert found.answer == ""
    assert found.tokens == (first,)


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_a_picture_is_that_which_the_pixels_show(resize: str) -> None:
    vision = im.VisionConfig(name="tiny-vit", resize=resize)  # type: ignore[arg-type]
    model = im.compose(vision, "tiny-lm", im.Linear(), im.Inline())
    image = pictures()[0].crop((0, 0, 40, 20))
    found = im.explain(model, image, QUESTION, max_new_tokens=1, side=0)
    picture = found.images[0].picture
    assert picture is not None
    assert picture.size == (32, 32)
    again, pixels = model.vision.preprocess(picture), model.vision.preprocess(image)
    assert float((again - pixels).abs().max()) < 0.02
    assert float(pixels.std()) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 17}, "side is 17: expected 0 to 16"),
        ({"side": -1}, "side is -1"),
        ({"words": -1}, "words is -1: expected 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected 1 or more"),
    ],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        im.explain(inline(), pictures(), QUESTION, **options)  # type: ignore[arg-type]


def test_without_an_image_there_is_nothing_to_explain() -> None:
    with pytest.raises(PromptError, match="got no image"):
        im.explain(inline(), [], QUESTION)


def test_nothing_is_written_unless_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    im.explain(inline(), pictures(), QUESTION, max_new_tokens=1, side=0)
    assert not list(tmp_path.iterdir())
    im.explain(inline(), pictures(), QUESTION, max_new_tokens=1, side=0, out="page.html")
    assert (tmp_path / "page.html").is_file()


def test_layers_that_tell_no_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = inline()
    layer: Any = model.language.layers[1].self_attn
    own = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a, **k: (own(*a, **k)[0], None))
    found = im.explain(model, pictures(), QUESTION, max_new_tokens=1, side=0)
    assert found.text is not None
    assert found.text.layers == (0, 2, 3)
    assert "1 of 4 layers" in found.notes[0]
    assert F.relu(found.text.weights).equal(found.text.weights)
