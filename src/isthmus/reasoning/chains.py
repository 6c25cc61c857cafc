"""From questions to chains: what is asked of the engine, in which order, for each way to reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from isthmus.generation.engine import Completion, Engine, Generation
from isthmus.prompts.prompt import Example, Prompt, without_tags
from isthmus.reasoning.decompose import BREAK_DOWN, parts_of
from isthmus.reasoning.wording import KOREAN, Trigger

if TYPE_CHECKING:
    from isthmus.reasoning.reason import Asked, Reasoning

STOPS = ("\n", "Question:", "Q:")
"""What ends an answer: a base language model left to itself goes on with the pattern."""
STEP_STOPS = ("Question:", "\nQ:")
"""What ends a chain, which may have several lines."""
TEMPERATURE = 0.7
"""Wang et al. 2022, section 3.1."""


@dataclass
class Chain:
    """One chain on its way.

    Attributes:
        steps: The steps, where they stand apart from the answer.
        text: The answer as the model wrote it.
        prompts: Every prompt so far.
    """

    steps: str
    text: str
    prompts: tuple[Prompt, ...]


@dataclass
class Count:
    """Tokens of one question."""

    prompt: int = 0
    cached: int = 0
    new: int = 0

    def add(self, generation: Generation) -> None:
        """Counts a generation, each of its samples with its new tokens."""
        self.prompt += generation.prompt_tokens
        self.cached += generation.cached_tokens
        self.new += sum(len(c.ids) for c in generation.completions)


@dataclass
class Questions:
    """Questions on their way to answers.

    Attributes:
        engine: Generates.
        queries: The questions.
        shots: Each one's demonstrations.
        reasoning: How answers are reached.
        forms: What is asked, by each.
        trigger: The reasoning's trigger.
        counts: Tokens of each question.
    """

    engine: Engine
    queries: Sequence[Example]
    shots: Sequence[Sequence[Example]]
    reasoning: Reasoning
    forms: Sequence[Asked]
    trigger: Trigger
    counts: list[Count] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [Count() for _ in self.queries]
        self._markers = tuple(self.engine.model.language.tokenizer.all_special_tokens)

    def prompt(self, number: int, lead: str = "", *, reason: bool | str = False) -> Prompt:
        """The prompt of a question whose answer begins with a lead."""
        query, shots = self.queries[number], self.shots[number]
        return self.forms[number].prompt(query, shots, lead=lead, reason=reason)

    def said(self, completion: Completion) -> str:
        """What the model wrote, fit to be put into a prompt.

        Nothing that it spells out may stand for an image or for a turn of a chat.
        """
        return without_tags(completion.text, self._markers).strip()

    def extraction(self, number: int) -> str:
        """What asks for a question's answer after its steps."""
        form = self.forms[number]
        return self.trigger.extraction(form.kind, options=len(form.options))

    def drawn(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str]
    ) -> list[Generation]:
        """Each question's chains, drawn from its prompt."""
        reasoning = self.reasoning
        usual = TEMPERATURE if reasoning.samples > 1 else 0.0
        written = self.engine.generate(
            prompts,
            max_new_tokens=max_new_tokens,
            stop=stop,
            samples=reasoning.samples,
            temperature=usual if reasoning.temperature is None else reasoning.temperature,
            top_p=reasoning.top_p,
            seed=reasoning.seed,
        )
        for count, generation in zip(self.counts, written, strict=True):
            count.add(generation)
        return written

    def read_off(
        self,
        prompts: Sequence[Prompt],
        owners: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str],
    ) -> list[str]:
        """The likeliest continuation of each prompt, which belongs to the question `owners`."""
        written = self.engine.generate(prompts, max_new_tokens=max_new_tokens, stop=stop)
        for owner, generation in zip(owners, written, strict=True):
            self.counts[owner].add(generation)
        return [self.said(generation.completions[0]) for generation in written]


