"""Reaching an answer: at once, or in steps.

    none            the answer at once, with or without demonstrations
    cot             demonstrations show their steps (Wei et al. 2022)
    zero-cot        a trigger makes the model reason, a second prompt asks for the answer
                    (Kojima et al. 2022, section 3)
    least-to-most   the question is broken into smaller ones, answered in order
                    (Zhou et al. 2022, section 2)

Each way may be taken several times, with samples, and the answers put to the vote
(self-consistency). Everything is asked for in batches of prompts; the engine computes what they
share once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from isthmus.answers import AnswerKind, extract
from isthmus.errors import ConfigError, suggestion
from isthmus.generation.engine import Engine, Generation
from isthmus.prompt import Example, Prompt, without_tags
from isthmus.prompting.decompose import BREAK_DOWN, parts_of
from isthmus.prompting.vote import vote
from isthmus.templates import Template
from isthmus.triggers import Trigger, trigger_named

Way = Literal["none", "cot", "zero-cot", "least-to-most"]
STOPS = ("\n", "Question:", "Q:")
"""What ends an answer: a base language model left to itself goes on with the pattern."""
STEP_STOPS = ("Question:", "\nQ:")
"""What ends a chain, which may have several lines."""
TEMPERATURE = 0.7
"""Wang et al. 2022, section 3.1."""


@dataclass(frozen=True)
class Reasoning:
    """How answers are reached.

    Attributes:
        way: See the module.
        trigger: What makes the model reason without demonstrations: a name in
            `triggers.TRIGGERS`, or a text of your own.
        samples: Chains for each question, whose answers vote.
        temperature: Of the samples; None is 0.7 for several chains, and 0, greedy, for one.
        top_p: Draw from the likeliest tokens that hold this share.
        seed: Of the samples.
        max_step_tokens: Most tokens of a chain.
        max_new_tokens: Most tokens of an answer.

    Raises:
        ConfigError: If the way is unknown, or there are no samples.
    """

    way: Way = "none"
    trigger: str = "step-by-step"
    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0
    max_step_tokens: int = 256
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise ConfigError(
                f'unknown way to reason "{self.way}": {suggestion(self.way, get_args(Way))}'
            )
        if self.samples < 1:
            raise ConfigError(f"got {self.samples} samples, expected at least 1")


@dataclass(frozen=True)
class Solution:
    """An answer and how it was reached.

    Attributes:
        text: The answer as the model wrote it.
        answer: What was found in it, in one spelling; None if it does not parse.
        rationale: The steps, apart from the answer; None if there are none.
        votes: Votes by answer, where there were several chains.
        agreement: The winner's share of the votes.
        unparsed: Share of chains without an answer.
        prompts: Every prompt that the answer was made from, of the chain that won.
        prompt_tokens, cached_tokens, new_tokens: Over all of its prompts and chains.
    """

    text: str
    answer: str | None
    rationale: str | None
    votes: dict[str, int]
    agreement: float | None
    unparsed: float
    prompts: tuple[Prompt, ...]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Asked:
    """What is asked, and how it becomes a prompt.

    Attributes:
        template: Makes prompts.
        kind: What the answers are.
        options: The closed answers of a choice or label.
        instruction: Stands before everything.
        lead: What an answer in the manner of demonstrations begins with; Auto-CoT's begin with
            the trigger.
    """

    template: Template
    kind: AnswerKind = "text"
    options: tuple[str, ...] = ()
    instruction: str = ""
    lead: str = ""

    def prompt(self, query: Example, shots: Sequence[Example], **rest: Any) -> Prompt:
        """The prompt of a question; what else the template takes goes through."""
        return self.template(shots, query, instruction=self.instruction, **rest)

    def closed(self) -> tuple[str, ...]:
        """The options, where the kind has some."""
        return self.options if self.kind in ("choice", "label") else ()


@dataclass
class _Chain:
    """One chain on its way."""

    steps: str
    text: str
    prompts: tuple[Prompt, ...]


@dataclass
class _Count:
    """Tokens of one question."""

    prompt: int = 0
    cached: int = 0
    new: int = 0

    def add(self, generation: Generation) -> None:
        """Counts a generation, each of its samples with its new tokens."""
        self.prompt += generation.prompt_tokens
        self.cached += generation.cached_tokens
        self.new += sum(len(c.ids) for c in generation.completions)


def way_for(question: str, shots: Sequence[Example]) -> Reasoning:
    """What "reason" means where nothing more is said.

    Steps like those of the demonstrations where one shows them; else a trigger in the question's
    language.

    Example:
        >>> way_for("고양이는 몇 마리야?", []).trigger
        'step-by-step-ko'
    """
    if any(s.rationale for s in shots):
        return Reasoning("cot")
    korean = any("가" <= character <= "힣" for character in question)
    return Reasoning("zero-cot", trigger="step-by-step-ko" if korean else "step-by-step")


def solve(
    engine: Engine,
    queries: Sequence[Example],
    shots: Sequence[Sequence[Example]],
    reasoning: Reasoning,
    asked: Asked | Sequence[Asked],
) -> list[Solution]:
    r"""Answers questions.

    Args:
        engine: Generates.
        queries: The questions.
        shots: Each one's demonstrations.
        reasoning: How answers are reached.
        asked: What is asked, by all questions or by each.

    Raises:
        ConfigError: If a chain of thought is wanted and no demonstration shows one.
        PromptError: If a demonstration has no answer, or a text contains a tag.

    Example:
        >>> import isthmus as im
        >>> from isthmus.templates import qa
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        >>> how = Reasoning("zero-cot", max_step_tokens=2, max_new_tokens=2)
        >>> [s] = solve(engine, [Example((), "2 + 3?")], [[]], how, Asked(qa, "number"))
        >>> s.prompts[0].text
        "Q: 2 + 3?\nA: Let's think step by step."
    """
    if not queries:
        return []
    forms = [asked] * len(queries) if isinstance(asked, Asked) else list(asked)
    counts = [_Count() for _ in queries]
    trigger = trigger_named(reasoning.trigger)
    if reasoning.way == "cot" and not all(any(s.rationale for s in own) for own in shots):
        raise ConfigError(
            "chain of thought was asked for, and no demonstration has a rationale: give one, "
            'or take the way "zero-cot", which needs none'
        )
    if reasoning.way in ("none", "cot"):
        chains = _at_once(engine, queries, shots, reasoning, forms, counts)
    elif reasoning.way == "zero-cot":
        chains = _two_stages(engine, queries, shots, reasoning, forms, trigger, counts)
    else:
        chains = _least_to_most(engine, queries, shots, reasoning, forms, trigger, counts)
    markers = trigger.wording.markers
    after = markers if reasoning.way == "cot" else ("",)
    solutions = []
    for own, count, form in zip(chains, counts, forms, strict=True):
        found = [extract(c.text, form.kind, form.closed(), after=after) for c in own]
        result = vote(found, form.kind)
        chosen = own[result.chosen]
        rationale = chosen.steps.strip() or None
        if reasoning.way == "cot":
            rationale = _before(chosen.text, markers).strip() or None
        solutions.append(
            Solution(
                text=chosen.text,
                answer=result.answer,
                rationale=rationale,
                votes=result.votes if reasoning.samples > 1 else {},
                agreement=result.agreement if reasoning.samples > 1 else None,
                unparsed=result.unparsed,
                prompts=chosen.prompts,
                prompt_tokens=count.prompt,
                cached_tokens=count.cached,
                new_tokens=count.new,
            )
        )
    return solutions


def _before(text: str, markers: Sequence[str]) -> str:
    """A text up to the first of some markers."""
    places = [text.find(m) for m in markers if m in text]
    return text[: min(places)] if places else text


def _draws(reasoning: Reasoning) -> dict[str, float | int]:
    """How chains are drawn."""
    usual = TEMPERATURE if reasoning.samples > 1 else 0.0
    return {
        "samples": reasoning.samples,
        "temperature": usual if reasoning.temperature is None else reasoning.temperature,
        "top_p": reasoning.top_p,
        "seed": reasoning.seed,
    }


def _at_once(
    engine: Engine,
    queries: Sequence[Example],
    shots: Sequence[Sequence[Example]],
    reasoning: Reasoning,
    forms: Sequence[Asked],
    counts: Sequence[_Count],
) -> list[list[_Chain]]:
    """One prompt: the answer, or steps and answer in the manner of the demonstrations."""
    steps = reasoning.way == "cot"
    prompts = [
        form.prompt(query, own, lead=form.lead, reason=steps)
        for query, own, form in zip(queries, shots, forms, strict=True)
    ]
    written = engine.generate(
        prompts,
        max_new_tokens=reasoning.max_step_tokens if steps else reasoning.max_new_tokens,
        stop=STEP_STOPS if steps else STOPS,
        **_draws(reasoning),  # type: ignore[arg-type]
    )
    for count, generation in zip(counts, written, strict=True):
        count.add(generation)
    return [[_Chain("", c.text, (g.prompt,)) for c in g.completions] for g in written]


def _two_stages(
    engine: Engine,
    queries: Sequence[Example],
    shots: Sequence[Sequence[Example]],
    reasoning: Reasoning,
    forms: Sequence[Asked],
    trigger: Trigger,
    counts: Sequence[_Count],
) -> list[list[_Chain]]:
    """The trigger, then question, trigger, steps and an extraction prompt."""
    first = [
        form.prompt(query, own, lead=trigger.text)
        for query, own, form in zip(queries, shots, forms, strict=True)
    ]
    written = engine.generate(
        first,
        max_new_tokens=reasoning.max_step_tokens,
        stop=STEP_STOPS,
        **_draws(reasoning),  # type: ignore[arg-type]
    )
    chains: list[list[_Chain]] = []
    second: list[Prompt] = []
    for prompt, query, own, form, generation, count in zip(
        first, queries, shots, forms, written, counts, strict=True
    ):
        count.add(generation)
        branch = []
        for completion in generation.completions:
            said = without_tags(completion.text)
            said = f" {said}" if said else ""
            lead = trigger.answer_lead(said, form.kind, options=len(form.options))
            asking = form.prompt(query, own, lead=lead)
            # chains of one question go on from the same states: its first prompt's
            if reasoning.samples > 1:
                asking = replace(asking, shared=len(prompt.text))
            second.append(asking)
            branch.append(_Chain(completion.text, "", (prompt, asking)))
        chains.append(branch)
    answers = iter(engine.generate(second, max_new_tokens=reasoning.max_new_tokens, stop=STOPS))
    for branch, count in zip(chains, counts, strict=True):
        for chain in branch:
            generation = next(answers)
            count.add(generation)
            chain.text = generation.completions[0].text
    return chains


# --- least to most --------------------------------------------------------------------------------


def _least_to_most(
    engine: Engine,
    queries: Sequence[Example],
    shots: Sequence[Sequence[Example]],
    reasoning: Reasoning,
    forms: Sequence[Asked],
    trigger: Trigger,
    counts: Sequence[_Count],
) -> list[list[_Chain]]:
    """A list of smaller questions, their answers one after the other, then the answer itself."""
    korean = trigger.wording.conclusion.startswith("정답")
    start = BREAK_DOWN["ko" if korean else "en"]

    def prompt_of(number: int, lead: str) -> Prompt:
        return forms[number].prompt(queries[number], shots[number], lead=lead)

    first = [prompt_of(n, start) for n in range(len(queries))]
    written = engine.generate(
        first,
        max_new_tokens=reasoning.max_step_tokens,
        stop=(*STEP_STOPS, "\n\n"),
        **_draws(reasoning),  # type: ignore[arg-type]
    )
    owners: list[int] = []
    leads: list[str] = []
    parts: list[list[str]] = []
    prompts: list[tuple[Prompt, ...]] = []
    for number, (generation, count) in enumerate(zip(written, counts, strict=True)):
        count.add(generation)
        for completion in generation.completions:
            listed = parts_of(without_tags(completion.text))
            shown = " ".join(f"{i}. {part}" for i, part in enumerate(listed, 1))
            owners.append(number)
            leads.append(f"{start} {shown}" if listed else start)
            parts.append(listed)
            prompts.append((generation.prompt,))
    for step in range(max(map(len, parts))):
        live = [i for i, listed in enumerate(parts) if step < len(listed)]
        for i in live:
            leads[i] += f"\n{step + 1}."
            prompts[i] += (prompt_of(owners[i], leads[i]),)
        answered = engine.generate(
            [prompts[i][-1] for i in live],
            max_new_tokens=reasoning.max_step_tokens,
            stop=("\n", *STEP_STOPS),
        )
        for i, generation in zip(live, answered, strict=True):
            counts[owners[i]].add(generation)
            leads[i] += f" {without_tags(generation.completions[0].text)}"
    for i, lead in enumerate(leads):
        form = forms[owners[i]]
        extraction = trigger.extraction(form.kind, options=len(form.options))
        prompts[i] += (prompt_of(owners[i], lead + extraction),)
    answered = engine.generate(
        [own[-1] for own in prompts], max_new_tokens=reasoning.max_new_tokens, stop=STOPS
    )
    chains: list[list[_Chain]] = [[] for _ in queries]
    for i, generation in enumerate(answered):
        counts[owners[i]].add(generation)
        steps = leads[i].removeprefix(start)
        chains[owners[i]].append(_Chain(steps, generation.completions[0].text, prompts[i]))
    return chains
