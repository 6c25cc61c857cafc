from __future__ import annotations

import math
import re
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

import isthmus as im
from isthmus.data.features import FeatureCache
from isthmus.demonstrations.embed import (
    ImageEmbedder,
    MeanHiddenState,
    embedded,
    on_questions,
    unit_rows,
)
from isthmus.demonstrations.tfidf import TfIdf, characters, words
from isthmus.errors import ConfigError, InputError
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.features import PatchFeatures
from isthmus.prompts.prompt import Example


def paint(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(count)]


class Counting:
    """Counts the images that go through an encoder, whoever sends them."""

    def __init__(self, encoder: VisionEncoder) -> None:
        self.images = 0
        encoder.register_forward_hook(self)

    def __call__(self, module: object, inputs: tuple[torch.Tensor], output: object) -> None:
        self.images += len(inputs[0])


def mean_features(encoder: VisionEncoder, path: Path) -> np.ndarray:
    pixels = encoder.preprocess(im.open_image(path))[None]
    return encoder(pixels)[0].mean(dim=0).numpy()


# --- Images ------------------------------------------------------------------------------------


def test_a_image_is_the_normalised_mean_of_its_patches(tmp_path: Path) -> None:
    encoder = im.load_vision("tiny-vit")
    paths = paint(tmp_path / "images", 3)
    found = ImageEmbedder(encoder)([Example(p) for p in paths])
    for row, path in zip(found, paths, strict=True):
        mean = mean_features(encoder, path)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_several_images_are_the_mean_of_each(tmp_path: Path) -> None:
    embed = ImageEmbedder(im.load_vision("tiny-vit"))
    paths = paint(tmp_path / "images", 2)
    a, b = embed([Example(p) for p in paths])
    both = (a + b) / np.linalg.norm(a + b)
    np.testing.assert_allclose(embed([Example(paths)])[0], both, atol=1e-5)
    np.testing.assert_allclose(embed([Example([tuple(paths)])])[0], both, atol=1e-5)  # a clip


def test_its_own_pooling_is_timms(tmp_path: Path) -> None:
    encoder = im.load_vision("tiny-vit")
    (path,) = paint(tmp_path / "images", 1)
    pixels = encoder.preprocess(im.open_image(path))[None]
    with torch.no_grad():
        expected = encoder.model.forward_head(encoder.model.forward_features(pixels))[0].numpy()
    found = ImageEmbedder(encoder, tmp_path / "cache", pooling="own")([Example(path)])[0]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-3)


def own_clip() -> VisionEncoder:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return im.load_vision(transformers.CLIPVisionModel(config), preprocess=plainly)


def own_open_clip() -> VisionEncoder:
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    model = open_clip.model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    return im.load_vision(model, preprocess=plainly)


def plainly(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.resize((32, 32)), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("make", [own_clip, own_open_clip])
def test_its_own_pooling_is_that_of_each_library(
    tmp_path: Path, make: Callable[[], VisionEncoder]
) -> None:
    encoder = make()
    (path,) = paint(tmp_path / "images", 1)
    with torch.no_grad():
        found = encoder.model(plainly(im.open_image(path))[None])
    expected = (found if isinstance(found, torch.Tensor) else found.pooler_output)[0].numpy()
    vector = ImageEmbedder(encoder, pooling="own")([Example(path)])[0]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-3)


def test_a_model_without_pooling_of_its_own_says_so(tmp_path: Path) -> None:
    encoder = own_clip()
    encoder.model.forward = lambda pixel_values: types.SimpleNamespace(pooler_output=None)
    with pytest.raises(ConfigError, match="no pooled output of its own"):
        ImageEmbedder(encoder, tmp_path, pooling="own")


def test_each_image_is_encoded_once_over_two_runs(tmp_path: Path) -> None:
    paths = paint(tmp_path / "images", 7)
    examples = [Example(p, q) for p in paths for q in ("What?", "Why?")]
    first = im.load_vision("tiny-vit")
    seen = Counting(first)
    embed = ImageEmbedder(first, tmp_path / "cache", batch_size=3)
    vectors = embed(examples)
    again = embed(list(reversed(examples)))
    assert seen.images == embed.encoded == 7
    assert (vectors == again[::-1]).all()

    second = im.load_vision("tiny-vit")  # as a new process would load it
    seen = Counting(second)
    renamed = [p.rename(p.with_name(f"new-{p.name}")) for p in paths]
    embed = ImageEmbedder(second, tmp_path / "cache")
    found = embed([Example(p, q) for p in renamed for q in ("What?", "Why?")])
    assert seen.images == embed.encoded == 0
    assert (found == vectors).all()


def test_with_and_without_a_folder_vectors_are_the_same(tmp_path: Path) -> None:
    encoder = im.load_vision("tiny-vit")
    examples = [Example(p) for p in paint(tmp_path / "images", 3)]
    kept = ImageEmbedder(encoder, tmp_path / "cache")(examples)
    assert (ImageEmbedder(encoder)(examples) == kept).all()


