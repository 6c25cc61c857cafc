"""`evaluate`: a model and tasks in, results with intervals, baselines and paired tests out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from isthmus.demonstrations.example_file import read_examples, write_examples
from isthmus.evaluation.answering import Asker, Style, reference, written_shots
from isthmus.evaluation.arms import Arm
from isthmus.evaluation.contents import described
from isthmus.evaluation.preparation import prepared
from isthmus.evaluation.records import IMAGES, Records
from isthmus.evaluation.report import image_name, write_report
from isthmus.evaluation.results import NO_CHAIN, Results, Row, row_of
from isthmus.evaluation.selection import Shots
from isthmus.evaluation.task import Item, Task
from isthmus.files import write_atomically, write_json, write_text
from isthmus.generation.engine import Engine
from isthmus.generation.llama_cpp import unfit
from isthmus.media.image import open_image
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import WholeModel, load_answering
from isthmus.prompts.prompt import Example
from isthmus.reasoning.method import Reasoning
from isthmus.reports.progress import Progress

RESULTS, TABLE = "results.json", "results.md"
CHUNK = 32
"""Questions that are answered and written together."""
SHOWN = 8
"""Questions of each task whose images are kept for the report."""
SHOWN_SIDE = 256


def evaluate(
    model: str | Path | VisionLanguageModel | WholeModel | Engine,
    tasks: Sequence[str | Task] | str | Task,
    *,
    shots: Sequence[int] = (0, 4, 8),
    reasoning: str | Reasoning | Sequence[str] = "none",
    samples: int | None = None,
    seeds: Sequence[int] = (0,),
    select: str = "random",
    order: str = "similar-last",
    calibrate: str = "none",
    controls: Sequence[str] = (),
    limit: int | None = None,
    template: str | None = None,
    trigger: str | None = None,
    norm: str = "sum",
    temperature: float | None = None,
    data: str | Path | None = None,
    task_seed: int = 0,
    name: str | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    engine: str = "torch",
) -> Results:
    """Measures a model on tasks, in arms that differ in one thing each.

    Args:
        model: A shipped model's name, a folder, a model, or an engine around one.
        tasks: Names (see `tasks.TASKS`), names with paths ("gsm8k:FILE"), files of questions, or
            tasks of your own.
        shots: Numbers of demonstrations.
        reasoning: How answers are reached: one or several of "none", "cot", "zero-cot",
            "auto-cot" and "least-to-most", or a `Reasoning`, of which the seed and the lengths are
            not looked at: seeds make arms, and tasks say how long their answers are.
        samples: Answers drawn for each question, of which the most frequent is taken.
        seeds: Seeds of demonstrations and samples; each is an arm of its own.
        select: How demonstrations are chosen.
        order: In which order they stand.
        calibrate: How scores of closed answers are calibrated.
        controls: Controls that each arm is repeated with (see `arms.CONTROLS`).
        limit: Most questions of each task, spread over all of it.
        template: The template's name; None for each task's, or else the model's own.
        trigger: What zero-shot chain of thought begins with: a name in `wording.TRIGGERS`, or a
            text; "step-by-step" by default.
        norm: What closed answers are scored by: "sum", "token" or "byte".
        temperature: Of the draws; by default 0.7 where there are several, and 0, greedy, for one.
        data: What the paths of tasks are relative to, those of images in files of records too; None
            is the current folder, and for images the file's own. Images in a file of questions are
            relative to the file in any case, and a task of your own gets its path as it is written.
        task_seed: Seed of tasks that are named and generated, episodes among them; another one
            makes other items.
        name: What the report calls the model; None for its own name or "object".
        out: Folder for records, results and the report. A run that was interrupted goes on there;
            one that asks for something else is refused. None keeps nothing.
        quiet: Show no progress bar.
        device: Where a model that is named is loaded to; see `load`.
        dtype: Its data type likewise.
        engine: Who runs its language model likewise.

    Returns:
        A row for each arm. The first arm of a task is what its others are compared with.

    Raises:
        ConfigError: If something asked for is unknown or impossible, or `out` holds another
            evaluation.
        CheckpointError: If the model cannot be loaded.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> results = evaluate(model, "parity", shots=[0], limit=4)
        >>> results.rows[0].n, results.rows[0].chance
        (4, 0.5)
    """
    asked = prepared(
        tasks,
        shots=shots,
        reasoning=reasoning,
        samples=samples,
        seeds=seeds,
        select=select,
        order=order,
        calibrate=calibrate,
        controls=controls,
        limit=limit,
        template=template,
        trigger=trigger,
        norm=norm,
        temperature=temperature,
        data=data,
        task_seed=task_seed,
    )
    made, arms, left_out, style = asked.tasks, asked.arms, asked.left_out, asked.style
    how = style.reasoning
    runs = model if isinstance(model, Engine) else Engine(_loaded(model, device, dtype, engine))
    folder = None if out is None else Path(out)
    config = {
        "model": name or (str(model) if isinstance(model, (str, Path)) else "object"),
        "weights": fingerprint(runs.model, exact=True),  # adapters that were trained count
        "dtype": computed_in(runs.model),
        "tasks": {t.name: described(t) for t in made},
        "arms": [arm.id for arm in arms],
        "template": template,
        **{name: getattr(how, name) for name in ("samples", "top_p", "top_k", "trigger")},
        "temperature": how.drawn_at,
        "norm": norm,
        "calibrate": calibrate,
        "select": select,
        "order": order,
    }
    records = Records(folder, config)
    try:
        total = sum(len(_task(made, a).items) for a in arms)
        with Progress("Evaluating", total, unit="questions", quiet=quiet) as bar:
            for arm in arms:
                task = _task(made, arm)
                written: list[Example] = []
                if arm.reasoning == "auto-cot":
                    written = _written(runs, task, arm, style, folder)
                    if not written:
                        left_out[arm.id] = NO_CHAIN
                        bar.skip(len(task.items))
                        continue
                shown = Shots(runs, task, arm, select, order, written)
                _run(Asker(runs, task, arm, style), shown, records, bar)
    finally:
        records.close()
    arms = [arm for arm in arms if arm.id not in left_out]
    results = Results(_rows(made, arms, records), config, left_out, folder)
    if folder is not None:
        _write(results, records, folder)
    return results


def _written(
    engine: Engine, task: Task, arm: Arm, style: Style, folder: Path | None
) -> list[Example]:
    """Auto-CoT's demonstrations, kept in a file that an interrupted run finds again.

    A control changes them and does not have others written.
    """
    name = re.sub(r"[^\w-]+", "-", f"{task.name} {arm.shots} seed {arm.seed}")
    path = None if folder is None else folder / f"auto-cot-{name}.toml"
    if path is not None and path.is_file():
        return read_examples(path)
    found = written_shots(engine, task, arm, style)
    if path is not None and found:
        write_examples(path, found)
    return [w.example for w in found]


def _loaded(
    model: str | Path | VisionLanguageModel | WholeModel,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    engine: str,
) -> VisionLanguageModel | WholeModel:
    return (
        model
        if isinstance(model, VisionLanguageModel | WholeModel)
        else load_answering(model, device=device, dtype=dtype, engine=engine)
    )


def computed_in(model: VisionLanguageModel | WholeModel) -> str:
    """The data type that a model computes in, and by whom where that is not PyTorch."""
    ours = isinstance(model, VisionLanguageModel) and model.engine != "torch" and not unfit(model)
    return model.language.computes_in + (f" by {model.engine}" if ours else "")


def _task(tasks: Sequence[Task], arm: Arm) -> Task:
    return next(t for t in tasks if t.name == arm.task)


def _chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _run(asker: Asker, shots: Shots, records: Records, bar: Progress) -> None:
    """Answers the questions of an arm that have no record yet."""
    arm = asker.arm
    bar.say(arm.id)
    for number, chunk in enumerate(_chunks(asker.task.items, CHUNK)):
        left = [item for item in chunk if (arm.id, item.id) not in records]
        if left and asker.style.calibrate == "batch":
            left = chunk  # the scores of a batch depend on one another
        bar.skip(len(chunk) - len(left))
        if not left:
            continue
        answered = asker.ask(left, [shots.of(item) for item in left])
        if records.folder is not None and number == 0:
            _keep_images(asker, left[:SHOWN], records.folder)
        records.add(answered)
        bar.advance(len(left))


def _keep_images(asker: Asker, items: Sequence[Item], folder: Path) -> None:
    """Keeps what the first questions show, small, for the report."""
    for item in items:
        for image in asker.prompt(item, ()).images:
            small = open_image(image)
            small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            target = folder / IMAGES / image_name(reference(image))
            if not target.is_file():
                write_atomically(target, lambda p, s=small: s.save(p, "PNG"))  # type: ignore[misc]


def _rows(tasks: Sequence[Task], arms: Sequence[Arm], records: Records) -> tuple[Row, ...]:
    rows = []
    for task in tasks:
        ids = [item.id for item in task.items]
        first = None
        for arm in (a for a in arms if a.task == task.name):
            answered = records.of(arm.id, ids)
            rows.append(row_of(task, arm, answered, first=first))
            if first is None:
                first = (arm, answered)
    return tuple(rows)


def _write(results: Results, records: Records, folder: Path) -> None:
    """Writes results, table and report."""
    write_json(folder / RESULTS, results.to_json())
    write_text(folder / TABLE, results.markdown())
    write_report(results, list(records.rows.values()), folder)
