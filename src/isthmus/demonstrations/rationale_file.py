"""From a file of questions to a file of worked demonstrations that the model wrote itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isthmus.data.json_lines import lines_of
from isthmus.data.records import Record, frames
from isthmus.data.rows import ANSWERS, to_record
from isthmus.data.sources import read_data
from isthmus.demonstrations.example_file import write_examples
from isthmus.demonstrations.rationales import Worked, auto_cot, bootstrap
from isthmus.errors import ImageError, InputError
from isthmus.generation.engine import Engine
from isthmus.media.file_ref import FileRef
from isthmus.model.checkpoint import load_vlm
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole
from isthmus.prompts.answers.closed import MOST_CHOICES, closed_answers
from isthmus.prompts.prompt import Example, with_choices
from isthmus.prompts.templates import template_named
from isthmus.reasoning.method import Reasoning, trigger_for
from isthmus.reasoning.question import Asked
from isthmus.reasoning.wording import trigger_named


def write_rationales(
    data: str | Path,
    out: str | Path,
    *,
    model: str | Path | VisionLanguageModel = "tiny",
    k: int = 8,
    kind: str = "text",
    choices: Iterable[str] = (),
    trigger: str = "",
    ignore_answers: bool = False,
    attempts: int = 4,
    hint: bool = False,
    seed: int = 0,
    limit: int = 1000,
    max_rationale_tokens: int = 256,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    progress: Callable[[str, int, int], object] | None = None,
) -> list[Worked]:
    """Lets a model write worked demonstrations, keeps those that hold up, and writes them.

    Where the questions have answers, a chain is kept if it reaches them (STaR's filter, Zelikman
    et al. 2022, section 3.1); where they have none, questions are clustered and simple tests
    decide (Auto-CoT, Zhang et al. 2022, section 4).

    Args:
        data: Questions, in any form that training reads; lines of JSON need no answers.
        out: The file of demonstrations (.toml).
        model: A shipped model's name, a folder, or a model.
        k: How many demonstrations.
        kind: What the answers are: "text", "number", "yes_no", "choice", "label".
        choices: The answers of a choice or label; a choice may have "choices" of its own in the
            data instead.
        trigger: What makes the model reason: a published name, or a text; empty is step by step,
            in the language of the first question.
        ignore_answers: Cluster and filter even where answers are known.
        attempts: Chains for each labelled question; all but one are sampled.
        hint: Ask once more with the answer as a hint, and say so in the file.
        seed: Of clusters and samples.
        limit: Most questions to read.
        max_rationale_tokens: Most tokens of a chain.
        device: Where a model that is named is loaded to.
        dtype: Its data type.
        progress: Is told what is looked for ("Demonstrations" or "Clusters"), how many were found,
            and how many are wanted.

    Returns:
        The demonstrations that were written, with how each was made.

    Raises:
        InputError: If there is no question, or no chain held up.
        ImageError: If an image is missing.
        ConfigError: If the data is of no known form, or the trigger unknown.
    """
    source, target = Path(data), Path(out)
    if trigger:
        trigger_named(trigger)  # an unknown one is said before the model is loaded
    if target.is_dir():
        raise InputError(
            f"{target} is a folder: expected a file to write, such as {target}/shots.toml"
        )
    records = [record for record in read_questions(source, limit) if record.question]
    if not records:
        raise InputError(f"{source} has no questions: expected records with a question")
    shown = [shown_question(record, kind, tuple(choices)) for record in records]
    labelled = not ignore_answers and all(example.answer for example, _ in shown)
    if labelled and kind == "choice":
        shown = [lettered(*pair, record) for pair, record in zip(shown, records, strict=True)]
    target.parent.mkdir(parents=True, exist_ok=True)  # before the work that would be lost

    questions = [example for example, _ in shown]
    named = isinstance(model, (str, Path))
    loaded = load_vlm(model, device=device, dtype=dtype) if named else model  # type: ignore[arg-type]
    refuse_whole(loaded, "writing rationales")
    assert isinstance(loaded, VisionLanguageModel)
    engine = Engine(loaded)
    template = template_named(loaded.config.template, loaded.language.tokenizer)
    asked = [Asked(template, kind, options) for _, options in shown]  # type: ignore[arg-type]
    reasoning = Reasoning(
        "zero-cot",
        trigger or trigger_for(questions[0].question),
        seed=seed,
        max_rationale_tokens=max_rationale_tokens,
    )
    most = min(k, len(questions))
    what = "Demonstrations" if labelled else "Clusters"
    told = progress or (lambda what, done, of: None)
    how: dict[str, Any] = {"progress": lambda n: told(what, n, most)}
    if labelled:
        how |= {"attempts": attempts, "hint": hint}
        found = bootstrap(engine, questions, most, reasoning, asked, **how)
    else:
        found = auto_cot(engine, questions, most, reasoning, asked, **how)
    if not found:
        remedy = "try --hint, another" if labelled and not hint else "try another"
        raise InputError(
            f"no chain of {len(questions)} questions held up: the model may be too small to "
            f"reason; {remedy} --trigger, or write demonstrations by hand"
        )
    name = str(model) if named else "object"
    found = [replace(w, made={"model": name, **w.made}) for w in found]
    write_examples(target, found)
    return found


def read_questions(data: Path, limit: int) -> list[Record]:
    """The first records of a data set; lines of JSON that ask may have no answer.

    Raises:
        ConfigError: If it is missing, or a record is none.
    """
    if data.suffix.lower() not in (".jsonl", ".ndjson"):
        return list(read_data(data)[:limit])
    found: list[Record] = []
    for where, row in lines_of(data):
        if "question" in row and not any(row.get(key) is not None for key in (*ANSWERS, "names")):
            row["answer"] = ""
        found.append(to_record(row, lambda name: FileRef(data.parent / name), where))
        if len(found) == limit:
            break
    return found


def shown_question(
    record: Record, kind: str, choices: tuple[str, ...]
) -> tuple[Example, tuple[str, ...]]:
    """A record's question as it is asked, and its choices.

    Raises:
        InputError: If a choice or label has none.
        ImageError: If an image cannot be read.
    """
    own = record.extra.get("choices") if kind == "choice" and not choices else None
    if own is None:
        options = closed_answers(kind, choices)
    elif isinstance(own, list) and 1 <= len(own) <= MOST_CHOICES:
        options = tuple(map(str, own))
    else:
        raise InputError(
            f'{record.origin}: "choices" is {own!r}: expected a list of 1 to {MOST_CHOICES} texts'
        )
    turn = record.turns[0]
    images = [p for medium in turn.images for p in frames(medium)]
    for p in images:  # before the model is loaded
        if p.data is None and not p.path.is_file():
            raise ImageError(f"{record.origin}: no file at {p.path}")
    shown = tuple(p.path if p.data is None and not p.member else p.read() for p in images)
    question = with_choices(turn.question, options) if kind == "choice" else turn.question
    return Example(shown, question, turn.answer or None), options


def lettered(
    example: Example, options: tuple[str, ...], record: Record
) -> tuple[Example, tuple[str, ...]]:
    """A choice's example with the letter of its answer.

    Raises:
        InputError: If the answer is none of the choices.
    """
    given = (example.answer or "").strip()
    letters = [chr(ord("A") + n) for n in range(len(options))]
    same = [letter for letter, o in zip(letters, options, strict=True) if o.strip() == given]
    if not same:
        same = [letter for letter in letters if letter == given.upper()]
    if len(same) != 1:
        raise InputError(
            f'{record.origin}: the answer "{given}" is none of the choices '
            f"({', '.join(options)}): expected one of them, or its letter"
        )
    return replace(example, answer=same[0]), options
