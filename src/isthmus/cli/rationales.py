"""`isthmus rationales`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rationales(
    data: Annotated[Path, typer.Option(help="Questions, in any form that training reads.")],
    out: Annotated[Path, typer.Option(help="The file of demonstrations to write (.toml).")],
    model: Annotated[str, typer.Option(help="A shipped model's name, or a folder.")] = "tiny",
    k: Annotated[int, typer.Option("--k", min=1, help="How many demonstrations.")] = 8,
    kind: Annotated[
        str, typer.Option(help="What the answers are: text, number, yes_no, choice, label.")
    ] = "text",
    choices: Annotated[
        str, typer.Option(help="The answers of a choice or label, with commas between.")
    ] = "",
    trigger: Annotated[
        str, typer.Option(help="What makes the model reason: a published name, or a text.")
    ] = "step-by-step",
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
) -> None:
    """Let the model write worked demonstrations, and keep those that hold up.

    Where the questions have answers, a chain is kept if it reaches them (STaR's filter); where
    they have none, questions are clustered and simple tests decide (Auto-CoT).
    """
    from isthmus.cli.ask import _answers
    from isthmus.errors import InputError

    how = _answers(kind, choices)
    from rich.console import Console
    from rich.progress import Progress

    from isthmus import checkpoint
    from isthmus.data.records import frames
    from isthmus.data.sources import read_records
    from isthmus.generation.engine import Engine
    from isthmus.prompt import Example
    from isthmus.prompting.example_file import write_examples
    from isthmus.prompting.rationales import auto_cot, bootstrap
    from isthmus.prompting.reason import Asked, Reasoning
    from isthmus.templates import template_named

    questions = []
    for record in read_records(data)[:limit]:
        if not record.question:
            continue
        shown = tuple(
            p.path if p.data is None and not p.member else p.read()
            for medium in record.pictures
            for p in frames(medium)
        )
        questions.append(Example(shown, record.question, record.answer or None))
    if not questions:
        raise InputError(f"{data} has no questions: expected records with a question")
    loaded = checkpoint.load(model)
    engine = Engine(loaded)
    template = template_named(loaded.config.template, loaded.language.tokenizer)
    asked = Asked(template, how["kind"], tuple(how["choices"]))
    reasoning = Reasoning("zero-cot", trigger, seed=seed)
    labelled = not ignore_answers and all(q.answer for q in questions)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Demonstrations" if labelled else "Clusters", total=k)
        if labelled:
            found = bootstrap(
                engine,
                questions,
                k,
                reasoning,
                asked,
                attempts=attempts,
                hint=hint,
                progress=lambda n: bar.update(task, completed=n),
            )
        else:
            found = auto_cot(
                engine,
                questions,
                min(k, len(questions)),
                reasoning,
                asked,
                progress=lambda n: bar.update(task, completed=n),
            )
    if not found:
        raise InputError(
            f"no chain of {len(questions)} questions held up: the model may be too small to "
            "reason; try --hint, another --trigger, or write demonstrations by hand"
        )
    write_examples(out, found)
    print(f"{len(found)} of {k} demonstrations in {out}")
