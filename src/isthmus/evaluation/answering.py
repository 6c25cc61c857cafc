"""Questions of an arm to prompts, answers to records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from isthmus.evaluation.task import Item, Task, letters
from isthmus.generation.engine import ChoiceScores, Engine
from isthmus.media.image import content_hash
from isthmus.prompts.answers import same_answer
from isthmus.prompts.prompt import Example, Prompt, with_choices
from isthmus.prompts.templates import template_named
from isthmus.reasoning.drivers import run
from isthmus.reasoning.method import Reasoning
from isthmus.reasoning.programs import WAYS
from isthmus.reasoning.question import Asked, Question
from isthmus.reasoning.vote import program_for

TRIGGER = "step-by-step"
"""What arms reason after where nothing else is asked for, whatever a question's language."""
MOST_CLUSTERED = 1000
"""Questions of the support set that Auto-CoT looks at."""


@dataclass(frozen=True)
class Style:
    """How all questions of an evaluation are put and decoded.

    Attributes:
        template: Name of the template; None for the task's, or else the model's own.
        reasoning: How answers are reached, as far as all arms have it in common; the way and the
            seed are each arm's own, and how long an answer may be each task's.
        norm: What closed answers are scored by.
        calibrate: How their scores are calibrated.
    """

    template: str | None = None
    reasoning: Reasoning = field(default_factory=lambda: Reasoning(trigger=TRIGGER))
    norm: Norm = "sum"
    calibrate: Method = "none"


def _reasoning(style: Style, task: Task, arm: Arm, way: str) -> Reasoning:
    """How an arm's answers to a task are reached."""
    return replace(
        style.reasoning,
        way=way,  # type: ignore[arg-type]
        seed=arm.seed,
        max_rationale_tokens=task.max_rationale_tokens,
        max_new_tokens=task.max_new_tokens,
    )


def shown(item: Item, task: Task) -> Example:
    """An item as it is put: a multiple choice with its choices behind the question."""
    if task.kind != "choice":
        return item.example
    return replace(item.example, question=with_choices(item.example.question, item.choices))


