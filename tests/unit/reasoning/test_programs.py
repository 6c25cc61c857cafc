"""Programs: what is asked, letter by letter and in which order, and what is made of the texts.

A script answers for the model, since no tiny model reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import PromptError
from isthmus.generation.engine import Completion
from isthmus.generation.requests import Delta, Finished, GenerationRequest, Usage
from isthmus.generation.ticket import Ticket
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import plain, qa
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.drivers import run, streamed
from isthmus.reasoning.live import AnswerStream, Piece
from isthmus.reasoning.method import Reasoning
from isthmus.reasoning.programs import Program, advance
from isthmus.reasoning.question import Asked
from isthmus.reasoning.vote import program_for

GOLDEN = Path(__file__).parents[2] / "golden" / "programs"


Respond = Callable[[GenerationRequest], str]


def by_ending(**texts: str) -> Respond:
    """Answers a prompt by what it ends with."""

    def respond(request: GenerationRequest) -> str:
        return next(t for end, t in texts.items() if request.prompt.text.endswith(end))

    return respond


def chains(request: GenerationRequest) -> str:
    """Three chains, two of which agree, told apart by their seeds."""
    if request.temperature:
        return (" 7 and 5 is 12.", " I count 11.", " 12 in all.")[(request.seed or 0) // 1_000_003]
    return " 11." if "11" in request.prompt.text else " 12."


@dataclass
class Case:
    """A question, how it is answered, and who answers for the model."""

    how: Reasoning
    respond: Respond
    query: Example = field(default_factory=lambda: Example((), "How many eggs have they?"))
    shots: Sequence[Example] = ()
    asked: Asked = field(default_factory=lambda: Asked(qa, "number"))

    def program(self) -> Program:
        """The program, not begun."""
        return program_for(self.asked.question(self.query, self.shots), self.how)


WORKED = Example((), "How many legs have 2 hens?", "4", "A hen has 2. 2 times 2 is 4.")
AUTO = Example((), WORKED.question, "4", f"Let's think step by step. {WORKED.rationale}")
KOREAN = Example((), "달걀은 모두 몇 개야?")
PARTS = {
    "problem:": " 1. How many has Anna? 2. How many has Ben?\n",
    "has Ben?\n1.": " Anna has 7.",
    "7.\n2.": " Ben has 5.",
    "numerals) is": " 12.",
}
CASES: dict[str, Case] = {
    "at_once": Case(
        Reasoning(max_new_tokens=8),
        lambda request: " eggs",
        Example(("eggs.jpg",), "What is this?"),
        asked=Asked(plain),
    ),
    "cot": Case(
        Reasoning("cot"),
        lambda request: " Anna has 7 and Ben has 5. The answer is 12.",
        shots=[WORKED],
    ),
    "cot_after_auto_cot": Case(
        Reasoning("cot"),
        lambda request: " 7 and 5 is 12. The answer is 12.",
        shots=[AUTO],
    ),
    "zero_cot": Case(
        Reasoning("zero-cot"),
        by_ending(**{"step by step.": " 7 and 5 is 12.", "numerals) is": " 12."}),
    ),
    "zero_cot_korean": Case(
        Reasoning("zero-cot"),
        by_ending(**{"생각해봐.": " 7 더하기 5는 12입니다.", "(숫자로)": " 12개입니다."}),
        KOREAN,
    ),
    "least_to_most": Case(Reasoning("least-to-most"), by_ending(**PARTS)),
    "least_to_most_korean": Case(
        Reasoning("least-to-most"),
        by_ending(**{"보자:": " 1. 누가 가졌나?", "나?\n1.": " 안나가 12개.", "로)": " 12개"}),
        KOREAN,
    ),
    "zero_cot_vote": Case(Reasoning("zero-cot", samples=3, seed=4), chains),
    "vote_at_once": Case(Reasoning(samples=3, temperature=1.0, top_p=0.9), chains),
}


class Scripted:
    """Stands where an engine does, offline or a server's, and writes what a script says."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.asked: list[GenerationRequest] = []

    def completion(self, request: GenerationRequest) -> Completion:
        """The script's text, cut at a stop string; a token is a character."""
        self.asked.append(request)
        text = self.respond(request)
        cuts = [text.index(stop) for stop in request.stop if stop in text]
        text = text[: min(cuts, default=len(text))]
        ended = "stop" if len(text) < request.max_new_tokens else "length"
        ids = tuple(range(min(len(text), request.max_new_tokens)))
        said = text[: request.max_new_tokens]
        return Completion(said, ids, ended, prompt_tokens=len(request.prompt.text), cached_tokens=3)

    def run(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """As `Engine.run`."""
        return [self.completion(request) for request in requests]

    def stream(self, request: GenerationRequest) -> Iterator[Delta | Finished]:
        """As `Engine.stream`, character by character."""
        made = self.completion(request)
        yield from map(Delta, made.text)
        usage = Usage(made.prompt_tokens, made.new_tokens, made.cached_tokens)
        yield Finished(made.reason, usage, None, 0.0)

    def submit(self, request: GenerationRequest) -> Ticket:
        """As `ServingEngine.submit`."""
        ticket = Ticket(lambda ticket: None)
        for event in self.stream(request):
            ticket.put(event)
        return ticket


def transcript(case: Case) -> tuple[str, Answer]:
    """Everything that is asked and answered, as a text, and what comes of it."""
    engine, program, lines = Scripted(case.respond), case.program(), []
    step = advance(program)
    while not isinstance(step, Answer):
        lines.append(f"=== {len(step)} at once" if len(step) > 1 else "=== 1")
        for call in step:
            r = call.request
            drawn = f", drawn at {r.temperature} with seed {r.seed}" if r.temperature else ""
            lines.append(
                f"--- {call.part}: {r.max_new_tokens} tokens, to {list(r.stop)}"
                f"{drawn}\n{r.prompt.text}[...]\n--- the model\n{case.respond(r)}[end]"
            )
        step = advance(program, [engine.completion(call.request) for call in step])
    told = {"text": step.text, "parsed": step.parsed, "rationale": step.rationale}
    told |= {"votes": step.votes or None, "finish_reason": step.finish_reason}
    lines.append("=== answer")
    lines += [f"{name}: {value!r}" for name, value in told.items()]
    return "\n".join(lines) + "\n", step


@pytest.mark.parametrize("name", CASES)
def test_the_exact_sequence_of_prompts(name: str) -> None:
    text, _ = transcript(CASES[name])
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_file_is_of_a_program() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(CASES)


async def lived(case: Case, engine: Any, **options: Any) -> tuple[list[Piece], Answer]:
    stream = AnswerStream(engine, case.program(), **options)
    await stream.start()
    pieces: list[Piece] = []
    async for event in stream.events():
        if isinstance(event, Answer):
            return pieces, event
        pieces.append(event)
    raise AssertionError


@pytest.mark.parametrize("name", CASES)
def test_every_driver_gives_the_same_answer(name: str) -> None:
    case = CASES[name]
    _, expected = transcript(case)
    engine: Any = Scripted(case.respond)
    assert run(engine, [case.program()]) == [expected]
    assert "".join(streamed(engine, case.program())) == expected.text
    pieces, answer = asyncio.run(lived(case, engine))
    assert answer == expected
    assert "".join(p.text for p in pieces if p.part == "answer") == expected.text
    steps = "".join(p.text for p in pieces if p.part == "rationale")
    assert steps.strip() == (expected.rationale or "")
    if case.how.samples == 1 and case.how.way != "none":
        assert len([p for p in pieces if p.part == "rationale"]) > 4  # told as it is written


def test_programs_side_by_side_are_as_each_alone() -> None:
    """Programs of different lengths in one batch; each is sent what is its own."""
    ways = ("none", "zero-cot", "least-to-most")
    respond = by_ending(**PARTS, **{"step by step.": " 7 and 5 is 12.", "A:": " 12"})
    cases = [Case(Reasoning(way), respond) for way in ways]  # type: ignore[arg-type]
    cases.append(Case(Reasoning("zero-cot", samples=2), respond))
    engine: Any = Scripted(respond)
    together = run(engine, [case.program() for case in cases])
    assert together == [transcript(case)[1] for case in cases]
    assert [a.parsed for a in together] == ["12"] * 4
    assert [len(a.prompts) for a in together] == [1, 2, 4, 2]


def test_a_vote_counts_the_shared_prompt_once() -> None:
    _, answer = transcript(CASES["zero_cot_vote"])
    first, second = answer.prompts
    seconds = len(second) + len(second.replace("7 and 5 is 12.", "I count 11."))
    seconds += len(second.replace("7 and 5 is 12.", "12 in all."))
    assert answer.prompt_tokens == len(first) + seconds
    assert answer.votes == {"12": 2, "11": 1}
    assert answer.agreement == pytest.approx(2 / 3)


def test_a_chain_ends_where_its_tokens_do() -> None:
    case = CASES["least_to_most"]
    for most in (1, 30, 60):
        how = Reasoning("least-to-most", max_chain_tokens=most)
        _, answer = transcript(Case(how, case.respond))
        assert answer.new_tokens <= most
        assert answer.finish_reason == "length"
    _, whole = transcript(Case(Reasoning("least-to-most", max_chain_tokens=999), case.respond))
    assert whole.finish_reason == "stop"
    assert whole == transcript(case)[1]


class Short(Scripted):
    """An engine whose context holds few characters."""

    most = 80

    def completion(self, request: Any) -> Any:
        if len(request.prompt.text) > self.most:
            raise PromptError("the prompt is too long")
        return super().completion(request)


@pytest.mark.parametrize("name", ["zero_cot", "least_to_most", "zero_cot_vote"])
def test_steps_that_fill_the_context_leave_no_room_to_ask_in(name: str) -> None:
    case = CASES[name]
    engine: Any = Short(case.respond)
    [answer] = run(engine, [case.program()])
    assert (answer.parsed, answer.text, answer.finish_reason) == (None, "", "length")
    assert "".join(streamed(engine, case.program())) == ""
    assert asyncio.run(lived(case, engine))[1] == answer
    engine.most = 8  # and a question that does not fit is refused
    with pytest.raises(PromptError, match="too long"):
        run(engine, [case.program()])
    with pytest.raises(PromptError, match="too long"):
        asyncio.run(lived(case, engine))


def test_what_is_asked_besides_reaches_every_request() -> None:
    case = CASES["zero_cot"]
    engine: Any = Scripted(case.respond)
    asyncio.run(lived(case, engine, adapt=lambda r: replace(r, presence_penalty=0.5), timeout_s=9))
    assert [r.presence_penalty for r in engine.asked] == [0.5, 0.5]
    assert all(0 < (r.deadline_s or 0) <= 9 for r in engine.asked)


def test_nothing_that_was_written_stands_for_a_image_or_a_turn() -> None:
    question = Asked(qa, "number").question(Example((), "2 + 3?"), markers=("<|im_end|>",))
    program = program_for(question, Reasoning("zero-cot"))
    engine: Any = Scripted(lambda request: " <image>2<|im_end|> and 3 is 5.")
    [answer] = run(engine, [program])
    assert answer.rationale == "2 and 3 is 5."
    assert all("<image>" not in p and "<|im_end|>" not in p for p in answer.prompts)
