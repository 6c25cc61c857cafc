"""Compares released models, taken apart, with the class that they are released for.

    python tools/try_released.py hf:llava-hf/llava-1.5-7b-hf ... [--tokens 16]

The test suite does this on tiny random weights. Released ones are too large for it, and are fetched
from the hub here, or read from a folder. Of each model two copies are held in float32 on the CPU: a
model of seven billion parameters takes 56 GB. Three prompts are compared, with none, one and two
images (BLIP-2 has one): token ids and pixels must be equal, logits within 1e-4 of the largest one,
and greedy tokens equal. What was compared is printed; the exit code is 1 if anything differs.

The class is Transformers'; of OpenFlamingo's checkpoints it is OpenFlamingo's own
(`pip install --no-deps open-flamingo==2.0.1`), whose prompts have one image and two.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

import isthmus as im
from isthmus.model.backbones.native import patches_of
from isthmus.model.backbones.pickled import read_pickled
from isthmus.model.join import reader_of
from isthmus.prompts.templates import template_named

EXAMPLES = Path(__file__).parent.parent / "examples"
BOUND = 1e-4
QUESTION = "What do you see?"


def conversation(images: int) -> list[dict[str, Any]]:
    """One question about so many images."""
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def prompt_of(processor: Any, images: int) -> str:
    """The question in the repository's own words."""
    if getattr(processor, "chat_template", None):
        return str(processor.apply_chat_template(conversation(images), add_generation_prompt=True))
    return f"Question: {QUESTION} Answer:"  # BLIP-2, whose processor puts an image before it


def as_processor(model: im.VisionLanguageModel, pixels: Any) -> torch.Tensor:
    """Opened images in the form in which the processor has them."""
    native = model.vision.shape.native
    if native is None:
        return torch.stack(list(pixels))
    told: Any = model.vision.model.config
    frames = int(told.temporal_patch_size)
    return torch.cat([patches_of(image[None], native, frames) for image in pixels])


def apart(model: im.VisionLanguageModel, opened: Any, theirs: torch.Tensor) -> float:
    """How far pixels differ at most, tile by tile where images are cut; infinity if in number."""
    if model.vision.shape.native is not None:
        return float((as_processor(model, opened) - theirs).abs().max())
    own = [one if isinstance(one, torch.Tensor) else one.values for one in opened]
    own = [tile for one in own for tile in (one if one.ndim == 4 else one[None])]
    theirs = theirs.flatten(0, -4)
    theirs = theirs[theirs.flatten(1).any(dim=1)]  # without the tiles that fill up a batch
    if len(own) != len(theirs):
        return float("inf")
    return float((torch.stack(own) - theirs).abs().max())


@torch.no_grad()
def compared(name: str, tokens: int) -> list[tuple[str, str, bool]]:
    """What was compared of a model, what came out, and whether it is as it should be."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    ours = im.load(name, device="cpu", dtype="float32")  # first: it says what is wrong
    template = template_named(ours.config.template, ours.language.tokenizer)
    place = name.removeprefix("hf:")
    processor = AutoProcessor.from_pretrained(place)
    theirs = AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32).eval()
    found = []
    for count in range(3) if getattr(processor, "chat_template", None) else (1,):
        shown = pictures(count)
        text = prompt_of(processor, count)
        inputs = processor(images=shown or None, text=text, return_tensors="pt")
        prompt = template([], im.Example(tuple(shown), QUESTION))
        batch = ours.prepare([prompt.spans], [shown])
        about = f"{count} images"
        same = torch.equal(batch.input_ids, inputs["input_ids"])
        found.append((about, f"{batch.input_ids.shape[1]} token ids", same))
        if not same:
            continue
        if batch.pixels is not None:
            away = apart(ours, batch.pixels, inputs["pixel_values"])
            found.append((about, f"pixels differ by {away:.2g}", away == 0))
        expected = theirs(**inputs).logits
        away = float((ours(batch).logits - expected).abs().max() / expected.abs().max())
        found.append((about, f"logits differ by {away:.2g} of the largest", away <= BOUND))
        ids = theirs.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        said = ids[0, inputs["input_ids"].shape[1] :].tolist()
        own = im.Engine(ours).generate([prompt], max_new_tokens=tokens)[0].completions[0]
        ends = ours.language.end_ids()
        told = f"greedy tokens, {own.text!r}"
        found.append((about, told, until(own.ids, ends) == until(said, ends)))
    return found


def pictures(count: int) -> list[Any]:
    """So many photographs."""
    paths = sorted(EXAMPLES.glob("*.jpg"))[:count]
    return [im.open_image(path).convert("RGB") for path in paths]


def until(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Token ids up to the end of the text."""
    return [i for i, seen in zip(ids, accumulate(i in ends for i in ids), strict=True) if not seen]


