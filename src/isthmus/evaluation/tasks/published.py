"""Published data sets, from files that the user has: easy-VQA, GSM8K, SVAMP. Pure: no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from isthmus.data.json_lines import lines_of
from isthmus.errors import ConfigError
from isthmus.evaluation.task import Generated, Item, Known, Task
from isthmus.prompts.prompt import Example

EASY_VQA_SUPPORT = 512
SVAMP_SUPPORT_EVERY = 10
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def _read_json(file: Path, what: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; expected {what}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}): expected {what}") from error


def easy_vqa(path: str | Path) -> Task:
    """easy-VQA's test questions: one coloured shape in each image, 13 possible answers.

    Every so many of its training questions, 512 in all, are the support set.

    Args:
        path: The folder with `test/` and `train/`, each with `questions.json` and `images/`, or
            that of the installed package `easy_vqa` above it.

    Raises:
        ConfigError: If the folder is none of these.
    """
    root = Path(path)
    for inside in ("", "data", "easy_vqa/data"):
        if (root / inside / "test/questions.json").is_file():
            root = root / inside
            break
    rows = {}
    for split in ("test", "train"):
        file = root / split / "questions.json"
        rows[split] = _read_json(file, "easy-VQA's questions, [question, answer, picture] each")
        whole = isinstance(rows[split], list) and all(
            isinstance(r, list) and len(r) == 3 and isinstance(r[0], str) for r in rows[split]
        )
        if not whole:
            raise ConfigError(f"{file} is not easy-VQA's: expected [question, answer, image]")
    labels = tuple(sorted({str(r[1]) for r in rows["test"]} | {str(r[1]) for r in rows["train"]}))

    def item(split: str, number: int) -> Item:
        question, answer, image = rows[split][number]
        example = Example(
            root / split / "images" / f"{image}.png",
            question[:1].upper() + question[1:],
            str(answer),
        )
        return Item(f"{split}-{number}", example, choices=labels)

    train = len(rows["train"])
    few = min(EASY_VQA_SUPPORT, train)
    return Task(
        name="easy-vqa",
        kind="label",
        items=Generated(len(rows["test"]), lambda i: item("test", i)),
        support=Generated(few, lambda i: item("train", i * train // few)),
        chance=1 / len(labels),
        max_new_tokens=8,
    )


def _gsm8k_items(file: Path) -> list[Item]:
    items = []
    for number, (where, row) in enumerate(lines_of(file)):
        question, solution = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(solution, str) or "####" not in solution:
            raise ConfigError(
                f'{where} is not GSM8K\'s: expected "question", and "answer" with steps and "####"'
            )
        steps, _, answer = solution.rpartition("####")
        rationale = " ".join(
            line.strip() if line.strip().endswith((".", "!", "?")) else f"{line.strip()}."
            for line in _CALCULATOR.sub("", steps).split("\n")
            if line.strip()
        )
        example = Example((), question.strip(), answer.strip().replace(",", ""), rationale)
        items.append(Item(f"{file.stem}-{number}", example))
    return items


def gsm8k(path: str | Path) -> Task:
    """GSM8K (Cobbe et al. 2021): word problems of two to eight steps, with worked solutions.

    Args:
        path: A JSONL file of the test split, or a folder with one whose name has "test" in it.
            The file of the same name with "train" in its place is the support set, if there is one.

    Raises:
        ConfigError: If there is no such file, or a line is wrong.
    """
    file = Path(path)
    if file.is_dir():
        found = sorted(file.glob("*test*.jsonl"))
        named = [f for f in found if "gsm8k" in f.name.lower()] or found
        if len(named) != 1:
            raise ConfigError(
                f"{file} has {len(named)} files *test*.jsonl: expected GSM8K's one, or name it"
            )
        file = named[0]
    train = file.with_name(file.name.replace("test", "train"))
    return Task(
        name="gsm8k",
        kind="number",
        items=_gsm8k_items(file),
        support=_gsm8k_items(train) if train != file and train.is_file() else (),
        max_new_tokens=16,
        max_rationale_tokens=320,
    )


def _number(value: object) -> str:
    """A number as people write it.

    Example:
        >>> _number(51.0)
        '51'
    """
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def svamp(path: str | Path) -> Task:
    """SVAMP (Patel et al. 2021): word problems of one step, varied to catch shallow reading.

    The published file has no training questions: every tenth question is the support set, with
    its equation as the rationale, and the others are the test.

    Args:
        path: `SVAMP.json`.

    Raises:
        ConfigError: If the file is missing or is another.
    """
    file = Path(path)
    rows = _read_json(file, "SVAMP's list of problems")
    keys = ("ID", "Body", "Question", "Answer", "Equation")
    items: list[Item] = []
    support: list[Item] = []
    for number, row in enumerate(rows if isinstance(rows, list) else ()):
        if not isinstance(row, dict) or not all(key in row for key in keys):
            raise ConfigError(f"{file}, problem {number + 1}: expected {', '.join(keys)}")
        body = str(row["Body"]).strip()
        stop = "" if body.endswith((".", "?", "!", ",")) else "."
        equation = str(row["Equation"]).strip().removeprefix("(").removesuffix(")").strip()
        equation = re.sub(r"(\d+)\.0\b", r"\1", equation)
        answer = _number(row["Answer"])
        example = Example(
            (), f"{body}{stop} {str(row['Question']).strip()}", answer, f"{equation} = {answer}."
        )
        chosen = support if number % SVAMP_SUPPORT_EVERY == 0 else items
        chosen.append(Item(str(row["ID"]), example))
    if not items:
        raise ConfigError(f"{file} is not SVAMP's: expected a list of problems with {keys}")
    return Task(
        name="svamp",
        kind="number",
        items=items,
        support=support,
        max_new_tokens=16,
        max_rationale_tokens=192,
    )


TASKS = {
    "easy-vqa": Known("easy-VQA, from its folder", read=easy_vqa),
    "gsm8k": Known("GSM8K, from its test file (train beside it for shots)", read=gsm8k),
    "svamp": Known("SVAMP, from SVAMP.json", read=svamp),
}