def closed(item: Item, task: Task) -> tuple[str, ...]:
    """The answers that can be scored; none for an open question."""
    if task.kind == "choice":
        return letters(item.choices)
    if task.kind == "yes_no":
        return ("yes", "no")
    return item.choices if task.kind == "label" else ()


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
        """The first prompt of a question under the arm's control."""
        [call] = next(WAYS[self._how.way](self.question(item, shots), self._how, 0))
        return call.request.prompt

    def question(self, item: Item, shots: Sequence[Example]) -> Question:
        """A question under the arm's control."""
        changed, query = self._changed(item, shots), self._query(item)
        begun = ""
        if self.arm.control == "filler":
            before, _, _ = self._conclusion.partition(" {answer}")
            begun = f"{self._filler(item, shots)} {before}"

        def render(lead: str, conclusion: str) -> Prompt:
            if not self.in_steps:  # a control puts something else in the place of steps
                return self._render(changed, query, begun)
            return self.template(
                changed,
                query,
                instruction=self.task.instruction,
                lead=lead,
                conclusion=conclusion,
            )

        return Question(
            query.question,
            render,
            tuple(changed),
            self.task.kind,
            item.choices,
            markers=tuple(self.engine.model.language.tokenizer.all_special_tokens),
        )

    @property
    def _how(self) -> Reasoning:
        """How the arm's answers are reached."""
        way = "cot" if self.arm.reasoning == "auto-cot" else self.arm.reasoning
        return _reasoning(self.style, self.task, self.arm, way if self.in_steps else "none")

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
        """How worked demonstrations state their answer: as programs have it, in every control."""
        return self.style.reasoning.trigger_of("").wording.conclusion

    def _render(self, shots: Sequence[Example], query: Example, lead: str = "") -> Prompt:
        """The template with its options."""
        steps = self.arm.reasoning != "none" and self.arm.control != "answer-first"
        return self.template(
            shots,
            query,
            instruction=self.task.instruction,
            lead=lead,
            conclusion=self._conclusion if steps else "",
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
        questions = [self.question(i, own) for i, own in zip(items, shots, strict=True)]
        if self.scores(items):
            answered = self._score(items, questions, shots)
        else:
            answered = self._generate(items, questions)
        seconds = (perf_counter() - started) / len(items)
        labels = [[s.answer for s in own if s.answer is not None] for own in shots]
        return [
            replace(a, seconds=seconds, usual=majority(seen)[0] if seen else None)
            for a, seen in zip(answered, labels, strict=True)
        ]

    @property
    def in_steps(self) -> bool:
        """Whether answers come after steps, and not in their place or before them."""
        return self.arm.reasoning != "none" and self.arm.control not in NEEDS_RATIONALE

    def _generate(self, items: Sequence[Item], questions: Sequence[Question]) -> list[Answered]:
        """What the model writes, at once or in steps; the most frequent of several answers."""
        found = run(self.engine, [program_for(question, self._how) for question in questions])
        return [
            replace(
                self._record(item, question, answer.prompt, answer.parsed),
                text=answer.written,
                rationale=answer.rationale,
                agreement=answer.agreement,
                prompt_tokens=answer.prompt_tokens,
                cached_tokens=answer.cached_tokens,
                new_tokens=answer.new_tokens,
            )
            for item, question, answer in zip(items, questions, found, strict=True)
        ]

    def scores(self, items: Sequence[Item]) -> bool:
        """Whether questions are answered by scoring their closed answers."""
        return self.arm.reasoning == "none" and all(closed(i, self.task) for i in items)

    def _score(
        self,
        items: Sequence[Item],
        questions: Sequence[Question],
        shots: Sequence[Sequence[Example]],
    ) -> list[Answered]:
        """The likeliest of each question's closed answers."""
        closed_answers = [closed(i, self.task) for i in items]
        choices = [
            [f"{q.prompt().junction}{o}" for o in own]
            for q, own in zip(questions, closed_answers, strict=True)
        ]
        found = self.engine.score([q.prompt() for q in questions], choices)
        values = self._calibrated(items, shots, choices, found)
        records = []
        for item, question, own, s, value in zip(
            items, questions, closed_answers, found, values, strict=True
        ):
            best = own[max(range(len(own)), key=lambda i: value[i])]
            records.append(
                replace(
                    self._record(item, question, question.prompt().text, best),
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

    def _record(self, item: Item, question: Question, prompt: str, parsed: str | None) -> Answered:
        """The part of a record that does not depend on how the answer came about."""
        return Answered(
            arm=self.arm.id,
            item=item.id,
            prompt=prompt,
            images=tuple(reference(p) for p in question.images),
            text="",
            parsed=parsed,
            expected=item.example.answer or "",
            right=worth(self.task, item, parsed),
            prompt_tokens=0,
            cached_tokens=0,
            new_tokens=0,
            seconds=0.0,
            question=item.example.question,
            group=item.group,
        )


def written_shots(engine: Engine, task: Task, arm: Arm, style: Style) -> list[Worked]:
    """Demonstrations for an Auto-CoT arm, whose rationales the model writes itself.

    The support set's questions are clustered, as many clusters as the arm has shots; their answers
    are not looked at. A cluster without a chain that holds up gives none.
    """
    asker = Asker(engine, task, arm, style)
    items = task.support[:MOST_CLUSTERED]
    questions = [replace(shown(i, task), answer=None) for i in items]
    reasoning = replace(
        _reasoning(style, task, arm, "zero-cot"), samples=1, temperature=None, top_p=1.0, top_k=0
    )
    asked = [Asked(asker.template, task.kind, i.choices, task.instruction) for i in items]
    return auto_cot(engine, questions, min(arm.shots, len(questions)), reasoning, asked)