# --- OpenFlamingo ---------------------------------------------------------------------------------


class Seen(torch.nn.Module):
    """A vision encoder as OpenFlamingo calls it, which takes the second thing that comes out.

    open_clip's own output has gone through a norm since its version 2.23, which OpenFlamingo was
    not trained with.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def visual(self) -> Seen:
        """As in a CLIP of open_clip's."""
        return self

    def forward(self, pixels: torch.Tensor) -> tuple[None, torch.Tensor]:
        """Nothing, and the patches."""
        return None, self.encoder(pixels)


def open_flamingo_of(ours: Any, state: dict[str, torch.Tensor]) -> tuple[Any, list[str]]:
    """OpenFlamingo's own model of a checkpoint, and what of the checkpoint it has no place for."""
    from open_flamingo.src.flamingo import Flamingo
    from open_flamingo.src.flamingo_lm import FlamingoLMMixin
    from open_flamingo.src.utils import extend_instance

    language = copy.deepcopy(ours.language.model)
    words = len(ours.language.tokenizer)
    table = next(t for n, t in state.items() if n.endswith(TABLES))
    language.resize_token_embeddings(len(table), mean_resizing=False)
    extend_instance(language, FlamingoLMMixin)
    language.set_decoder_layers_attr_name(ours.language.layers_path)
    every, width = ours.config.fusion.every, ours.vision.shape.width
    model = Flamingo(Seen(ours.vision), language, words, words + 1, width, every)
    # GPT-NeoX called its head so then
    named = {n.replace("embed_out.", "lm_head."): t for n, t in state.items()}
    return model.eval(), list(model.load_state_dict(named, strict=False).unexpected_keys)


TABLES = ("wte.weight", "embed_in.weight", "embed_tokens.weight")


@torch.no_grad()
def compared_with_open_flamingo(name: str, tokens: int) -> list[tuple[str, str, bool]]:
    """As `compared`, with the package that wrote the checkpoint."""
    from isthmus.released.open_flamingo import checkpoint_of

    ours = im.load(name, device="cpu", dtype="float32")
    theirs, left = open_flamingo_of(ours, read_pickled(checkpoint_of(name)))
    found = [("the checkpoint", f"{len(left)} tensors are not OpenFlamingo's", not left)]
    special, words = ours.special_tokens, len(ours.language.tokenizer)
    template = template_named("openflamingo")
    shot, shown = (im.Example(picture, QUESTION, "A photograph.") for picture in pictures(2))
    for about, prompt in (
        ("1 images", template([], shown)),
        ("2 images", template([shot], shown)),
    ):
        batch = ours.prepare([prompt.spans], [list(prompt.images)])
        ids = batch.input_ids.clone()  # their tables have no padding before the two tokens
        ids[batch.input_ids == special.end_id] = words
        ids[batch.input_ids == special.image_id] = words + 1
        row = ids[0].tolist()
        mine = ours(batch).logits
        mine = torch.cat([mine[..., :words], mine[..., special.end_id, None]], dim=-1)
        pixels = torch.stack(list(batch.pixels))[None, :, None]
        theirs._encode_vision_x(pixels)

        def logits(row: list[int], model: Any = theirs) -> torch.Tensor:
            given = torch.tensor([row])
            model._condition_media_locations(given)
            out = model.lang_encoder(input_ids=given, attention_mask=torch.ones_like(given))
            return out.logits[..., : len(ours.language.tokenizer) + 1]

        expected = logits(row)
        away = float((mine - expected).abs().max() / expected.abs().max())
        found.append((about, f"logits differ by {away:.2g} of the largest", away <= BOUND))
        said: list[int] = []
        while len(said) < tokens and words not in said:
            said.append(int(logits([*row, *said])[0, -1].argmax()))
        own = im.Engine(ours).generate([prompt], max_new_tokens=tokens)[0].completions[0]
        told = f"greedy tokens, {own.text!r}"
        same = until(own.ids, [special.end_id]) == until(said, [words])
        found.append((about, told, same))
    return found


def main() -> int:
    """Compares each model that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", help='"hf:REPO" or "hf:FOLDER"')
    parser.add_argument("--tokens", type=int, default=16, help="of a text, at most")
    options = parser.parse_args()
    wrong = 0
    for name in options.names:
        try:
            by = compared if reader_of(name) is None else compared_with_open_flamingo
            rows = by(name, options.tokens)
        except (im.IsthmusError, ImportError) as error:
            rows = [("", str(error), False)]
        for about, told, right in rows:
            print(f"{name}: {about}: {told}: {'equal' if right else 'DIFFERENT'}")
            wrong += not right
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
