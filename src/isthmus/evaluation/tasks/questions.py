"""A task from any JSONL file of questions, as in exams made for people. Pure: no torch.

One question a line:

| field | what it is |
|---|---|
| `question` | what is asked (needed) |
| `answer` | the right answer (needed); of a multiple choice its letter or its text |
| `choices` | the answers to choose from, as a list; then the question is a multiple choice |
| `image`, `images` | an image or several, paths relative to the file; none for text alone |
| `aliases` | other right answers, as a list |
| `answers` | the answers of several people, as a list, for VQA accuracy; `answer` may be missing |
| `rationale` | the steps that lead to the answer, for chain-of-thought demonstrations |
| `split` | "support" for a demonstration; "test", which is the default |
| `id` | a name; without it the line's number |
| `source` | what kind of question it is, for accuracy kind by kind |

All questions of a file are of one kind: multiple choice where there are choices, otherwise
numbers or yes and no where all answers are, otherwise text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.data.json_lines import EXPECTED, lines_of
from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation.task import Item, Known, Metric, Task
from isthmus.prompts.answers import AnswerKind
from isthmus.prompts.answers.choices import LETTERS
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Example

FIELDS = (
    "id question answer choices image images aliases answers rationale split source".split()  # noqa: SIM905
)
SPLITS = ("test", "support")


def _strings(row: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of texts; numbers are taken as they are written."""
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, (str, int, float)) for v in value):
        raise ConfigError(f'{where}: "{key}" is {value!r}: expected a list of texts')
    return tuple(str(v) for v in value)


def _text(row: dict[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f'{where}: "{key}" is {value!r}: expected a text')


def _images(row: dict[str, Any], root: Path, where: str) -> tuple[Path, ...]:
    """The row's images, all of which must be there: hours later is too late to find out."""
    names = row.get("images", row.get("image"))
    if names is None:
        return ()
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not all(isinstance(n, str) for n in listed):
        raise ConfigError(f"{where}: the images are {names!r}: expected a path or a list of them")
    found = tuple(root / n for n in listed)
    for path in found:
        if not path.is_file():
            raise ConfigError(
                f"{where}: no image at {path}; paths are relative to the folder of the questions"
            )
    return found


def _letter(answer: str, choices: Sequence[str], where: str) -> str:
    """The letter of the right option, from its letter or its text."""
    if len(choices) > len(LETTERS):
        raise ConfigError(f"{where} has {len(choices)} choices: expected at most {len(LETTERS)}")
    same = [i for i, o in enumerate(choices) if o.strip() == answer.strip()]
    if len(same) == 1:
        return LETTERS[same[0]]
    if not same and answer.strip().upper() in LETTERS[: len(choices)] and answer.strip():
        return answer.strip().upper()
    raise ConfigError(
        f'{where}: the answer "{answer}" is {"several" if same else "none"} of the choices '
        f"({', '.join(choices)}): expected one of them, or its letter"
    )


def to_item(row: dict[str, Any], where: str, default_id: str, root: Path) -> tuple[str, Item]:
    """A row's split and item.

    Raises:
        ConfigError: If a field is missing or of the wrong form; the message begins with `where`.
    """
    unknown = [key for key in row if key not in FIELDS]
    if unknown:
        raise ConfigError(
            f'{where}: unknown field "{unknown[0]}": {suggestion(unknown[0], FIELDS)}'
        )
    question, answer = _text(row, "question", where), _text(row, "answer", where)
    people = _strings(row, "answers", where)
    if people and answer is None:
        answer = max(people, key=people.count)
    if not question or answer is None or not answer.strip():
        missing = "question" if not question else "answer"
        raise ConfigError(f'{where} has no "{missing}": expected {EXPECTED}')
    choices = _strings(row, "choices", where)
    rationale = _text(row, "rationale", where)
    for text in (question, answer, rationale or "", *choices):
        for tag in (IMAGE_TAG, END_TAG):
            if tag in text:
                raise ConfigError(f"{where}: {tag} is placed by the template; leave it out")
    split = row.get("split", "test")
    if split not in SPLITS:
        raise ConfigError(f'{where}: "split" is {split!r}: {suggestion(str(split), SPLITS)}')
    if choices:
        answer = _letter(answer, choices, where)
    accepted = people or _strings(row, "aliases", where)
    example = Example(_images(row, root, where), question, answer, rationale)
    identity = _text(row, "id", where) or default_id
    group = _text(row, "source", where) or ""
    return split, Item(identity, example, choices=choices, accepted=accepted, group=group)


def kind_of(items: Sequence[Item]) -> AnswerKind:
    """What kind all answers are of, read off the answers.

    Example:
        >>> kind_of([Item("1", Example((), "2 + 2?", "4"))])
        'number'
    """
    if all(item.choices for item in items):
        return "choice"
    answers = [(item.example.answer or "").strip().lower() for item in items]
    if all(a in ("yes", "no") for a in answers):
        return "yes_no"
    return "number" if all(_is_number(a) for a in answers) else "text"


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return text.strip().lower() not in ("nan", "inf", "-inf", "infinity", "-infinity")


def questions(path: str | Path) -> Task:
    """The task of a JSONL file of questions; its fields are described above.

    Args:
        path: The file.

    Raises:
        ConfigError: If the file is missing or a line is wrong; the message names the line.
    """
    file = Path(path)
    rows = list(lines_of(file))
    found: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for where, row in rows:
        split, item = to_item(row, where, where.rpartition(" ")[2], file.parent)
        found[split].append(item)
    items = found["test"]
    if not items:
        raise ConfigError(f'{file} has no questions with "split": "test": expected at least one')
    both = [*items, *found["support"]]
    with_choices = [bool(i.choices) for i in both]
    if any(with_choices) and not all(with_choices):
        odd = both[with_choices.index(not with_choices[0])].id
        raise ConfigError(
            f'{file}: some questions have "choices" and others none, such as "{odd}": expected one '
            "kind a file; split it in two"
        )
    kind = kind_of(both)
    several = any("answers" in row for _, row in rows)
    metric: Metric = "vqa" if several else "accuracy"
    chance = {"yes_no": 0.5, "choice": 0.0, "number": 0.0, "label": 0.0, "text": 0.0}[kind]
    if kind == "choice":
        chance = sum(1 / len(i.choices) for i in items) / len(items)
    task = Task(
        name=file.stem,
        kind="text" if several else kind,
        items=items,
        support=found["support"],
        chance=chance,
        metric=metric,
        max_new_tokens=16 if kind == "text" else 8,
    )
    task.check()
    return task


TASKS = {
    "questions": Known("a JSONL file of questions; also just its path", read=questions),
}
