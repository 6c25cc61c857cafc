"""Joined dual encoders: what is trained, what is saved, what a vector depends on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from isthmus.errors import CheckpointError, ConfigError, InputError, PromptError
from isthmus.model.backbones.text import load_text
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_text_model, tiny_vit_model
from isthmus.model.backbones.vision import load_vision
from isthmus.model.clip.checkpoint import load_clip, save_clip, trained_state
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import Head, HeadConfig, Pooling, pooled_features

TEXTS = ["a cat", "a photo of a very old dog", "x", "a cat"]


def join(**options: object) -> DualEncoder:
    model = DualEncoder.join("tiny-vit", "tiny-text", width=12, **options)  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def noise(side: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8))


def test_vectors_are_the_heads_of_pooled_features_by_hand() -> None:
    model = join(image_head=HeadConfig(hidden=7))
    pixels = torch.randn(3, 3, 32, 32)
    head, encoder = model.image.head, model.image.encoder
    head.mean.normal_()
    head.std.uniform_(0.5, 2)
    z = (encoder(pixels).mean(1) - head.mean) / head.std
    first, last = head.mlp[0], head.mlp[-1]
    hidden = F.gelu(z @ first.weight.T + first.bias)
    by_hand = z @ head.linear.weight.T + head.linear.bias + hidden @ last.weight.T + last.bias
    expected = by_hand / by_hand.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.encode_pixels(pixels), expected, atol=1e-5, rtol=0)

    ids = torch.tensor([list(b"a cat")])
    mean = model.text.encoder.model(input_ids=ids).last_hidden_state[0].mean(0)
    text = (mean / mean.norm()) @ model.text.head.linear.weight.T + model.text.head.linear.bias
    got = model.encode_texts(["a cat"])[0]
    torch.testing.assert_close(got, text / text.norm(), atol=1e-5, rtol=0)


def test_a_network_beside_the_linear_map_starts_at_nothing() -> None:
    torch.manual_seed(1)
    model = DualEncoder.join("tiny-vit", "tiny-text", width=12, image_head=HeadConfig(hidden=9))
    pooled = torch.randn(2, 32)
    assert torch.equal(model.image.head(pooled), model.image.head.linear(pooled))


def test_a_text_vector_depends_neither_on_neighbours_nor_on_padding() -> None:
    model = join()
    together = model.encode_texts(TEXTS)
    alone = torch.cat([model.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, model.encode_texts(TEXTS, trim=False), atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_passes_of_any_size_give_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = join()
    whole = model.encode_texts(TEXTS)
    monkeypatch.setattr("isthmus.model.clip.dual_encoder.TOKENS_AT_ONCE", 1)
    torch.testing.assert_close(model.encode_texts(TEXTS), whole, atol=1e-5, rtol=0)
    images = [noise(side) for side in (20, 30, 50)]
    torch.testing.assert_close(
        model.encode_images(images, batch_size=1),
        model.encode_images(images),
        atol=1e-5,
        rtol=0,
    )


def test_locked_towers_get_no_gradient_and_unlocked_ones_do() -> None:
    pixels = torch.randn(2, 3, 32, 32)
    for locked in (True, False):
        model = join(lock_image=locked, lock_text=locked)
        scores = model.logits(model.encode_pixels(pixels), model.encode_texts(TEXTS[:2]))
        scores.square().sum().backward()
        for tower in (model.image, model.text):
            encoder = [p.grad for p in tower.encoder.parameters()]
            assert all(g is None for g in encoder) is locked
            assert all(p.grad is not None for p in tower.head.parameters() if p.requires_grad)
        assert model.logit_scale.grad is not None


@pytest.mark.parametrize("locked", [True, False])
def test_saving_keeps_vectors_and_only_what_was_trained(locked: bool, tmp_path: Path) -> None:
    model = join(loss="sigmoid", lock_image=locked, lock_text=locked)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    again = load_clip(save_clip(model, tmp_path, extra={"recipe": "test"}))
    assert again.fingerprint() == model.fingerprint()
    assert (again.logit_scale, again.logit_bias) == (model.logit_scale, model.logit_bias)
    assert torch.equal(again.encode_texts(TEXTS), model.encode_texts(TEXTS))
    names = trained_state(model)
    assert any(".encoder." in name for name in names) is not locked
    assert json.loads((tmp_path / "isthmus.json").read_text())["recipe"] == "test"


def test_empty_tensors_are_not_taken_for_one() -> None:
    """All of them lie at address 0; tensors that two names share are still saved once."""
    model = join()
    for name in ("first", "second"):
        model.register_parameter(name, torch.nn.Parameter(torch.empty(0, 4)))
    model.register_buffer("one", torch.ones(2))
    model.register_buffer("same", model.one)
    state = trained_state(model)
    assert {"first", "second", "one"} <= state.keys()
    assert "same" not in state


def test_a_head_between_other_towers_is_refused(tmp_path: Path) -> None:
    save_clip(join(), tmp_path)
    other = load_text(tiny_text_model(seed=1), tokenizer=byte_tokenizer())
    with pytest.raises(CheckpointError, match="text encoder of fingerprint"):
        load_clip(tmp_path, text=other)
    path = tmp_path / "isthmus.json"
    path.write_text(path.read_text().replace('"width": 12', '"width": 13'))
    with pytest.raises(CheckpointError, match=r"is \(12, 32\), expected \(13, 32\)"):
        load_clip(tmp_path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"isthmus\.json is damaged"):
        load_clip(tmp_path)


def test_objects_are_saved_and_asked_for_again(tmp_path: Path) -> None:
    model = DualEncoder.join(tiny_vit_model(width=16), "tiny-text", width=6)
    save_clip(model, tmp_path)
    with pytest.raises(CheckpointError, match="pass it as load"):
        load_clip(tmp_path)
    again = load_clip(tmp_path, vision=tiny_vit_model(width=16))
    assert again.fingerprint() == model.fingerprint()


def test_a_fingerprint_tells_the_smallest_change() -> None:
    model = join()
    whole, text = model.fingerprint(), model.text_fingerprint()
    with torch.no_grad():
        model.logit_scale.add_(1)
    assert (model.fingerprint(), model.text_fingerprint()) == (whole, text)
    with torch.no_grad():
        model.image.head.linear.weight[3, 5] += 1e-4
    assert model.fingerprint() != whole
    assert model.text_fingerprint() == text
    with torch.no_grad():
        model.text.head.linear.weight[3, 5] += 1e-4
    assert model.text_fingerprint() != text


def test_mean_and_maximum_of_the_patches() -> None:
    model = DualEncoder.join("tiny-vit", "tiny-text", width=6, pooling="mean_max")
    pixels = torch.randn(2, 3, *model.image.image_size)
    features = model.image.encoder(pixels)
    expected = torch.cat([features.mean(1), features.max(1).values], dim=1)
    assert torch.equal(model.image.pool(pixels), expected)


@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
def test_what_is_seen_of_regions_is_not_pooled(pooling: Pooling) -> None:
    plain, encoder = (load_vision("tiny-cnn", regions=told) for told in (False, True))
    pixels = torch.randn(2, 3, *plain.image_size)
    found = pooled_features(encoder, pixels, pooling)
    torch.testing.assert_close(found, pooled_features(plain, pixels, pooling), atol=1e-4, rtol=1e-4)


def test_own_pooling_is_the_library_s() -> None:
    vit = tiny_vit_model(width=16)
    model = DualEncoder.join(vit, "tiny-text", width=6, pooling="own")
    pixels = torch.randn(2, 3, 32, 32)
    expected = vit.forward_head(vit.forward_features(pixels), pre_logits=True)
    assert torch.equal(model.image.pool(pixels), expected)
    assert not torch.equal(expected, model.image.encoder(pixels).mean(1))


def test_bad_texts_are_named() -> None:
    model = join()
    with pytest.raises(PromptError, match=r'"zzz.*" has 200 tokens.* at most 128, and 1 more'):
        model.encode_texts(["a", "z" * 200, "y" * 129])
    with pytest.raises(InputError, match="expected a list"):
        model.encode_texts("a cat")
    with pytest.raises(InputError, match="at least one"):
        model.encode_texts([])
    with pytest.raises(InputError, match="got int"):
        model.encode_texts(["a", 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-clp", 'did you mean "tiny-clip"'),
        ("open_clip:", "unknown dual encoder"),
        ("ViT-B-32", "unknown dual encoder"),
    ],
)
def test_unknown_names_say_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_clip(name)


def test_unknown_options_say_what_there_is() -> None:
    with pytest.raises(ConfigError, match="softmax"):
        join(loss="sofmax")
    with pytest.raises(ConfigError, match="mean, mean_max, own"):
        join(pooling="max")
    with pytest.raises(ConfigError, match="asset:NAME"):
        load_text("minilm")
    with pytest.raises(ConfigError, match="without its tokenizer"):
        load_text(tiny_text_model())


def test_a_head_that_takes_a_power() -> None:
    torch.manual_seed(0)
    head = Head(3, 2, HeadConfig(power=0.5))
    head.mean.copy_(torch.tensor([1.0, 0.0, -1.0]))
    head.std.copy_(torch.tensor([2.0, 1.0, 0.5]))
    x = torch.tensor([[4.0, 0.0, -9.0]], requires_grad=True)
    rooted = torch.tensor([[(2 - 1) / 2, 0.0, (-3 + 1) / 0.5]])
    assert head(x).tolist()[0] == pytest.approx(head.linear(rooted).tolist()[0], abs=1e-5)
    head(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())  # the root's slope at 0 is not
    with pytest.raises(ConfigError, match="power"):
        HeadConfig(power=0)


def test_a_power_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = DualEncoder.join("tiny-vit", "tiny-text", width=8, image_head=HeadConfig(power=0.5))
    pixels = torch.rand(2, 3, *made.image.image_size)
    again = load_clip(save_clip(made, tmp_path / "made"))
    assert torch.equal(again.encode_pixels(pixels), made.encode_pixels(pixels))
    assert again.image.head.config.power == 0.5
