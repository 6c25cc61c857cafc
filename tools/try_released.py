"""Compares released models, taken apart, with Transformers' own class on their real weights.

    python tools/try_released.py hf:llava-hf/llava-1.5-7b-hf ... [--tokens 16]

The test suite does this on tiny random weights. Released ones are too large for it, and are fetched
from the hub here, or read from a folder. Of each model two copies are held in float32 on the CPU: a
model of seven billion parameters takes 56 GB. Three prompts are compared, with none, one and two
images: token ids and pixels must be equal, logits within 1e-4 of the largest one, and greedy
tokens equal. What was compared is printed; the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import isthmus as im

EXAMPLES = Path(__file__).parent.parent / "examples"
BOUND = 1e-4


def conversation(images: int) -> list[dict[str, Any]]:
    """One question about so many images."""
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What do you see?"}]}]


def apart(opened: Any, theirs: torch.Tensor) -> float:
    """How far pixels differ at most, tile by tile where images are cut; infinity if in number."""
    own = [getattr(one, "values", one) for one in opened]
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
    place = name.removeprefix("hf:")
    processor = AutoProcessor.from_pretrained(place)
    theirs = AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32).eval()
    pictures = [im.open_image(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))[:2]]
    found = []
    for count in range(3):
        shown = pictures[:count]
        text = processor.apply_chat_template(conversation(count), add_generation_prompt=True)
        inputs = processor(images=shown or None, text=text, return_tensors="pt")
        written = text.replace(getattr(processor, "image_token", "<image>"), "<image>")
        batch = ours.prepare([written], [shown])
        about = f"{count} images"
        same = torch.equal(batch.input_ids, inputs["input_ids"])
        found.append((about, f"{batch.input_ids.shape[1]} token ids", same))
        if not same:
            continue
        if batch.pixels is not None:
            away = apart(batch.pixels, inputs["pixel_values"])
            found.append((about, f"pixels differ by {away:.2g}", away == 0))
        expected = theirs(**inputs).logits
        away = float((ours(batch).logits - expected).abs().max() / expected.abs().max())
        found.append((about, f"logits differ by {away:.2g} of the largest", away <= BOUND))
        ids = theirs.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        said = ids[0, inputs["input_ids"].shape[1] :].tolist()
        prompt = im.Prompt(written, tuple(shown))
        own = im.Engine(ours).generate([prompt], max_new_tokens=tokens)[0].completions[0]
        told = f"greedy tokens, {own.text!r}"
        found.append((about, told, list(own.ids) == said))
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
            rows = compared(name, options.tokens)
        except im.IsthmusError as error:
            rows = [("", str(error), False)]
        for about, told, right in rows:
            print(f"{name}: {about}: {told}: {'equal' if right else 'DIFFERENT'}")
            wrong += not right
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
