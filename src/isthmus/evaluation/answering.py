"""Questions of an arm to prompts, answers to records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from isthmus.demonstrations.calibrate import Method, calibrated
from isthmus.demonstrations.order import Norm
from isthmus.demonstrations.rationales import Worked, auto_cot
from isthmus.evaluation import controls
from isthmus.evaluation.arms import NEEDS_RATIONALE, Arm
from isthmus.evaluation.metrics import majority, vqa_accuracy
from isthmus.evaluation.records import Answered
from isthmus.evaluation.task import Item, Task, choices
from isthmus.generation.engine import ChoiceScores, Engine
from isthmus.media.image import content_hash
from isthmus.prompts.answers import extract, same_answer
from isthmus.prompts.prompt import Example, Prompt, with_choices
from isthmus.prompts.templates import template_named
from isthmus.reasoning.reason import STOPS, Asked, Reasoning, solve
from isthmus.reasoning.vote import vote
from isthmus.reasoning.wording import trigger_named

MOST_CLUSTERED = 1000
"""Questions of the support set that Auto-CoT looks at."""


@dataclass(frozen=True)
class Style:
    """How all questions of an evaluation are put and decoded.

    Attributes:
        template: Name of the template; None for the task's, or else the model's own.
        samples: Answers drawn for each question, of which the most frequent is taken.
        temperature: Of the draws, where there are several.
        norm: What closed answers are scored by.
        calibrate: How their scores are calibrated.
        trigger: What zero-shot chain of thought begins with: a name in `triggers.TRIGGERS`, or a
            text.
    """

    template: str | None = None
    samples: int = 1
    temperature: float = 0.7
    norm: Norm = "sum"
    calibrate: Method = "none"
    trigger: str = "step-by-step"


def shown(item: Item, task: Task) -> Example:
    """An item as it is put: a multiple choice with its options behind the question."""
    if task.kind != "choice":
        return item.example
    return replace(item.example, question=with_choices(item.example.question, item.options))


def closed(item: Item, task: Task) -> tuple[str, ...]:
    """The answers that can be scored; none for an open question."""
    if task.kind == "choice":
        return choices(item.options)
    if task.kind == "yes_no":
        return ("yes", "no")
    return item.options if task.kind == "label" else ()


def worth(task: Task, item: Item, parsed: str | None) -> float:
    """What an answer is worth, 0 to 1; nothing where none was found."""
    if parsed is None:
        return 0.0
    if task.metric == "vqa":
        return vqa_accuracy(parsed, item.accepted)
    if task.metric in ("exact", "characters"):
        return float(parsed.strip() in item.answers)
    return float(any(same_answer(parsed, right, task.kind) for right in item.answers))


def reference(image: Any) -> str:
    """The path of an image, or the hash of its pixels."""
    return str(image) if isinstance(image, (str, Path)) else content_hash(image)


class Asker:
    """Asks the questions of one arm.

    Args:
        engine: Generates and scores.
        task: The task.
        arm: The arm.
        style: How questions are put.
    """

    def __init__(self, engine: Engine, task: Task, arm: Arm, style: Style) -> None:
        self.engine = engine
        self.task = task
        self.arm = arm
        self.style = style
        name = style.template or task.template or engine.model.config.template
        self.template = template_named(name, engine.model.language.tokenizer)

    def prompt(self, item: Item, shots: Sequence[Example]) -> Prompt:
        """The prompt of a question under the arm's control."""
        lead = ""
        if self.arm.reason in ("zero-cot", "auto-cot"):
            lead = trigger_named(self.style.trigger).text
        if self.arm.control == "filler":
            before, _, _ = self._conclusion.partition(" {answer}")
            lead = f"{self._filler(item, shots)} {before}"
        return self._render(self._changed(item, shots), self._query(item), lead)

    def _query(self, item: Item) -> Example:
        """The question under the arm's control, without its answer."""
        query = replace(shown(item, self.task), answer=None, rationale=None)
        return controls.blanked(query) if self.arm.control == "blank" else query

    def _changed(self, item: Item, shots: Sequence[Example]) -> list[Example]:
        """Demonstrations as the arm's control has them."""
        match self.arm.control:
            case "blank-shots":
                return [controls.blanked(s) for s in shots]
            case "shuffled":
                # demonstrations that all questions share must stay one prefix
                key = item.id if self.task.episodic else ""
                return controls.shuffled(shots, self.arm.seed, key)
            case "answer-first":
                return controls.answer_first(shots)
            case "filler":
                return controls.filled(shots, self._tokens)
        return list(shots)

    @property
    def _conclusion(self) -> str:
        """How worked demonstrations state their answer: as `solve` has it, in every control."""
        return trigger_named(self.style.trigger).wording.conclusion

    def _render(self, shots: Sequence[Example], query: Example, lead: str = "") -> Prompt:
        """The template with its options."""
        steps = self.arm.reason != "none" and self.arm.control != "answer-first"
        return self.template(
            shots,
            query,
            instruction=self.task.instruction,
            lead=lead,
            reason=self._conclusion if steps else False,
        )

    def _tokens(self, text: str) -> int:
        return len(self.engine.model.language.encode(text))

    def _filler(self, item: Item, shots: Sequence[Example]) -> str:
        """Dots as long as the question's rationale, or the longest demonstration's."""
        own = item.example.rationale
        if not own:
            own = max((s.rationale or "" for s in shots), key=len, default="")
        return controls.filler(own, self._tokens).strip()

    def ask(self, items: Sequence[Item], shots: Sequence[Sequence[Example]]) -> list[Answered]:
        """Answers questions, each with its demonstrations.

        Args:
            items: The questions.
            shots: Each one's demonstrations.
        """
        started = perf_counter()
        if self.reasons:
            answered = self._solve(items, shots)
        else:
            prompts = [self.prompt(i, own) for i, own in zip(items, shots, strict=True)]
            if self.scores(items):
                answered = self._score(items, prompts, shots)
            else:
                answered = self._generate(items, prompts)
        seconds = (perf_counter() - started) / len(items)
        labels = [[s.answer for s in own if s.answer is not None] for own in shots]
        return [
            replace(a, seconds=seconds, usual=majority(seen)[0] if seen else None)
            for a, seen in zip(answered, labels, strict=True)
        ]

    @property
    def reasons(self) -> bool:
        """Whether answers come after steps, and not in their place or before them."""
        return self.arm.reason != "none" and self.arm.control not in NEEDS_RATIONALE

    def _solve(self, items: Sequence[Item], shots: Sequence[Sequence[Example]]) -> list[Answered]:
        """Answers reached in steps."""
        auto = self.arm.reason == "auto-cot"
        way = "cot" if auto else self.arm.reason
        style, task = self.style, self.task
        reasoning = Reasoning(
            way,  # type: ignore[arg-type]
            style.trigger,
            samples=style.samples,
            temperature=style.temperature if style.samples > 1 else 0.0,
            seed=self.arm.seed,
            max_step_tokens=task.max_reason_tokens,
            max_new_tokens=task.max_new_tokens,
        )
        lead = trigger_named(style.trigger).text if auto else ""
        forms = [Asked(self.template, task.kind, i.options, task.instruction, lead) for i in items]
        found = solve(
            self.engine,
            [self._query(i) for i in items],
            [self._changed(i, own) for i, own in zip(items, shots, strict=True)],
            reasoning,
            forms,
        )
        return [
            replace(
                self._record(item, s.prompts[-1], s.answer),
                text=s.text,
                rationale=s.rationale,
                agreement=s.agreement,
                prompt_tokens=s.prompt_tokens,
                cached_tokens=s.cached_tokens,
                new_tokens=s.new_tokens,
            )
            for item, s in zip(items, found, strict=True)
        ]

    def scores(self, items: Sequence[Item]) -> bool:
        """Whether questions are answered by scoring their closed answers."""
        return self.arm.reason == "none" and all(closed(i, self.task) for i in items)

    def _score(
        self, items: Sequence[Item], prompts: Sequence[Prompt], shots: Sequence[Sequence[Example]]
    ) -> list[Answered]:
        """The likeliest of each question's closed answers."""
        options = [closed(i, self.task) for i in items]
        choices = [
            [f"{p.junction}{o}" for o in own] for p, own in zip(prompts, options, strict=True)
        ]
        found = self.engine.score(prompts, choices)
        values = self._calibrated(items, shots, choices, found)
        records = []
        for item, prompt, own, s, value in zip(items, prompts, options, found, values, strict=True):
            best = own[max(range(len(own)), key=lambda i: value[i])]
            records.append(
                replace(
                    self._record(item, prompt, best),
                    text=best,
                    prompt_tokens=s.prompt_tokens,
                    cached_tokens=s.cached_tokens,
                    new_tokens=sum(s.tokens),
                    scores=dict(zip(own, value, strict=True)),
                )
            )
        return records

    def _calibrated(
        self,
        items: Sequence[Item],
        shots: Sequence[Sequence[Example]],
        choices: Sequence[Sequence[str]],
        found: Sequence[ChoiceScores],
    ) -> list[list[float]]:
        """Scores of each question's answers, those with the same answers and shots together."""
        style = self.style
        if style.calibrate == "none":
            return [list(s.by(style.norm)) for s in found]
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, own in enumerate(shots):
            alike = () if style.calibrate == "batch" else tuple(id(s) for s in own)
            groups.setdefault((tuple(choices[i]), *alike), []).append(i)
        values: list[list[float]] = [[] for _ in items]
        for members in groups.values():
            first = members[0]
            scores = calibrated(
                [found[i] for i in members],
                style.calibrate,
                self.engine,
                choices[first],
                template=self._render,
                shots=self._changed(items[first], shots[first]),
                like=self._query(items[first]),
                norm=style.norm,
            )
            for i, row in zip(members, scores.tolist(), strict=True):
                values[i] = row
        return values

    def _generate(self, items: Sequence[Item], prompts: Sequence[Prompt]) -> list[Answered]:
        """What the model writes, the most frequent of several answers."""
        kind, samples = self.task.kind, self.style.samples
        written = self.engine.generate(
            prompts,
            max_new_tokens=self.task.max_new_tokens,
            stop=STOPS,
            samples=samples,
            temperature=self.style.temperature if samples > 1 else 0.0,
            seed=self.arm.seed,
        )
        records = []
        for item, generation in zip(items, written, strict=True):
            texts = [c.text for c in generation.completions]
            options = item.options if kind in ("choice", "label") else ()
            result = vote([extract(t, kind, options, after=("",)) for t in texts], kind)
            records.append(
                replace(
                    self._record(item, generation.prompt, result.answer),
                    text=texts[result.chosen],
                    agreement=result.agreement if samples > 1 else None,
                    prompt_tokens=generation.prompt_tokens,
                    cached_tokens=generation.cached_tokens,
                    new_tokens=sum(len(c.ids) for c in generation.completions),
                )
            )
        return records

    def _record(self, item: Item, prompt: Prompt, parsed: str | None) -> Answered:
        """The part of a record that does not depend on how the answer came about."""
        return Answered(
            arm=self.arm.id,
            item=item.id,
            prompt=prompt.text,
            images=tuple(reference(p) for p in prompt.images),
            text="",
            parsed=parsed,
            expected=item.example.answer or "",
            right=worth(self.task, item, parsed),
            prompt_tokens=0,
            cached_tokens=0,
            new_tokens=0,
            seconds=0.0,
            question=item.example.question,
        )


def written_shots(engine: Engine, task: Task, arm: Arm, style: Style) -> list[Worked]:
    """Demonstrations for an Auto-CoT arm, whose rationales the model writes itself.

    The support set's questions are clustered, as many clusters as the arm has shots; their answers
    are not looked at. A cluster without a chain that holds up gives none.
    """
    asker = Asker(engine, task, arm, style)
    items = task.support[:MOST_CLUSTERED]
    questions = [replace(shown(i, task), answer=None) for i in items]
    reasoning = Reasoning(
        "zero-cot",
        style.trigger,
        seed=arm.seed,
        max_step_tokens=task.max_reason_tokens,
        max_new_tokens=task.max_new_tokens,
    )
    asked = [Asked(asker.template, task.kind, i.options, task.instruction) for i in items]
    return auto_cot(engine, questions, min(arm.shots, len(questions)), reasoning, asked)