def test_another_encoder_does_not_meet_the_first_ones_vectors(tmp_path: Path) -> None:
    from isthmus.model.backbones.tiny import tiny_vit_model
    from isthmus.model.backbones.vision import load_vision

    examples = [Example(p) for p in paint(tmp_path / "images", 2)]
    ImageEmbedder(im.load_vision("tiny-vit"), tmp_path)(examples)
    other = ImageEmbedder(load_vision(tiny_vit_model(seed=1)), tmp_path)
    found = other(examples)
    assert other.encoded == 2
    assert (ImageEmbedder(load_vision(tiny_vit_model(seed=1)))(examples) == found).all()


def test_features_that_training_has_cached_are_pooled(tmp_path: Path) -> None:
    encoder = im.load_vision("tiny-vit")
    paths = paint(tmp_path / "images", 4)
    FeatureCache(tmp_path / "cache", PatchFeatures(encoder)).fill(
        [FileRef(p) for p in paths[:3]], quiet=True
    )
    seen = Counting(encoder)
    found = ImageEmbedder(encoder, tmp_path / "cache")([Example(p) for p in paths])
    assert seen.images == 1
    np.testing.assert_allclose(
        found, ImageEmbedder(encoder)([Example(p) for p in paths]), atol=2e-3
    )


def test_only_patches_are_averaged_not_what_is_seen_of_regions(tmp_path: Path) -> None:
    plain, encoder = (im.load_vision("tiny-cnn", regions=told) for told in (False, True))
    paths = paint(tmp_path / "images", 4)
    examples = [Example(p) for p in paths]
    expected = ImageEmbedder(plain)(examples)
    np.testing.assert_allclose(ImageEmbedder(encoder)(examples), expected, atol=2e-3)
    FeatureCache(tmp_path / "cache", PatchFeatures(encoder)).fill(
        [FileRef(p) for p in paths], quiet=True
    )
    cached = ImageEmbedder(encoder, tmp_path / "cache")
    np.testing.assert_allclose(cached(examples), expected, atol=2e-3)
    assert cached.encoded == 0


def test_examples_without_images_and_unknown_poolings_are_refused() -> None:
    encoder = im.load_vision("tiny-vit")
    with pytest.raises(InputError, match=r'example 0 \("Why\?"\) has no image'):
        ImageEmbedder(encoder)([Example((), "Why?")])
    with pytest.raises(ConfigError, match='did you mean "mean"'):
        ImageEmbedder(encoder, pooling="mena")  # type: ignore[arg-type]


# --- Texts ---------------------------------------------------------------------------------------

QUESTIONS = [
    "How many red cars?",
    "How many cars, how many?",
    "Why is it red?",
    "고양이는 몇 마리?",
]


def by_hand(corpus: list[str], text: str) -> dict[tuple[str, str], float]:
    """TF-IDF by the formula in the docstring, as one dictionary."""
    found: dict[tuple[str, str], float] = {}
    for name, grams in (("word", words), ("character", characters)):
        weights = {}
        for gram, count in Counter(grams(text)).items():
            having = sum(gram in set(grams(other)) for other in corpus)
            if having:
                idf = math.log((1 + len(corpus)) / (1 + having)) + 1
                weights[gram] = (1 + math.log(count)) * idf
        norm = math.sqrt(sum(w * w for w in weights.values()))
        found |= {(name, gram): w / norm / math.sqrt(2) for gram, w in weights.items()}
    return found


def test_tf_idf_equals_its_formula() -> None:
    vectors = TfIdf(QUESTIONS)(QUESTIONS)
    weights = [by_hand(QUESTIONS, q) for q in QUESTIONS]
    expected = [[sum(a.get(g, 0) * w for g, w in b.items()) for b in weights] for a in weights]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-5)


def test_folded_tf_idf_is_nearly_the_whole_one() -> None:
    letters = np.array(list("abcdefgh"))
    random = np.random.default_rng(0)
    corpus = [" ".join("".join(w) for w in random.choice(letters, (6, 4))) for _ in range(100)]
    whole, folded = TfIdf(corpus, width=10**6)(corpus), TfIdf(corpus, width=500)(corpus)
    assert folded.shape[1] == 1000 < whole.shape[1]
    error = whole @ whole.T - folded @ folded.T
    assert abs(error.mean()) < 0.01
    assert error.std() < 0.06


def test_a_text_of_unknown_n_grams_is_zero() -> None:
    assert not TfIdf(QUESTIONS)(["xyz", ""]).any()


def test_a_mean_hidden_state_is_that_of_the_text_alone() -> None:
    language = im.load_language("tiny-lm")
    texts = ["a", "a longer text than that", "", "another"]
    found = MeanHiddenState(language, batch_size=3)(texts)
    for row, text in zip(found, texts, strict=True):
        if text:
            ids = torch.tensor([language.start_ids + language.encode(text)])
            with torch.no_grad():
                hidden = language.model(ids, output_hidden_states=True).hidden_states[-1]
            expected = hidden[0, len(language.start_ids) :].mean(dim=0)
            np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("wrong", [[1, 2, 3], [[1], [2]], [[float("nan")]]])
def test_an_embedder_that_gives_no_vector_for_each_is_an_error(wrong: list[object]) -> None:
    shape = np.shape(wrong)
    with pytest.raises(InputError, match=f"shape {re.escape(str(shape))} for 1 examples"):
        embedded(on_questions(lambda texts: wrong), [Example((), "Why?")])


def test_unit_rows_keeps_zeros() -> None:
    assert unit_rows([[0.0, 2.0], [0.0, 0.0]]).tolist() == [[0, 1], [0, 0]]
