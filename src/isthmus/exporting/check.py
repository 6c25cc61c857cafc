"""Whether a written model is the model: loaded again and compared, prompt by prompt.

Three prompts are compared, without an image, with one, and with a demonstration before it. Their
texts, token ids and pixels must be the same, and the logits of all their tokens in fp32.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from isthmus.errors import ExportError
from isthmus.exporting.jinja import messages_of
from isthmus.exporting.tokens import WrittenTokens
from isthmus.model.backbones.text import no_bar_for_files
from isthmus.model.batch import Batch
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named

TOLERANCE = 1e-4
"""Largest difference of two logits, where the largest logit is 1 or less; in proportion above."""
PIXELS = 0.1
"""Largest mean difference of two pixels, in standard deviations: two resamplers of one image."""
GONE = "nothing was kept"


@dataclass(frozen=True)
class Found:
    """What a comparison found.

    Attributes:
        logits: Largest difference of two logits.
        pixels: Largest difference of two values of a pixel.
    """

    logits: float
    pixels: float


def drawn(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture of gentle slopes and two shapes, as resamplers meet them.

    Args:
        size: (width, height).
        seed: Moves the shapes.

    Example:
        >>> drawn((40, 30), 1).size
        (40, 30)
    """
    width, height = size
    slope = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (slope, slope.rotate(180), Image.new("L", size, 60 * seed + 40)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 5, height // 6, width // 5 * (2 + seed), height // 2), fill="orange")
    draw.rectangle((width // 2, height // 2, width * 4 // 5, height * 9 // 10), fill="navy")
    return image


def prompts() -> list[tuple[list[Example], Example]]:
    """Demonstrations and queries with no image, one, and two."""
    first, second = drawn((640, 480), 1), drawn((240, 320), 2)
    return [
        ([], Example((), "What is 2 + 3?")),
        ([], Example(first, "What is in the picture?")),
        ([Example(second, "What is this?", "a blue square")], Example(first, "And this?")),
    ]


@torch.no_grad()
def compare(
    model: VisionLanguageModel,
    folder: Path,
    added: WrittenTokens,
    moved: Tensor,
    adapter: Path | None = None,
) -> Found:
    """Loads a written model with Transformers' classes, on the CPU in fp32, and compares.

    Args:
        model: The model that was written.
        folder: Where to.
        added: Its tokens.
        moved: (3, 1, 1) what the model's pixels are more than those of the written one.
        adapter: Where its LoRA was written, if not into the weights.

    Raises:
        ExportError: If Transformers cannot load it or anything differs; the message says by how
            much.
    """
    theirs, processor = _loaded(folder)
    ours = on_cpu(model)
    if adapter is not None:
        theirs = _adapted(theirs, adapter)
    logits = pixels = 0.0
    for number, (shots, query) in enumerate(prompts()):
        where = f"prompt {number + 1} of 3, with {number} images"
        batch, inputs = _same_inputs(ours, processor, shots, query, added, where)
        if batch.pixels is not None:
            own = torch.stack([p for p in batch.pixels if isinstance(p, Tensor)])
            told = inputs["pixel_values"]  # (P, 3, H, W), in Idefics3 (1, P, 3, H, W)
            shown = told.flatten(0, -4) + moved
            pixels = max(pixels, _pixel_difference(own, shown, where))
            # so that resamplers do not blur what is compared next
            inputs["pixel_values"] = (own - moved).view_as(told)
        expected = ours(batch).logits[0]
        got = theirs(**inputs).logits[0]
        logits = max(logits, _logit_difference(got, expected, ours, added, where))
    return Found(logits, pixels)


def on_cpu(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model in fp32 on the CPU: itself if it is there, otherwise a copy."""
    if all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters()):
        return model.eval()
    return copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()


def _loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        with no_bar_for_files(str(folder)):
            model, told = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds
        raise ExportError(
            f"Transformers cannot load what was written: {type(error).__name__}: {error}; {GONE}"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if wrong := sorted(map(str, told.get(kind) or ())):
            raise ExportError(
                f"Transformers loads what was written with {kind.replace('_', ' ')}: "
                f"{', '.join(wrong[:3])}; {GONE}"
            )
    return model.eval(), processor


def _adapted(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what PEFT calls in Transformers
            return PeftModel.from_pretrained(model, str(adapter)).eval()
    except Exception as error:  # of many kinds
        raise ExportError(
            f"PEFT cannot load what was written: {type(error).__name__}: {error}; {GONE}"
        ) from error


def _same_inputs(
    ours: VisionLanguageModel,
    processor: Any,
    shots: list[Example],
    query: Example,
    added: WrittenTokens,
    where: str,
) -> tuple[Batch, dict[str, Tensor]]:
    """A prompt as each of the two reads it, their texts and ids compared."""
    template = template_named(ours.config.template, ours.language.tokenizer)
    prompt = template(shots, query)
    messages = messages_of(shots, query)
    written = str(processor.apply_chat_template(messages, add_generation_prompt=True))
    start = processor.tokenizer.bos_token
    if start and written.startswith(start) and not prompt.text.startswith(start):
        written = written[len(start) :]  # which our tokenizer adds by itself
    if written != (expected_text := added.written(prompt.text)):
        raise ExportError(
            f"{where}: the chat template prints {written!r}, expected {expected_text!r}; {GONE}"
        )
    batch = ours.prepare([prompt.spans], [prompt.images])
    inputs = dict(
        processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )
    expected = added.translated(batch.input_ids, ours)
    if not torch.equal(inputs["input_ids"], expected):
        raise ExportError(
            f"{where}: the tokenizer makes the ids {_around(inputs['input_ids'], expected)} of the "
            f"text that we cut into {_around(expected, inputs['input_ids'])}: it reads the text "
            f"beside a special token or an answer in another way; {GONE}"
        )
    return batch, inputs


def _around(ids: Tensor, others: Tensor) -> list[int]:
    """The ids around the first difference to others."""
    pairs = zip(ids[0].tolist(), others[0].tolist(), strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(ids.shape[1], others.shape[1]))
    return list(ids[0, max(0, at - 2) : at + 3].tolist())


def _pixel_difference(got: Tensor, expected: Tensor, where: str) -> float:
    """The largest difference of two values; `got` is the model's own."""
    same = got.shape == expected.shape
    mean = float((got - expected).abs().mean()) if same else float("inf")
    if not mean <= PIXELS:
        raise ExportError(
            f"{where}: the image processor makes pixels {tuple(expected.shape)} that differ "
            f"from the model's {tuple(got.shape)} by {mean:.3g} on average, expected {PIXELS} at "
            f"most; {GONE}"
        )
    return float((got - expected).abs().max())


def _logit_difference(
    got: Tensor, expected: Tensor, ours: VisionLanguageModel, added: WrittenTokens, where: str
) -> float:
    """The largest difference over what both can say: the words, and the end of a chunk."""
    columns = list(_columns(expected, ours, added))
    mine, theirs = zip(*columns, strict=True)
    expected, got = expected[:, list(mine)], got[:, list(theirs)]
    difference = float((got - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ExportError(
            f"{where}: logits differ by {difference:.3g}, expected {TOLERANCE:g} at most: what was "
            f"written is not the model; {GONE}"
        )
    return difference


def _columns(
    logits: Tensor, ours: VisionLanguageModel, added: WrittenTokens
) -> Iterator[tuple[int, int]]:
    """Columns of our logits with theirs."""
    taken = (added.image_id, added.end_id, *added.renamed.values())
    yield from ((i, i) for i in range(ours.language.vocab_rows) if i not in taken)
    if logits.shape[-1] > ours.special_tokens.end_id:
        yield ours.special_tokens.end_id, added.end_id
