"""`explain`: the answer to a question about images, and what the model looked at for each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from isthmus.errors import ConfigError, PromptError
from isthmus.explaining.covering import blanked, covered, greys
from isthmus.explaining.explanation import (
    AnswerToken,
    Blanked,
    BlockAttention,
    Explanation,
    ShownImage,
    TextAttention,
)
from isthmus.explaining.inputs import Inputs, logits_of, of_answer
from isthmus.explaining.page import write_page
from isthmus.explaining.recording import Recorded, Recorder, eager_attention
from isthmus.explaining.shown import shown_images
from isthmus.explaining.words import depths_for, near_words, tail_is_whole
from isthmus.generation.encode import PromptEncoder
from isthmus.generation.engine import Engine
from isthmus.generation.requests import GenerationRequest, TokenLogprob
from isthmus.generation.text_stream import BROKEN
from isthmus.model.backbones.int8_layers import exactly
from isthmus.model.media.base import Attachment, medium_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole
from isthmus.prompts.prompt import Prompt
from isthmus.reasoning.inference import question_of
from isthmus.reasoning.question import STOPS

MOST_SIDE = 16
"""Regions in a row: beyond it one shows too little to matter."""


def explain(
    model: VisionLanguageModel | Engine,
    images: Any,
    question: str = "",
    *,
    heads: bool = False,
    side: int = 4,
    words: int = 5,
    max_new_tokens: int = 32,
    stop: Sequence[str] = STOPS,
    out: str | Path | None = None,
) -> Explanation:
    """Answers a question about images, and says what the model looked at for each token.

    The answer is the one that `ask` gives. What is shown of it is computed in one further pass over
    the prompt and the answer, with the weights themselves where a CPU computes in int8. The
    attention of a token is that of the position it was read off, the one before it. For what
    attention does not say see docs/explain.md.

    While it runs, the language model's attention is set to one that tells its weights: nobody else
    should use the same language model in another thread. Afterwards all is as it was.

    Args:
        model: The model, or an engine around it.
        images: An image or a sequence of them, at least one, as for `ask`.
        question: The question; empty for a caption.
        heads: Whether the heads' weights are kept beside their means.
        side: Regions in a row and in a column that are covered one at a time (Zeiler and Fergus
            2014, arXiv 1311.2901, section 4.2); 0 for none.
        words: Behind how many layers visual tokens are shown as words.
        max_new_tokens: Most tokens of the answer.
        stop: Strings that end the answer.
        out: Where to write the explanation as a page; None for nowhere.

    Raises:
        ConfigError: If an option is out of range.
        ImageError: If an image cannot be read.
        OutputError: If the page cannot be written.
        PromptError: If there is no image, or the text contains a tag.

    Example:
        >>> import isthmus as im
        >>> from PIL import Image
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> found = im.explain(model, Image.new("RGB", (32, 32)), "What is it?", max_new_tokens=2)
        >>> found.map(0).shape, found.covered[0].map().shape
        (torch.Size([4, 4]), torch.Size([4, 4]))
    """
    check_options(side, words, max_new_tokens)
    engine = model if isinstance(model, Engine) else Engine(model)
    refuse_whole(engine.model, "explain")
    model = cast(VisionLanguageModel, engine.model)
    prompt = question_of(model, images, question, stop=stop).prompt()
    if not prompt.images:
        raise PromptError("got no image to explain the answer by: expected at least one")
    made = _answered(engine, prompt, max_new_tokens, stop)
    encoded, contents = PromptEncoder(model)(prompt)
    sources = [contents[key] for key in encoded.images]
    opened = [medium_of(model, source).open(model, source) for source in sources]
    inputs = Inputs(encoded.ids, made.ids, tuple(encoded.layouts))
    with torch.no_grad(), exactly():
        found, change = _explained(model, inputs, opened, heads=heads, side=side, words=words)
    if change is not None:
        by = greys(model, opened)
        blank = tuple(by.get(number, pixels) for number, pixels in enumerate(opened))
        text = _answered(engine, replace(prompt, images=blank), max_new_tokens, stop).text
        found = replace(found, blanked=Blanked(text, change))
    texts = [replace(t, text=own) for t, own in zip(found.tokens, made.texts, strict=True)]
    found = replace(
        found, question=question, answer=made.text, prompt=prompt.text, tokens=tuple(texts)
    )
    if out is not None:
        write_page(found, Path(out))
    return found


def check_options(side: int, words: int, max_new_tokens: int) -> None:
    """Says what is wrong with options of `explain`, before a model is loaded.

    Raises:
        ConfigError: If one is out of range.
    """
    for name, value, least, most in (
        ("side", side, 0, MOST_SIDE),
        ("words", words, 0, None),
        ("max_new_tokens", max_new_tokens, 1, None),
    ):
        if value < least or (most is not None and value > most):
            raise ConfigError(
                f"{name} is {value}: expected {least} or more"
                if most is None
                else f"{name} is {value}: expected {least} to {most}"
            )


def _told(token: TokenLogprob) -> str:
    """A token's text; its bytes where it is only a part of a character."""
    if BROKEN in token.text:
        return "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.text


@dataclass(frozen=True)
class _Made:
    """An answer: its text, and its tokens with their texts."""

    text: str
    ids: tuple[int, ...]
    texts: tuple[str, ...]


