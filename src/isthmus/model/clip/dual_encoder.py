"""A dual encoder: images and texts in one space, their similarity a score (CLIP, SigLIP).

Letters: B images, K texts, L tokens, D width of the common space.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.model import VisionConfig
from isthmus.errors import ConfigError, suggestion
from isthmus.media.image import Source, open_image
from isthmus.media.prefetch import prefetch
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.backbones.text import TextConfig, TextEncoder, check_lengths, load_text
from isthmus.model.backbones.vision import VisionEncoder, load_vision
from isthmus.model.clip.class_mixture import ClassMixture, ClassMixtureConfig
from isthmus.model.clip.joined import (
    Head,
    HeadConfig,
    JoinedImageTower,
    JoinedTextTower,
    Pooling,
    pooled_features,
)
from isthmus.model.clip.towers import ImageTower, TextTower, Tokens, checked_texts

Loss = Literal["softmax", "sigmoid"]
LOSSES = ("softmax", "sigmoid")
TOKENS_AT_ONCE = 8192
"""Tokens in one pass of the text tower: enough to keep a machine busy, little memory."""
DECODERS = 2
"""Threads that open images ahead of the image tower."""
_PROBE_TEXTS = ("a photo of a cat.", "An_ODD-one: 42, \u00e9t\u00e9!")


class DualEncoder(nn.Module):
    """Two towers, a temperature and, in the sigmoid family, a bias.

    The score of an image x and a text y is exp(logit_scale) x.y + logit_bias. The softmax family
    (CLIP, Radford et al. 2021, arXiv 2103.00020) compares an image's scores with each other and
    has no bias; the sigmoid family (SigLIP, Zhai et al. 2023, arXiv 2303.15343) judges each.

    Args:
        image: The image tower.
        text: The text tower.
        logit_scale: Logarithm of the factor on similarities; a parameter is shared, not copied.
        logit_bias: What is added to them; None for the softmax family.
        name: What it was loaded from.

    Attributes:
        logit_scale: That logarithm, a parameter.
        logit_bias: That bias, a parameter, or None.

    Example:
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=16)
        >>> model.encode_texts(["a cat", "a dog"]).shape
        torch.Size([2, 16])
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        *,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        name: str = "object",
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.logit_scale = _parameter(logit_scale)
        self.logit_bias = None if logit_bias is None else _parameter(logit_bias)
        self.name = name

    @classmethod
    def join(
        cls,
        vision: str | VisionConfig | VisionEncoder | nn.Module,
        text: str | TextConfig | TextEncoder,
        *,
        width: int = 384,
        pooling: Pooling = "mean",
        image_head: HeadConfig | None = None,
        text_head: HeadConfig | None = None,
        mixture: ClassMixtureConfig | None = None,
        loss: Loss = "softmax",
        lock_image: bool = True,
        lock_text: bool = True,
    ) -> DualEncoder:
        """Joins any vision encoder and any text encoder by two new heads.

        Args:
            vision: Anything that `load_vision` takes, or an encoder.
            text: Anything that `load_text` takes, or an encoder.
            width: Width D of the common space.
            pooling: How an image's features become one vector; see `pooled_features`.
            image_head: By default a linear map with a network of 1,024 hidden units beside it.
            text_head: By default a linear map.
            mixture: Gives the last of these numbers, as many as it is wide, to what the encoder's
                own classifier sees; None gives all of them to the head. Vectors are then wider than
                `width`, by the numbers of the head, which images have once more and texts have
                not. Its class vectors and a head of the right scale are to be filled in, as
                `recipes/tiny-clip/train_heads.py` does: training does neither.
            loss: "softmax" starts with a temperature of 0.07 (CLIP), "sigmoid" with a factor of
                10 and a bias of -10 (SigLIP, section 3.2).
            lock_image: Whether the vision encoder stays frozen (LiT).
            lock_text: Whether the text encoder stays frozen.

        Raises:
            ConfigError: If a name or option is unknown.

        Example:
            >>> DualEncoder.join("tiny-vit", "tiny-text", width=8, loss="sigmoid").logit_bias
            Parameter containing:
            tensor(-10., requires_grad=True)
        """
        if loss not in LOSSES:
            raise ConfigError(f'unknown loss "{loss}": {suggestion(loss, LOSSES)}')
        encoder, reader = load_vision(vision), load_text(text)
        device = next(encoder.parameters()).device
        probe = torch.zeros(1, 3, *encoder.image_size, device=device)
        with torch.no_grad():  # eagerly: a graph that is traced here would be dropped again
            in_width = pooled_features(encoder, probe, pooling, gradients=True).shape[1]
        image_width, mixed, parts = width, None, None
        if mixture is not None:
            image_width -= mixture.width
            if image_width < 1:
                raise ConfigError(
                    f"got a mixture of width {mixture.width} in a space of width {width}: expected "
                    "less, since the head's vector stands before it"
                )
            with torch.no_grad():
                both = pooled_features(encoder, probe, pooling, classes=True, gradients=True)
            mixed = ClassMixture(both.shape[1] - in_width, mixture)
            parts = (image_width, mixture.width)
        image = JoinedImageTower(
            encoder,
            Head(in_width, image_width, image_head or HeadConfig(hidden=1024)),
            pooling=pooling,
            locked=lock_image,
            mixture=mixed,
        )
        words = JoinedTextTower(
            reader,
            Head(reader.width, width, text_head or HeadConfig()),
            locked=lock_text,
            parts=parts,
        )
        sigmoid = loss == "sigmoid"
        made = cls(
            image,
            words,
            logit_scale=math.log(10) if sigmoid else math.log(1 / 0.07),
            logit_bias=-10.0 if sigmoid else None,
            name=f"{encoder.config.name}+{reader.config.name}",
        ).to(device)
        return made.eval()

    @property
    def loss(self) -> Loss:
        """The family: whether scores compete ("softmax") or stand alone ("sigmoid")."""
        return "softmax" if self.logit_bias is None else "sigmoid"

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.logit_scale.device

    # --- Images ---------------------------------------------------------------------------

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels (3, H, W), float32, of an image, as the family's own library makes them."""
        return self.image.preprocess(image)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D) of length 1 of pixels (B, 3, H, W); gradients flow where not locked."""
        weight = next(p for p in self.image.parameters() if p.is_floating_point())
        return F.normalize(self.image(pixels.to(self.device, weight.dtype)), dim=-1)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Source], *, batch_size: int = 32) -> Tensor:
        """Vectors (B, D) of length 1 of images, float32 on the CPU.

        Args:
            images: Anything that `open_image` takes.
            batch_size: Images in one pass; it does not change the vectors.

        Raises:
            ImageError: If one is no image.
        """
        ahead = 2 * max(batch_size, DECODERS)
        found: list[Tensor] = []
        with closing(prefetch(images, self._open, workers=DECODERS, ahead=ahead)) as opened:
            while batch := list(islice(opened, batch_size)):
                found.append(self.encode_pixels(torch.stack(batch)).float().cpu())
        return torch.cat(found) if found else torch.zeros(0, 0)

    def _open(self, image: Source) -> Tensor:
        return self.preprocess(open_image(image))

    # --- Texts ------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str], *, trim: bool = True) -> Tokens:
        """Tokens of texts; see `TextTower.tokenize`."""
        return self.text.tokenize(texts, trim=trim)

    def encode_tokens(self, tokens: Tokens) -> Tensor:
        """Vectors (K, D) of length 1 of tokens; gradients flow where not locked."""
        moved = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        return F.normalize(self.text(moved), dim=-1)

    def encode_texts(self, texts: Sequence[str], *, trim: bool = True) -> Tensor:
        """Vectors (K, D) of length 1 of texts, in passes of texts of like length.

        A text's vector depends neither on the texts beside it nor on how many there are.

        Args:
            texts: The texts.
            trim: Whether padding is left out where that changes no vector.

        Raises:
            PromptError: If a text has more tokens than the context.
        """
        return self.encode_rows(self.rows(texts), trim=trim)

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, neither padded nor cut.

        Raises:
            PromptError: If a text has more tokens than the context.
        """
        texts = checked_texts(texts)
        rows = self.text.token_ids(texts)
        check_lengths(texts, rows, self.text.context_length)
        return rows

    def encode_rows(self, rows: Sequence[Sequence[int]], *, trim: bool = True) -> Tensor:
        """As `encode_texts`, of token ids."""
        places, vectors = zip(*self.passes(rows, trim=trim), strict=True)
        order = torch.tensor([place for many in places for place in many], device=self.device)
        found = torch.cat(vectors)
        return torch.zeros_like(found).index_copy(0, order, found)

    def passes(
        self,
        rows: Sequence[Sequence[int]],
        encode: Callable[[Tokens], Tensor] | None = None,
        *,
        trim: bool = True,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Rows of token ids through the text tower, shortest first, a few thousand tokens a pass.

        Args:
            rows: The token ids.
            encode: From tokens on the model's device to vectors; None for `encode_tokens`.
            trim: Whether padding is left out where that changes no vector.

        Yields:
            Which rows, and their vectors (k, D) of length 1.
        """
        encode = encode or self.encode_tokens
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        trims = trim and not self.text.fixed_length
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order):  # sorted, so the last row of a pass is its longest
                length = len(rows[order[stop]]) if trims else self.text.context_length
                if (stop + 1 - start) * length > TOKENS_AT_ONCE:
                    break
                stop += 1
            places = order[start:stop]
            tokens = self.text.pad([rows[i] for i in places], trim=trim)
            yield places, encode({name: t.to(self.device) for name, t in tokens.items()})
            start = stop

    # --- Scores -----------------------------------------------------------------------------

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scores (B, K) of vectors (B, D) and (K, D) of length 1."""
        scores = self.logit_scale.exp() * image_features @ text_features.T
        return scores if self.logit_bias is None else scores + self.logit_bias

    # --- Identity ---------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """What tells its vectors from another model's, 16 hexadecimal digits.

        It covers every weight of both towers, and what preprocessing and tokenization make of a
        few examples; not the temperature, which moves no vector.
        """
        digest = hashlib.sha256(self.text_fingerprint().encode())
        digest.update(self._image_told())
        return digest.hexdigest()[:16]

    def image_fingerprint(self) -> str:
        """As `fingerprint`, of the image tower alone."""
        return hashlib.sha256(self._image_told()).hexdigest()[:16]

    def _image_told(self) -> bytes:
        """Its weights, what its preprocessing makes of an image, and how classes are mixed."""
        noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
        pixels = self.preprocess(Image.fromarray(noise)).float().cpu().numpy()
        mixture = self.image.mixture if isinstance(self.image, JoinedImageTower) else None
        mixed = b"" if mixture is None else repr(mixture.config).encode()
        return fingerprint(self.image, exact=True).encode() + pixels.tobytes() + mixed

    def text_fingerprint(self) -> str:
        """As `fingerprint`, of the text tower alone."""
        tower = self.text
        told: list[object] = [
            tower.context_length,
            tower.fixed_length,
            tower.pads_left,
            tower.pad_id,
        ]
        told.append(tower.token_ids(list(_PROBE_TEXTS)))
        if isinstance(tower, JoinedTextTower) and tower.parts is not None:
            told.append(tower.parts)
        return hashlib.sha256(
            fingerprint(tower, exact=True).encode() + repr(told).encode()
        ).hexdigest()[:16]


def _parameter(value: Tensor | float) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(torch.as_tensor(value, dtype=torch.float32).detach().clone())
