"""Examples as vectors: images by the model's own vision encoder, questions by a text encoder.

An `Embedder` is any function from examples to vectors (n, D). `ImageEmbedder` is one;
`on_questions` makes one of any text encoder: `SentenceTransformer(...).encode`, `TfIdf(corpus)`,
`MeanHiddenState(model.language)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.data.feature_store import FeatureStore
from isthmus.demonstrations.support import content_of, frames_of, open_frames
from isthmus.errors import ConfigError, ImageError, InputError, suggestion
from isthmus.media.prefetch import prefetch
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.batch import pad
from isthmus.model.features import cache_key
from isthmus.prompts.prompt import Example

Vectors = NDArray[np.float32]
TextEncoder = Callable[[Sequence[str]], Any]
"""Texts to vectors (n, D), as an array or anything that NumPy makes one of."""
Pooling = Literal["mean", "own"]


class Embedder(Protocol):
    """Anything that turns examples into vectors (n, D); their length is of no account."""

    def __call__(self, examples: Sequence[Example]) -> Vectors:
        """Vectors (n, D), a row for each example."""
        ...


def unit_rows(vectors: Any) -> Vectors:
    """Rows divided by their L2 norm; a row of zeros stays one.

    Example:
        >>> unit_rows([[3, 4], [0, 0]]).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    array = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(array, axis=-1, keepdims=True)
    return (array / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def embedded(embed: Embedder, examples: Sequence[Example]) -> Vectors:
    """Examples' vectors (n, D), of length 1.

    Raises:
        InputError: If the embedder does not give a finite vector for each.
    """
    vectors = np.asarray(embed(examples), np.float64)
    if vectors.ndim != 2 or len(vectors) != len(examples) or not np.isfinite(vectors).all():
        raise InputError(
            f"the embedder gave an array of shape {vectors.shape} for {len(examples)} examples: "
            "expected a vector of finite numbers for each"
        )
    return unit_rows(vectors)


def on_questions(encode: TextEncoder) -> Embedder:
    """An embedder of examples' questions from a text encoder.

    Example:
        >>> embed = on_questions(lambda texts: [[len(t)] for t in texts])
        >>> embed([Example((), "Why?")]).tolist()
        [[4.0]]
    """

    def embed(examples: Sequence[Example]) -> Vectors:
        return np.asarray(encode([example.question for example in examples]), np.float32)

    return embed


class ImageEmbedder:
    """Pooled features of an example's images under a frozen vision encoder.

    Each image is encoded once: vectors are found again by the content of the image's file,
    or of its pixels where it is a PIL image. With a folder they outlive the process, and
    whole features that `isthmus features` or a training run has put there are pooled instead of
    being computed again. Many queries are best embedded at once before they are asked for one
    by one: that encodes them in batches. Processes may share a folder; those that meet the same
    new image at the same time each encode it, and it is kept once.

    Args:
        encoder: The encoder, on any device; `model.vision`.
        folder: Where vectors are kept, or None to keep them in memory alone.
        pooling: "mean" of the patches, or the encoder's "own" pooled output: timm's features
            before the classifier, Transformers' `pooler_output`, open_clip's projection.
        batch_size: Images in one pass of the encoder.
        workers: Threads that open images ahead of the encoder.

    Attributes:
        encoded: Images that went through the encoder so far.

    Example:
        >>> from PIL import Image
        >>> import isthmus as im
        >>> embed = ImageEmbedder(im.load_vision("tiny-vit"))
        >>> embed([Example(Image.new("RGB", (8, 8)))] * 3).shape, embed.encoded
        ((3, 32), 1)
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        folder: str | Path | None = None,
        *,
        pooling: Pooling = "mean",
        batch_size: int = 16,
        workers: int = 2,
    ) -> None:
        if pooling not in ("mean", "own"):
            raise ConfigError(
                f'unknown pooling "{pooling}": {suggestion(pooling, ("mean", "own"))}'
            )
        if pooling == "own" and encoder.shape.native is not None:
            raise ConfigError(
                f"{encoder.config.name} reads images at their own resolution and has no pooled "
                'output: pass pooling="mean"'
            )
        self.encoder = encoder
        self.pooling = pooling
        self.batch_size = batch_size
        self.workers = workers
        self.encoded = 0
        self._kept: dict[str, Any] = {}
        self._store: FeatureStore | None = None
        self._whole: FeatureStore | None = None
        if folder is None:
            return
        key, shape = cache_key(encoder), encoder.shape
        width = shape.width if pooling == "mean" else self._own_width()
        self._store = FeatureStore(Path(folder) / f"pooled-{pooling}-{key}.f16", (1, width))
        if pooling == "mean" and not encoder.varies:
            whole = Path(folder) / f"features-{key}.f16"
            self._whole = FeatureStore(whole, (shape.tokens, shape.width))

    def __call__(self, examples: Sequence[Example]) -> Vectors:
        """Vectors (n, D), of length 1: the mean over an example's images and frames.

        Raises:
            InputError: If an example has no image.
            ImageError: If an image cannot be read.
        """
        wanted: dict[str, Any] = {}
        rows: list[list[str]] = []
        for number, example in enumerate(examples):
            frames = [frame for image in example.images for frame in frames_of(image)]
            if not frames:
                raise InputError(
                    f'example {number} ("{example.question[:60]}") has no image: choose by text'
                )
            rows.append([content_of(frame) for frame in frames])
            wanted |= zip(rows[-1], frames, strict=True)
        self._look_up(wanted)
        self._encode({key: frame for key, frame in wanted.items() if key not in self._kept})
        means = [np.mean([self._kept[key] for key in keys], axis=0) for keys in rows]
        return unit_rows(means) if means else np.zeros((0, 0), np.float32)

    def _look_up(self, keys: Iterable[str]) -> None:
        """Takes into memory what is on the disk."""
        whole = []
        for key in keys:
            if key in self._kept:
                continue
            if self._store is not None and key in self._store:
                self._kept[key] = unit_rows(self._store[key][0])
            elif self._whole is not None and key in self._whole:
                whole.append(key)
        if whole and self._whole is not None:
            patches = slice(self.encoder.shape.patches)
            pooled = [self._whole[key][patches].astype(np.float32).mean(axis=0) for key in whole]
            self._keep(whole, np.stack(pooled))

    def _keep(self, keys: Sequence[str], vectors: Any) -> None:
        # Rounded to half precision with or without a folder, so that both choose the same shots
        half = unit_rows(vectors).astype(np.float16)
        if self._store is not None:
            self._store.append(keys, half[:, None])
        self._kept |= zip(keys, unit_rows(half), strict=True)

    def _encode(self, missing: dict[str, Any]) -> None:
        ahead = 2 * max(self.batch_size, self.workers)
        with closing(
            prefetch(missing.items(), self._open, workers=self.workers, ahead=ahead)
        ) as opened:
            for batch in _batches(opened, self.batch_size):
                keys, pixels = zip(*batch, strict=True)
                vectors = self._pooled_each(pixels).float().cpu()
                self.encoded += len(keys)
                for key, sound in zip(keys, vectors.isfinite().all(dim=1).tolist(), strict=True):
                    if not sound:
                        raise ImageError(f"the features of {missing[key]} are not finite")
                self._keep(keys, vectors.numpy())

    def _open(self, item: tuple[str, Any]) -> tuple[str, Tensor]:
        key, image = item
        return key, self.encoder.preprocess(open_frames(image)[0])

    def _pooled_each(self, pixels: Sequence[Tensor]) -> Tensor:
        """Vectors (n, D) of pixels (3, H, W) each, those of one size in one pass."""
        sizes: dict[torch.Size, list[int]] = {}
        for number, own in enumerate(pixels):
            sizes.setdefault(own.shape, []).append(number)
        passes = [self._pooled(torch.stack([pixels[n] for n in own])) for own in sizes.values()]
        order = torch.tensor([n for own in sizes.values() for n in own])
        return torch.cat(passes)[order.argsort().to(passes[0].device)]

    @torch.no_grad()
    def _pooled(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D) of pixels (B, 3, H, W)."""
        parameter = next(self.encoder.parameters())
        pixels = pixels.to(parameter.device)
        if self.pooling == "mean":
            shape, features = self.encoder.shape, self.encoder(pixels)
            patches = features if shape.regions is None else features[:, : shape.patches]
            return patches.float().mean(dim=1)
        pixels, model = pixels.to(parameter.dtype), self.encoder.model
        found: Any
        if hasattr(model, "forward_head"):  # timm
            tokens: Any = model
            found = tokens.forward_head(tokens.forward_features(pixels), pre_logits=True)
        elif hasattr(model, "config"):  # Transformers
            found = getattr(model(pixel_values=pixels), "pooler_output", None)
        else:  # open_clip
            found = model(pixels)
            found = found[0] if isinstance(found, tuple) else found
        if found is None:
            raise ConfigError(
                f'{type(model).__name__} has no pooled output of its own: pass pooling="mean"'
            )
        pooled: Tensor = found.flatten(1)
        return pooled

    def _own_width(self) -> int:
        return self._pooled(torch.zeros(1, 3, *self.encoder.image_size)).shape[1]


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class MeanHiddenState:
    """A text encoder: the mean of a language model's last hidden states over a text's tokens.

    Args:
        language: The language model; `model.language`.
        batch_size: Texts in one pass.

    Example:
        >>> import isthmus as im
        >>> MeanHiddenState(im.load_language("tiny-lm"))(["a cat", "a dog"]).shape
        (2, 64)
    """

    def __init__(self, language: LanguageModel, batch_size: int = 16) -> None:
        self.language = language
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors (n, D)."""
        start = self.language.start_ids
        rows = [start + self.language.encode(text) or [0] for text in texts]
        vectors = np.zeros((len(rows), self.language.width), np.float32)
        device = self.language.input_embedding.weight.device
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for batch in _batches(iter(by_length), self.batch_size):
            ids, mask = (t.to(device) for t in pad([rows[i] for i in batch], 0, "right"))
            places = self.language.places(mask, None)
            output = self.language.model(
                input_ids=ids, output_hidden_states=True, use_cache=False, **places
            )
            counted = mask.clone()
            # What every text begins with says nothing about it
            counted[:, : len(start)] *= (mask.sum(1, keepdim=True) <= len(start)).long()
            hidden = output.hidden_states[-1].float() * counted[..., None]
            means = hidden.sum(1) / counted.sum(1, keepdim=True)
            vectors[batch] = means.cpu().numpy()
        return vectors