def _answered(engine: Engine, prompt: Prompt, most: int, stop: Sequence[str]) -> _Made:
    """The answer; of an empty one, what it ended with."""
    request = GenerationRequest(
        prompt=prompt, max_new_tokens=most, stop=tuple(stop), logprobs=0, seed=0
    )
    [made] = engine.run([request])
    model = cast(VisionLanguageModel, engine.model)
    ends = {model.special_tokens.end_id, *model.language.end_ids()}
    told = [token for token in made.tokens if token.token_id not in ends]
    if told:
        return _Made(made.text, tuple(t.token_id for t in told), tuple(map(_told, told)))
    first = made.ids[0]
    text = model.special_tokens.decode([first])
    return _Made(made.text, (first,), (text or "(end)",))


def _explained(
    model: VisionLanguageModel,
    inputs: Inputs,
    opened: Sequence[Attachment],
    *,
    heads: bool,
    side: int,
    words: int,
) -> tuple[Explanation, Tensor | None]:
    """The explanation without its texts, and what becomes of the answer if its images are grey."""
    shown, visual = shown_images(model, inputs, opened)
    recorded, logits = _recorded(model, inputs, visual, shown, words)
    logprobs, _ = of_answer(logits, inputs.answer)
    near = near_words(model.language, recorded, visual, model.fusion.in_text) if words else None
    found = Explanation(
        question="",
        answer="",
        prompt="",
        tokens=tuple(
            AnswerToken(token, "", logprob)
            for token, logprob in zip(inputs.answer, logprobs[0].tolist(), strict=True)
        ),
        images=shown,
        text=_text(recorded, heads),
        blocks=_blocks(model, recorded, [len(own) for own in visual], heads),
        words=tuple(near or [None] * len(visual)),
        covered=covered(model, inputs, opened, visual, side),
        blanked=None,
        notes=tuple(_notes(model, recorded, shown, bool(words))),
    )
    return found, blanked(model, inputs, opened, visual)


def _recorded(
    model: VisionLanguageModel,
    inputs: Inputs,
    visual: Sequence[Tensor],
    shown: Sequence[ShownImage],
    words: int,
) -> tuple[Recorded, Tensor]:
    """What is computed on the way to the answer, and the logits (1, T, V) of its tokens."""
    language = model.language
    places = [place for image in shown for place in image.text]
    depths = depths_for(len(language.layers), words) if words and places else []
    asked: tuple[dict[str, Any], ...] = ({}, {"output_attentions": True})
    for more in asked:  # older families tell their weights only if they are asked
        recorder = Recorder(language, model.fusion, inputs.queries, places, depths)
        with eager_attention(language.model), language.hooked(recorder.hooks):
            logits = logits_of(model, inputs, [visual], **more)
        if recorder.found.attention:
            break
    return recorder.found, logits


def _text(recorded: Recorded, heads: bool) -> TextAttention | None:
    layers = tuple(sorted(recorded.attention))
    if not layers:
        return None
    # families may have layers that differ in their number of heads
    means = torch.stack([recorded.attention[number].mean(dim=1) for number in layers], dim=1)
    alike = len({recorded.attention[number].shape[1] for number in layers}) == 1
    each = None
    if heads and alike:
        each = torch.stack([recorded.attention[number] for number in layers], dim=1)
    return TextAttention(layers, means, each)


def _blocks(
    model: VisionLanguageModel, recorded: Recorded, counts: Sequence[int], heads: bool
) -> BlockAttention | None:
    layers = tuple(sorted(recorded.blocks))
    if not layers:
        return None
    every = torch.stack([recorded.blocks[number] for number in layers], dim=1)  # (T, K, H, P, M)
    by_image = tuple(every[..., image, :count] for image, count in enumerate(counts))
    gates = model.fusion.gates()
    return BlockAttention(
        layers,
        tuple(weights.mean(dim=2) for weights in by_image),
        by_image if heads else None,
        tuple(
            {kind: float(gate.tanh()) for kind, gate in gates.get(str(number), {}).items()}
            for number in layers
        ),
    )


def _notes(
    model: VisionLanguageModel, recorded: Recorded, shown: Sequence[ShownImage], words: bool
) -> Iterator[str]:
    """What could not be shown."""
    layers, told = len(model.language.layers), len(recorded.attention)
    if told < layers:
        yield (
            f"{layers - told} of {layers} layers of the language model tell no attention weights: "
            "they have another kind of attention, or one that keeps them to itself."
        )
    if len(recorded.blocks) < len(model.fusion.blocks):
        yield (
            f"{len(model.fusion.blocks) - len(recorded.blocks)} blocks of the fusion tell no "
            "weights: they have no method `weights`."
        )
    if words and model.fusion.in_text and not tail_is_whole(recorded):
        yield (
            "Visual tokens are shown as words at the input alone: between its last layer and its "
            "head the language model does more than its modules say."
        )
    for image in shown:
        if image.picture is None:
            yield f"{image.name} is not an image with known preprocessing: nothing was covered."
        elif image.shares is None or image.grid is None:
            yield (
                f"The visual tokens of {image.name} are not parts of it, so that attention to them "
                "is shown as bars, and where it matters by what is covered."
            )
