"""What the held-out questions about scenes are answered with, without looking at a scene.

    python recipes/tiny/scene_baselines.py --data FOLDER

prints for each kind of question chance, the most frequent answer, and the answer that is the most
frequent one to such a question in the training records.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scene_questions
import steps
from drawings import records_of
from scenes import PLACES


def asked_of(question: str) -> str:
    """A question without the names in it: its first wording, and where it asks."""
    blanks = {"region": "|".join(english for english, _ in steps.REGIONS.values())}
    blanks["way"] = "|".join([*scene_questions.SAID.values(), *scene_questions.WAYS])
    blanks["at"] = "|".join(f"{scene_questions.at_word(p)}{p}" for p in PLACES)
    for wordings in [*scene_questions.WORDINGS.values(), *steps.WORDINGS.values()]:
        for wording in wordings:
            pattern = re.escape(wording)
            for blank in ("region", "way", "at", "one", "plural", "name", "other"):
                own = f"(?P<{blank}>{blanks[blank]})" if blank in blanks else ".+"
                pattern = pattern.replace(re.escape(f"{{{blank}}}"), own)
            if match := re.fullmatch(pattern, question):
                where = " ".join(match.groupdict().values())
                return f"{wordings[0]} {where.replace('to the ', '')}"
    return question


def baselines(root: Path, name: str) -> Iterator[str]:
    """Lines with the baselines of a held-out file, for each kind of question and in all."""
    rows = records_of(root, name)
    rows = [row for row in rows if row["split"] == "test"]
    train = f"train-{name.partition('-')[2]}"
    seen: dict[str, Counter[str]] = {}
    for row in records_of(root, train):
        if "question" in row:
            answers = seen.setdefault(asked_of(row["question"]), Counter())
            answers[row.get("result", row["answer"])] += 1
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["source"], []).append(row)
    total = Counter[str]()
    for kind, own in kinds.items():
        common = Counter(row["answer"] for row in own)
        guesses = [seen.get(asked_of(row["question"]), Counter({"": 1})) for row in own]
        guessed = sum(
            g.most_common(1)[0][0] == row["answer"] for g, row in zip(guesses, own, strict=True)
        )
        chance = len(own) / len(common)
        counts = {"chance": chance, "majority": common.most_common(1)[0][1], "question": guessed}
        total.update({"n": len(own)} | counts)
        yield _line(name, kind, len(own), counts)
    whole = Counter(row["answer"] for row in rows).most_common(1)[0][1]
    yield _line(name, "all", total["n"], dict(total) | {"majority": whole})


def _line(name: str, kind: str, n: int, counts: dict[str, Any]) -> str:
    shares = "".join(f"{counts[k] / n:>11.1%}" for k in ("chance", "majority", "question"))
    return f"{name:<14}{kind:<10}{n:>5}{shares}"


def main() -> None:
    """Prints the baselines of the held-out files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    root: Path = parser.parse_args().data
    print(f"{'file':<14}{'kind':<10}{'n':>5}{'chance':>11}{'majority':>11}{'question':>11}")
    for name in ("dev-scenes", "dev-steps", "test-scenes", "test-steps"):
        for line in baselines(root, name):
            print(line)


if __name__ == "__main__":
    main()
