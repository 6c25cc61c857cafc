"""`isthmus rationales`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from isthmus.data.records import Record
    from isthmus.prompt import Example


def rationales(
    data: Annotated[
        Path,
        typer.Option(help="Questions, in any form that training reads; JSONL needs no answers."),
    ],
    out: Annotated[Path, typer.Option(help="The file of demonstrations to write (.toml).")],
    model: Annotated[str, typer.Option(help="A shipped model's name, or a folder.")] = "tiny",
    k: Annotated[int, typer.Option("--k", min=1, help="How many demonstrations.")] = 8,
    kind: Annotated[
        str, typer.Option(help="What the answers are: text, number, yes_no, choice, label.")
    ] = "text",
    choices: Annotated[
        str,
        typer.Option(
            help="The answers of a choice or label, with commas between; a choice may have "
            '"options" of its own in the data instead.'
        ),
    ] = "",
    trigger: Annotated[
        str,
        typer.Option(
            help="What makes the model reason: a published name, or a text (default: step by step, "
            "in the language of the first question)."
        ),
    ] = "",
    ignore_answers: Annotated[
        bool, typer.Option(help="Cluster and filter (Auto-CoT) even where answers are known.")
    ] = False,
    attempts: Annotated[
        int, typer.Option(min=1, help="Chains for each labelled question; all but one sampled.")
    ] = 4,
    hint: Annotated[
        bool, typer.Option(help="Ask once more with the answer as a hint, and say so in the file.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of clusters and samples.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Most questions to read.")] = 1000,
    max_step_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a chain.")] = 256,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the demonstrations and how each was made as JSON.")
    ] = False,
) -> None:
    """Let the model write worked demonstrations, and keep those that hold up.

    Where the questions have answers, a chain is kept if it reaches them (STaR's filter); where
    they have none, questions are clustered and simple tests decide (Auto-CoT).
    """
    from isthmus.errors import InputError
    from isthmus.triggers import trigger_named

    if trigger:
        trigger_named(trigger)  # an unknown one is said before the model is loaded
    if out.is_dir():
        raise InputError(f"{out} is a folder: expected a file to write, such as {out}/shots.toml")
    records = [record for record in _records(data, limit) if record.question]
    if not records:
        raise InputError(f"{data} has no questions: expected records with a question")
    shown = [_shown(record, kind, choices) for record in records]
    labelled = not ignore_answers and all(example.answer for example, _ in shown)
    if labelled and kind == "choice":
        shown = [_lettered(*pair, record) for pair, record in zip(shown, records, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)  # before the work that would be lost

    from dataclasses import replace

    from isthmus import checkpoint
    from isthmus.generation.engine import Engine
    from isthmus.progress import Progress
    from isthmus.prompting.example_file import write_examples
    from isthmus.prompting.rationales import auto_cot, bootstrap
    from isthmus.prompting.reason import Asked, Reasoning, trigger_for
    from isthmus.templates import template_named

    questions = [example for example, _ in shown]
    loaded = checkpoint.load(model)
    engine = Engine(loaded)
    template = template_named(loaded.config.template, loaded.language.tokenizer)
    asked = [Asked(template, kind, options) for _, options in shown]  # type: ignore[arg-type]
    reasoning = Reasoning(
        "zero-cot",
        trigger or trigger_for(questions[0].question),
        seed=seed,
        max_step_tokens=max_step_tokens,
    )
    most = min(k, len(questions))
    with Progress("Demonstrations" if labelled else "Clusters", most) as bar:
        how: dict[str, Any] = {"progress": lambda n: bar.advance(n - bar.done)}
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
    found = [replace(w, made={"model": model, **w.made}) for w in found]
    write_examples(out, found)
    if json_:
        texts = ("question", "rationale", "answer")
        entries = [{t: getattr(w.example, t) for t in texts} | {"made": w.made} for w in found]
        print(json.dumps({"out": str(out), "examples": entries}, ensure_ascii=False))
        return
    print(f"{len(found)} of {k} demonstrations in {out}")


def _records(data: Path, limit: int) -> list[Record]:
    """The first records of a data set; lines of JSON that ask may have no answer.

    Raises:
        ConfigError: If it is missing, or a record is none.
    """
    from isthmus.data.records import Picture
    from isthmus.data.rows import ANSWERS, to_record
    from isthmus.data.sources import read_data
    from isthmus.evaluation.tasks.questions import lines_of

    if data.suffix.lower() not in (".jsonl", ".ndjson"):
        return list(read_data(data)[:limit])
    found: list[Record] = []
    for where, row in lines_of(data):
        if "question" in row and not any(row.get(key) is not None for key in (*ANSWERS, "names")):
            row["answer"] = ""
        found.append(to_record(row, lambda name: Picture(data.parent / name), where))
        if len(found) == limit:
            break
    return found


def _shown(record: Record, kind: str, choices: str) -> tuple[Example, tuple[str, ...]]:
    """A record's question as it is asked, and its choices.

    Raises:
        InputError: If a choice or label has none.
        PictureError: If a picture cannot be read.
    """
    from isthmus.cli.ask import closed_answers
    from isthmus.data.records import frames
    from isthmus.errors import InputError, PictureError
    from isthmus.prompt import Example, with_choices

    own = record.extra.get("options") if kind == "choice" and not choices else None
    if own is None:
        options = tuple(closed_answers(kind, choices)["choices"])
    elif isinstance(own, list) and 1 <= len(own) <= 26:
        options = tuple(map(str, own))
    else:
        raise InputError(f'{record.origin}: "options" is {own!r}: expected a list of 1 to 26 texts')
    turn = record.turns[0]
    pictures = [p for medium in turn.pictures for p in frames(medium)]
    for p in pictures:  # before the model is loaded
        if p.data is None and not p.path.is_file():
            raise PictureError(f"{record.origin}: no file at {p.path}")
    shown = tuple(p.path if p.data is None and not p.member else p.read() for p in pictures)
    question = with_choices(turn.question, options) if kind == "choice" else turn.question
    return Example(shown, question, turn.answer or None), options


def _lettered(
    example: Example, options: tuple[str, ...], record: Record
) -> tuple[Example, tuple[str, ...]]:
    """A choice's example with the letter of its answer.

    Raises:
        InputError: If the answer is none of the choices.
    """
    from dataclasses import replace

    from isthmus.errors import InputError

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