def at_once(questions: Questions) -> list[list[Chain]]:
    """One prompt: the answer, or steps and answer in the manner of the demonstrations."""
    how = questions.reasoning
    steps = how.way == "cot"
    conclusion = questions.trigger.wording.conclusion if steps else False
    prompts = [
        questions.prompt(number, form.lead, reason=conclusion)
        for number, form in enumerate(questions.forms)
    ]
    most, stop = (how.max_step_tokens, STEP_STOPS) if steps else (how.max_new_tokens, STOPS)
    written = questions.drawn(prompts, most, stop)
    return [[Chain("", questions.said(c), (g.prompt,)) for c in g.completions] for g in written]


def two_stages(questions: Questions) -> list[list[Chain]]:
    """The trigger, then question, trigger, steps and an extraction prompt."""
    how, trigger = questions.reasoning, questions.trigger
    first = [questions.prompt(number, trigger.text) for number in range(len(questions.queries))]
    written = questions.drawn(first, how.max_step_tokens, STEP_STOPS)
    chains: list[list[Chain]] = []
    second: list[Prompt] = []
    owners: list[int] = []
    for number, generation in enumerate(written):
        form = questions.forms[number]
        branch = []
        for completion in generation.completions:
            steps = questions.said(completion)
            lead = trigger.answer_lead(
                f" {steps}" if steps else "", form.kind, options=len(form.options)
            )
            asking = questions.prompt(number, lead)
            # Chains of one question go on from the same states: its first prompt's. A chain that
            # is alone stands in a batch with those of other questions instead.
            if how.samples > 1:
                asking = replace(asking, shared=len(first[number].text))
            second.append(asking)
            owners.append(number)
            branch.append(Chain(steps, "", (first[number], asking)))
        chains.append(branch)
    answers = iter(questions.read_off(second, owners, how.max_new_tokens, STOPS))
    for branch in chains:
        for chain in branch:
            chain.text = next(answers)
    return chains


def least_to_most(questions: Questions) -> list[list[Chain]]:
    """A list of smaller questions, their answers one after the other, then the answer itself."""
    how = questions.reasoning
    start = BREAK_DOWN["ko" if questions.trigger.wording is KOREAN else "en"]
    first = [questions.prompt(number, start) for number in range(len(questions.queries))]
    written = questions.drawn(first, how.max_step_tokens, (*STEP_STOPS, "\n\n"))
    owners: list[int] = []
    leads: list[str] = []
    parts: list[list[str]] = []
    prompts: list[tuple[Prompt, ...]] = []
    for number, generation in enumerate(written):
        for completion in generation.completions:
            listed = parts_of(questions.said(completion))
            shown = " ".join(f"{i}. {part}" for i, part in enumerate(listed, 1))
            owners.append(number)
            leads.append(f"{start} {shown}" if listed else start)
            parts.append(listed)
            prompts.append((generation.prompt,))

    def go_on(live: list[int], most: int, stop: Sequence[str]) -> list[str]:
        for i in live:
            prompts[i] += (questions.prompt(owners[i], leads[i]),)
        return questions.read_off(
            [prompts[i][-1] for i in live], [owners[i] for i in live], most, stop
        )

    for step in range(max(map(len, parts))):
        live = [i for i, listed in enumerate(parts) if step < len(listed)]
        for i in live:
            leads[i] += f"\n{step + 1}."
        answers = go_on(live, how.max_step_tokens, ("\n", *STEP_STOPS))
        for i, answer in zip(live, answers, strict=True):
            leads[i] += f" {answer}"
    steps = [lead.removeprefix(start) for lead in leads]
    for i, owner in enumerate(owners):
        leads[i] += questions.extraction(owner)
    chains: list[list[Chain]] = [[] for _ in questions.queries]
    texts = go_on(list(range(len(owners))), how.max_new_tokens, STOPS)
    for i, text in enumerate(texts):
        chains[owners[i]].append(Chain(steps[i], text, prompts[i]))
    return chains
