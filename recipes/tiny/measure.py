"""Measures a model on the images that were never trained on.

    python recipes/tiny/measure.py --model tiny --data FOLDER [--out results.json] [--limit N]

Open-ended naming: the model is asked "What is in the picture?" and answers in free text, greedily.
An answer is right if, in lower case and without article and full stop, it equals the name or one
of the listed synonyms (`words.py` has the rule). `anywhere` also takes an answer that contains
one as whole words. easy-VQA: the answer must equal the answer. Intervals are Wilson's at 95%.
The baseline always gives the test's most frequent answer.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

import isthmus as im
from isthmus.data.features import FeatureCache
from isthmus.data.records import frames
from isthmus.evaluation.metrics import wilson
from isthmus.generation.decode import text_of
from isthmus.model.batch import Batch, pad
from isthmus.model.features import PatchFeatures
from isthmus.prompts.templates import template_named
from isthmus.reasoning.question import STOPS

QUESTION = "What is in the picture?"
TESTS = {
    "twemoji-861": "test-twemoji",
    "fxemoji": "test-fxemoji",
    "tuxpaint-photos": "test-tuxpaint-photos",
    "gcompris-photos": "test-gcompris-photos",
    "grocery-coarse": "test-grocery-val",
    "easy-vqa": "test-easyvqa",
}
# Training images, to choose between ways without a look at a test
DEVELOPMENT = {
    "dev-emoji": "train-emoji",
    "dev-grocery": "train-grocery",
    "dev-easyvqa": "train-easyvqa",
}
BATCH = 32


def normalised(text: str) -> str:
    """Lower case, no article in front, no punctuation."""
    words = re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split()
    return " ".join(words[1:] if words and words[0] in ("a", "an", "the") else words)


def records_of(test: str, root: Path) -> list[im.Record]:
    """The records of a test, with the naming question where they have none."""
    records = im.read_records(root / "records" / f"{(TESTS | DEVELOPMENT)[test]}.jsonl", root)
    if test == "twemoji-861":
        records = [r for r in records if r.extra["object_like"]]
    return records


def answers(
    model: im.VisionLanguageModel, records: Sequence[im.Record], cache: FeatureCache, label: str
) -> Iterator[str]:
    """Greedy answers in the order of the records."""
    template = template_named(model.config.template)
    steps = range(0, len(records), BATCH)
    for i in track(steps, description=label):
        chunk = records[i : i + BATCH]
        shown = [frames(r.images[0])[0] for r in chunk]
        prompts = [
            template([], im.Example(p, r.question or QUESTION)).text
            for p, r in zip(shown, chunk, strict=True)
        ]
        ids, mask = pad([model.encode_text(p, 1) for p in prompts], model.pad_id, "left")
        batch = Batch(input_ids=ids, attention_mask=mask, features=cache.get(shown))
        rows = im.generate(model, batch, max_new_tokens=12, stop=STOPS)
        yield from (text_of(model, row, STOPS) for row in rows)


def measure(
    model: im.VisionLanguageModel, test: str, root: Path, cache: FeatureCache, limit: int | None
) -> dict[str, Any]:
    """Accuracy of a model on one test, with its interval and baseline."""
    records = records_of(test, root)
    if limit is not None:
        records = records[:: max(1, len(records) // limit)][:limit]
    cache.fill([frames(r.images[0])[0] for r in records])
    right = anywhere = empty = 0
    examples = []
    for record, answer in zip(records, answers(model, records, cache, test), strict=True):
        got, names = normalised(answer), {normalised(n) for n in record.names}
        right += got in names
        anywhere += any(re.search(rf"\b{re.escape(n)}\b", got) for n in names)
        empty += not got
        image = Path(str(record.images[0])).name
        examples.append({"image": image, "answer": answer, "name": record.answer})
    n = len(records)
    majority = Counter(r.answer for r in records).most_common(1)[0]
    low, high = wilson(right, n)
    return {
        "test": test,
        "n": n,
        "accuracy": right / n,
        "interval": [low, high],
        "anywhere": anywhere / n,
        "empty": empty / n,
        "baseline": {"answer": majority[0], "accuracy": majority[1] / n},
        "examples": examples,
    }


def main() -> None:
    """Prints a table, and writes every answer to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tests", nargs="*", default=list(TESTS), choices=[*TESTS, *DEVELOPMENT])
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    model = im.load(options.model)
    cache = FeatureCache(options.data / "features", PatchFeatures(model.vision))
    results = []
    for test in options.tests:
        row = measure(model, test, options.data, cache, options.limit)
        results.append(row)
        low, high = row["interval"]
        print(
            f"{test:<18}n={row['n']:<6}exact {row['accuracy']:6.1%} [{low:.1%}, {high:.1%}]  "
            f"anywhere {row['anywhere']:6.1%}  empty {row['empty']:.1%}  "
            f"majority {row['baseline']['accuracy']:.1%}",
            flush=True,
        )
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
