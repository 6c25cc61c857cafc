"""What an explanation holds. All tensors are float32 on the CPU.

Letters: T tokens of the answer, K layers (or gated blocks), H heads, L positions of prompt and
answer, M visual tokens and N patches of an image, R regions that are covered one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from isthmus.errors import InputError


@dataclass(frozen=True)
class AnswerToken:
    """A token of the answer.

    Attributes:
        id: Its id.
        text: Its text.
        logprob: Its log-probability, behind the prompt and the tokens before it.
    """

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class ShownImage:
    """An image of the prompt, as the model sees it.

    Attributes:
        name: What it is called: "image 1".
        picture: After preprocessing, so that maps lie on it; None for what is no image.
        labels: (M,) what each visual token is.
        grid: (rows, columns) of the patches; None where they are no grid.
        shares: (M, N) how much each visual token has from each patch; None where visual tokens are
            no parts of the image. Rows sum to 1, or less where something is of a class token.
        cells: (rows, columns) of the visual tokens themselves where they lie on a grid, else None.
        text: What stands in the prompt for it: the positions of its visual tokens among those of
            the prompt, empty where they do not stand in the text.
    """

    name: str
    picture: Image.Image | None
    labels: tuple[str, ...]
    grid: tuple[int, int] | None
    shares: Tensor | None
    cells: tuple[int, int] | None
    text: tuple[int, ...]

    def on_grid(self, weights: Tensor) -> Tensor | None:
        """Weights (..., M) of visual tokens as maps (..., rows, columns).

        Their sum is the same but for what is of class tokens. None where visual tokens are no parts
        of the image, or patches no grid.
        """
        if self.shares is None or self.grid is None:
            return None
        return (weights @ self.shares).unflatten(-1, self.grid)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class TextAttention:
    """The decoder's self-attention, from where each token of the answer was read off.

    Attributes:
        layers: (K,) numbers of the layers that tell their weights.
        weights: (T, K, L) means of the heads; each row sums to 1.
        heads: (T, K, H, L) the heads by themselves, if they were asked for.
    """

    layers: tuple[int, ...]
    weights: Tensor
    heads: Tensor | None = None


@dataclass(frozen=True)
class BlockAttention:
    """The cross-attention of gated blocks.

    Attributes:
        layers: (K,) numbers of the decoder layers that they stand before.
        weights: For each image (T, K, M), means of the heads. Over all images that the token sees
            they sum to 1, over the others to 0.
        heads: For each image (T, K, H, M), if they were asked for.
        gates: For each block, by kind ("attention", "ffw"), tanh of the gate.
    """

    layers: tuple[int, ...]
    weights: tuple[Tensor, ...]
    heads: tuple[Tensor, ...] | None
    gates: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class NearWords:
    """The words nearest to the visual tokens of an image, by layer.

    Attributes:
        layers: What is looked at: "input", "after 6 layers".
        words: For each of these and each visual token, the nearest words with how near they are:
            at the input the cosine of their embedding, later their probability under the head.
    """

    layers: tuple[str, ...]
    words: tuple[tuple[tuple[tuple[str, float], ...], ...], ...]


@dataclass(frozen=True)
class Covered:
    """What becomes of the answer while a part of an image is covered with grey.

    Attributes:
        change: (R, T) change of each token's log-probability, region by region, row by row.
        stays: (R,) whether every token of the answer is still the likeliest.
        side: Regions in a row and in a column.
    """

    change: Tensor
    stays: tuple[bool, ...]
    side: int

    def map(self, token: int | None = None) -> Tensor:
        """(side, side) the change of a token's log-probability, or of the whole answer's."""
        change = self.change.sum(dim=1) if token is None else self.change[:, token]
        return change.view(self.side, self.side)


@dataclass(frozen=True)
class Blanked:
    """What becomes of the answer without its images, all of them grey.

    Attributes:
        answer: What the model answers then.
        change: (T,) change of the log-probability of each token of the answer that it gave.
    """

    answer: str
    change: Tensor


@dataclass(frozen=True)
class Explanation:
    """What the model looked at for each token of an answer, and what the answer depended on.

    Attributes:
        question: The question.
        answer: The answer.
        prompt: The exact prompt.
        tokens: (T,) the answer's tokens.
        images: The prompt's images.
        text: The decoder's attention; None where no layer tells its weights.
        blocks: That of gated blocks; None where there are none.
        words: For each image the words nearest to its visual tokens; None where these are no
            vectors of the language model.
        covered: For each image; None for what is no image, or if it was not asked for.
        blanked: None if it was not asked for, or nothing in the prompt is an image.
        notes: What could not be shown, and why.
    """

    question: str
    answer: str
    prompt: str
    tokens: tuple[AnswerToken, ...]
    images: tuple[ShownImage, ...]
    text: TextAttention | None
    blocks: BlockAttention | None
    words: tuple[NearWords | None, ...]
    covered: tuple[Covered | None, ...]
    blanked: Blanked | None
    notes: tuple[str, ...] = ()

    def attention(self, image: int = 0, kind: str = "text") -> Tensor:
        """Attention (T, K, M) to the visual tokens of an image, by layer.

        Args:
            image: The number of the image.
            kind: "text" for the decoder's own attention, to the visual tokens in the text;
                "blocks" for that of gated blocks.

        Raises:
            InputError: If the model has none of the kind.
        """
        if kind == "blocks" and self.blocks is not None:
            return self.blocks.weights[image]
        if kind == "text" and self.text is not None and self.images[image].text:
            return self.text.weights[..., list(self.images[image].text)]
        raise InputError(
            f'got kind "{kind}": expected {" or ".join(self.kinds) or "nothing"}, which this model '
            "has"
        )

    def heads(self, image: int = 0, kind: str = "text") -> Tensor | None:
        """As `attention`, by head (T, K, H, M); None if the heads were not asked for."""
        if kind == "blocks":
            kept = None if self.blocks is None else self.blocks.heads
            return None if kept is None else kept[image]
        kept_text = None if self.text is None else self.text.heads
        return None if kept_text is None else kept_text[..., list(self.images[image].text)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of attention to images there are: "text", "blocks"."""
        found = []
        if self.text is not None and any(image.text for image in self.images):
            found.append("text")
        if self.blocks is not None:
            found.append("blocks")
        return tuple(found)

    def map(
        self, token: int, image: int = 0, *, layer: int | None = None, kind: str | None = None
    ) -> Tensor | None:
        """Where in an image the model looked for a token: (rows, columns).

        Args:
            token: The number of the token in the answer.
            image: The number of the image.
            layer: The number of a decoder layer; None for the mean of all.
            kind: As for `attention`; None for the first that the model has.

        Returns:
            Attention on patches, which sums to the attention to the image's visual tokens; None
            where these are no parts of the image.

        Raises:
            InputError: If the model has none of the kind, or no such layer.
        """
        kind = kind or (self.kinds[0] if self.kinds else "text")
        weights = self.attention(image, kind)[token]
        if layer is not None:
            source = self.blocks if kind == "blocks" else self.text
            assert source is not None
            if layer not in source.layers:
                raise InputError(f"got layer {layer}: expected one of {source.layers}")
            return self.images[image].on_grid(weights[source.layers.index(layer)])
        return self.images[image].on_grid(weights.mean(dim=0))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: the pictures left out, numbers with five digits."""
        return {
            "question": self.question,
            "answer": self.answer,
            "prompt": self.prompt,
            "tokens": [vars(token) for token in self.tokens],
            "images": [self._image(number) for number in range(len(self.images))],
            "layers": None if self.text is None else list(self.text.layers),
            "blocks": None
            if self.blocks is None
            else [
                {"layer": layer, "gates": gates}
                for layer, gates in zip(self.blocks.layers, self.blocks.gates, strict=True)
            ],
            "blanked": None
            if self.blanked is None
            else {"answer": self.blanked.answer, "change": _listed(self.blanked.change)},
            "notes": list(self.notes),
        }

    def _image(self, number: int) -> dict[str, Any]:
        """An image as JSON holds it."""
        image, near, covered = self.images[number], self.words[number], self.covered[number]
        there = [kind for kind in self.kinds if kind == "blocks" or image.text]
        heads = {kind: _listed(self.heads(number, kind)) for kind in there}
        return {
            "name": image.name,
            "labels": list(image.labels),
            "grid": image.grid,
            "positions": list(image.text),
            "attention": {kind: _listed(self.attention(number, kind)) for kind in there},
            "heads": {kind: values for kind, values in heads.items() if values is not None},
            "patch_shares": _listed(image.shares),
            "words": None if near is None else vars(near),
            "covered": None
            if covered is None
            else {
                "side": covered.side,
                "change": _listed(covered.change),
                "answer_stays": list(covered.stays),
            },
        }


def _listed(values: Tensor | None) -> Any:
    """Nested lists of numbers, rounded: more digits than five are noise."""
    return None if values is None else _rounded(values.to(torch.float64).tolist())


def _rounded(value: Any) -> Any:
    if isinstance(value, Sequence):
        return [_rounded(each) for each in value]
    return round(value, 5)
