"""Reasoning in steps: prompts letter by letter, what is parsed of what, and who wins a vote."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import isthmus as im
from isthmus.demonstrations.rationales import auto_cot, bootstrap, passes
from isthmus.errors import ConfigError, InputError
from isthmus.generation.engine import Completion, Engine
from isthmus.generation.requests import GenerationRequest
from isthmus.prompts.chat_template import chat_template
from isthmus.prompts.prompt import Example, Prompt
from isthmus.prompts.templates import plain, qa
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.decompose import parts_of
from isthmus.reasoning.drivers import solve
from isthmus.reasoning.method import Reasoning, reasoning_for
from isthmus.reasoning.question import Asked
from isthmus.reasoning.vote import vote
from isthmus.reasoning.wording import trigger_named

NUMBERS = Asked(qa, "number")


class Scripted:
    """Stands where an engine does and writes what a script says, since no tiny model reasons."""

    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())

    def __init__(self, script: Callable[[str, int], str]) -> None:
        self.script = script
        self.asked: list[Prompt] = []
        self.temperatures: list[float] = []

    def run(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.asked += [r.prompt for r in requests]
        self.temperatures += [r.temperature for r in requests]
        texts = [self.script(r.prompt.text, draw_of(r.seed or 0)) for r in requests]
        return [
            Completion(t, tuple(range(len(t))), prompt_tokens=10, cached_tokens=4) for t in texts
        ]


def draw_of(seed: int) -> int:
    """Number of a chain, or of an attempt, from the seed of its request."""
    return seed // 1_000_003 + seed % 1_000_003


def solved(script: Callable[[str, int], str], reasoning: Reasoning, **rest: Any) -> Answer:
    """The answer to one question by a script."""
    asked = rest.pop("asked", NUMBERS)
    query = rest.pop("query", Example((), "What is 2 + 3?"))
    engine: Any = rest.pop("engine", None) or Scripted(script)
    [solution] = solve(engine, [query], [rest.pop("shots", [])], reasoning, asked)
    return solution


def test_the_two_stages_letter_by_letter() -> None:
    def script(prompt: str, _: int) -> str:
        return "5." if prompt.endswith("is") else "2 and 3 more is 5."

    solution = solved(script, Reasoning("zero-cot"))
    first, second = solution.prompts
    assert first == "Q: What is 2 + 3?\nA: Let's think step by step."
    assert second == (
        "Q: What is 2 + 3?\nA: Let's think step by step. 2 and 3 more is 5. "
        "\nTherefore, the answer (arabic numerals) is"
    )
    assert (solution.parsed, solution.rationale) == ("5", "2 and 3 more is 5.")
    assert (solution.prompt_tokens, solution.cached_tokens) == (20, 8)


def test_korean() -> None:
    query = Example((), "사과 2개와 3개는 모두 몇 개야?")
    how = reasoning_for("auto")

    def script(prompt: str, _: int) -> str:
        return "다섯 개입니다." if prompt.endswith("(숫자로)") else "2에 3을 더하면 5입니다."

    solution = solved(script, how, query=query)
    assert solution.prompts[0].endswith("A: 차근차근 생각해봐.")
    assert solution.parsed == "5"


def test_few_shot_chain_of_thought_is_parsed_after_its_conclusion() -> None:
    shots = [Example((), "1 + 1?", "2", "One and one.")]
    solution = solved(
        lambda *_: "2 and 3, or 7 less 2. The answer is 5.", Reasoning("cot"), shots=shots
    )
    assert solution.prompts[0].startswith("Q: 1 + 1?\nA: One and one. The answer is 2.\n\n")
    assert solution.parsed == "5"
    assert solution.rationale == "2 and 3, or 7 less 2."
    with pytest.raises(ConfigError, match="rationale"):
        solved(lambda *_: "", Reasoning("cot"), shots=[Example((), "1 + 1?", "2")])


def test_few_shot_chain_of_thought_in_korean() -> None:
    shots = [Example((), "1 더하기 1은?", "2", "하나에 하나를 더한다.")]
    query = Example((), "2 더하기 3은?")
    how = reasoning_for("auto", shots)
    solution = solved(lambda *_: "2에 3을 더한다. 정답은 5입니다.", how, shots=shots, query=query)
    assert solution.prompts[0] == (
        "Q: 1 더하기 1은?\nA: 하나에 하나를 더한다. 정답은 2입니다.\n\nQ: 2 더하기 3은?\nA:"
    )
    assert (solution.parsed, solution.rationale) == ("5", "2에 3을 더한다.")


@pytest.mark.parametrize(
    ("asked", "extraction"),
    [
        (Asked(qa, "number"), "the answer (arabic numerals) is"),
        (Asked(qa, "yes_no"), "the answer (Yes or No) is"),
        (Asked(qa, "choice", ("red", "blue", "green")), "among A through C, the answer is"),
        (Asked(qa, "label", ("red", "blue")), "the answer is"),
        (Asked(qa, "text"), "the answer is"),
    ],
)
def test_the_second_stage_asks_for_each_kind_as_published(asked: Asked, extraction: str) -> None:
    # Kojima et al. 2022, main.py: question, trigger, chain, a space, and the prompt of the kind
    query = Example((), "Which colour?")
    engine = Scripted(lambda prompt, _: "blue" if prompt.endswith("is") else "The sky is meant.")
    solution = solved(engine.script, Reasoning("zero-cot"), engine=engine, asked=asked, query=query)
    assert [p.text for p in engine.asked] == [
        "Q: Which colour?\nA: Let's think step by step.",
        "Q: Which colour?\nA: Let's think step by step. The sky is meant. "
        f"\nTherefore, {extraction}",
    ]
    expected = {"choice": "B", "label": "blue", "text": "blue"}
    assert solution.parsed == expected.get(asked.kind)


def test_a_question_has_the_same_solution_alone_and_among_others() -> None:
    kinds = [Asked(qa, "number"), Asked(qa, "yes_no"), Asked(qa, "choice", ("red", "blue"))]
    queries = [Example((), f"{n}?") for n in range(3)]

    def script(prompt: str, n: int) -> str:
        if not prompt.endswith("is"):
            return f"draw {n} of {prompt[3]}."
        return "3" if "numerals" in prompt else "no" if "Yes" in prompt else "(B)"

    engine: Any = Scripted(script)
    how = Reasoning("zero-cot", samples=2)
    together = solve(engine, queries, [[]] * 3, how, kinds)
    assert [s.parsed for s in together] == ["3", "no", "B"]
    for query, form, solution in zip(queries, kinds, together, strict=True):
        assert solve(engine, [query], [[]], how, form) == [solution]
    assert solve(engine, [], [], how, NUMBERS) == []


def test_least_to_most_in_korean() -> None:
    query = Example((), "모두 몇 개야?")
    how = Reasoning("least-to-most")
    solution = solved(lambda p, _: "5개" if p.endswith("로)") else "1. 하나?", how, query=query)
    assert solution.prompts[0].endswith("A: 이 문제를 나누어 보자:")
    assert solution.prompts[-1].endswith("1. 1. 하나?\n따라서 정답은(숫자로)")
    assert solution.parsed == "5"


def test_least_to_most_answers_parts_in_order() -> None:
    written = {
        "problem:": "1. How many has Anna? 2. How many have they?\n",
        "have they?\n1.": "Anna has 7.",
        "7.\n2.": "Together 12.",
        "numerals) is": "12.",
    }

    def script(prompt: str, _: int) -> str:
        return next(text for end, text in written.items() if prompt.endswith(end))

    solution = solved(script, Reasoning("least-to-most"))
    assert solution.parsed == "12"
    assert solution.prompts[-1] == (
        "Q: What is 2 + 3?\nA: Let's break down this problem: 1. How many has Anna? "
        "2. How many have they?\n1. Anna has 7.\n2. Together 12."
        "\nTherefore, the answer (arabic numerals) is"
    )
    assert len(solution.prompts) == 4


def test_a_model_that_lists_nothing_is_asked_all_the_same() -> None:
    solution = solved(lambda p, _: "5" if p.endswith("is") else "hm", Reasoning("least-to-most"))
    assert (solution.parsed, len(solution.prompts)) == ("5", 2)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1. a?\n2. b?", ["a?", "b?"]),
        ("1) a? 2) b? 4) d?", ["a?", "b?"]),
        ("nothing", []),
        ("2. b?", []),
    ],
)
def test_parts(text: str, parts: list[str]) -> None:
    assert parts_of(text) == parts


def test_chains_vote_and_the_winners_steps_are_shown() -> None:
    chains = ["so it is 4", "so it is 5", "I do not know", "that makes 5"]

    def script(prompt: str, n: int) -> str:
        if not prompt.endswith("is"):
            return chains[n]
        return "?" if "know" in prompt else prompt.split(" \nTherefore")[0].split()[-1]

    engine = Scripted(script)
    solution = solved(script, Reasoning("zero-cot", samples=4), engine=engine)
    assert solution.parsed == "5"
    assert solution.votes == {"5": 2, "4": 1}
    assert solution.agreement == pytest.approx(2 / 3)
    assert solution.unparsed == pytest.approx(1 / 4)
    assert solution.rationale == "so it is 5"
    # chains are drawn, answers are read off
    assert engine.temperatures == [0.7] * 4 + [0.0] * 4
    # all chains go on from the states of the first prompt
    first = engine.asked[0]
    assert all(p is first for p in engine.asked[:4])
    assert all(p.text[: p.shared] == first.text for p in engine.asked[4:])


def test_a_tag_that_the_model_wrote_is_no_image() -> None:
    solution = solved(lambda p, _: "5" if p.endswith("is") else "<image> 5", Reasoning("zero-cot"))
    assert solution.parsed == "5"


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_marker_between_turns_that_the_model_spells_out_starts_no_turn() -> None:
    markers = ["<|im_start|>", "<|im_end|>"]
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    model.language.tokenizer.add_special_tokens({"additional_special_tokens": markers})
    model.language.tokenizer.chat_template = CHAT

    def script(prompt: str, _: int) -> str:
        return "5" if prompt.endswith("is") else "2 and <|im_end|><|im_<image>start|>3 is 5."

    for way, prompts in (("zero-cot", 2), ("least-to-most", 2)):
        engine = Scripted(script)
        engine.model = model
        asked = Asked(chat_template(model.language.tokenizer), "number")
        solution = solved(script, Reasoning(way), engine=engine, asked=asked)  # type: ignore[arg-type]
        assert (solution.parsed, len(solution.prompts)) == ("5", prompts)
        assert all(p.count("<|im_end|>") == 1 for p in solution.prompts)
    assert solved(script, Reasoning("zero-cot"), engine=engine).rationale == "2 and 3 is 5."


def test_what_reasoning_means() -> None:
    worked = Example((), "?", "1", "because")
    assert reasoning_for(None) == Reasoning("none")
    assert reasoning_for("auto", [worked]) == Reasoning("cot")
    assert reasoning_for("auto") == reasoning_for("zero-cot") == Reasoning("zero-cot")
    assert Reasoning().trigger_of("Why?") == trigger_named("step-by-step")
    assert Reasoning().trigger_of("왜?") == trigger_named("step-by-step-ko")
    assert reasoning_for(Reasoning(samples=3), seed=2) == Reasoning(samples=3, seed=2)
    with pytest.raises(ConfigError, match="samples"):
        Reasoning(samples=0)
    with pytest.raises(ConfigError, match="zero-cto"):
        Reasoning("zero-cto")  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", [im.Inline(), im.CrossAttention(every=2, gate=0.5)])
@pytest.mark.parametrize("way", ["none", "cot", "zero-cot", "least-to-most"])
def test_a_real_model_whatever_it_says(way: Any, fusion: Any) -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), fusion)
    shots = [Example(Image.new("RGB", (8, 8)), "1?", "2", "so")]
    queries = [Example(Image.new("RGB", (8, 8), c), "2 + 3?") for c in ("red", "blue")]
    how = Reasoning(way, samples=2, max_rationale_tokens=6, max_new_tokens=4)
    engine = Engine(model)
    together = solve(engine, queries, [shots, shots], how, Asked(plain, "number"))
    for query, solution in zip(queries, together, strict=True):
        [alone] = solve(Engine(model), [query], [shots], how, Asked(plain, "number"))
        assert alone.text == solution.text
        assert alone.prompts == solution.prompts
        assert solution.new_tokens > 0
    assert engine.statistics.cached_tokens > 0


# --- votes ----------------------------------------------------------------------------------------

answers = st.lists(st.one_of(st.none(), st.sampled_from(["1", "2", "3"])), max_size=12)


@given(answers)
def test_unparsed_never_wins_and_counts_for_nothing(found: list[str | None]) -> None:
    result = vote(found, "number")
    parsed = [a for a in found if a is not None]
    assert result == vote(found, "number")
    assert sum(result.votes.values()) == len(parsed)
    if not parsed:
        assert result.answer is None
        assert result.agreement is None
        return
    assert result.answer in parsed
    assert result.agreement is not None
    assert 0 < result.agreement <= 1
    assert result.votes[result.answer] == max(parsed.count(a) for a in parsed)
    assert found[result.chosen] == result.answer
    assert vote(parsed, "number").votes == result.votes


@given(answers, st.randoms(use_true_random=False))
def test_order_decides_nothing_but_ties(found: list[str | None], random: Any) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    one, two = vote(found, "number"), vote(shuffled, "number")
    assert one.agreement == two.agreement
    if list(one.votes.values()).count(max(one.votes.values(), default=0)) == 1:
        assert one.answer == two.answer


def test_the_same_number_written_otherwise_is_the_same_vote() -> None:
    result = vote(["7", "3", "3.0", "3.00"], "number")
    assert (result.answer, result.chosen, result.agreement) == ("3", 1, 0.75)


# --- rationales that nobody wrote -----------------------------------------------------------------


def chain(text: str | None, answer: str | None) -> Answer:
    return Answer("", "", ("",), 0, 0, 0, "stop", answer, 0.0, rationale=text)


@pytest.mark.parametrize(
    ("text", "answer", "fits"),
    [
        ("2 and 3. That makes 5.", "5", True),
        ("That makes 5", "5", False),  # breaks off
        ("5 it is. So we are done.", "5", False),  # the answer is not where the chain ends
        ("That makes 15.", "5", False),
        ("That makes 5.5.", "5", False),
        ("That makes 1,005.", "1005", True),
        ("So.", None, False),
        (None, "5", False),
        ("1.\n2.\n3.\n4.\n5.\nThat makes 5.", "5", False),
    ],
)
def test_which_chains_are_fit_to_be_shown(text: str | None, answer: str | None, fits: bool) -> None:
    assert passes("What is 2 + 3?", chain(text, answer), "number") is fits
    assert not passes("word " * 61, chain(text, answer), "number")


def adding(prompt: str, seed: int) -> str:
    """Adds two numbers in steps; what it says of numbers above 5 does not hold up."""
    a, b = (int(x) for x in prompt.split("What is ")[-1].split("?")[0].split(" + "))
    if prompt.endswith("is"):
        return str(a + b)
    return f"{a} and {b} more. That makes {a + b}" + ("." if a <= 5 else "")


def test_auto_cot_takes_one_chain_that_holds_up_of_each_cluster() -> None:
    questions = [Example((), f"What is {n} + 1?", "999", "mine") for n in (9, 1, 7, 3)]
    engine: Any = Scripted(adding)
    vectors = [[0.0, 1.0], [0.0, 0.9], [1.0, 0.0], [0.9, 0.1]]
    found = auto_cot(engine, questions, 2, Reasoning("zero-cot"), NUMBERS, embed=lambda _: vectors)
    # of each cluster the first that passes, and nobody looked at the answers given
    trigger = trigger_named("step-by-step").text
    assert [w.example.question for w in found] == ["What is 1 + 1?", "What is 3 + 1?"]
    assert [w.example.answer for w in found] == ["2", "4"]
    assert found[0].example.rationale == f"{trigger} 1 and 1 more. That makes 2."
    assert found[0].made == {
        "by": "auto-cot",
        "trigger": trigger,
        "seed": 0,
        "cluster": 0,
        "question": 1,
        "kept": "nearest to its cluster's centre that passed the filters",
    }
    assert "999" not in "".join(p.text for p in engine.asked)
    with pytest.raises(InputError, match="4 questions for 5"):
        auto_cot(engine, questions, 5, Reasoning("zero-cot"), NUMBERS)


@pytest.mark.parametrize(("middle", "taken", "tried"), [(2, "2 + 1", 1), (9, "3 + 1", 2)])
def test_auto_cot_walks_a_cluster_from_its_centre(middle: int, taken: str, tried: int) -> None:
    # the question at angle 0 is nearest to the centre, then that at 0.3, then that at -0.7
    questions = [Example((), f"What is {n} + 1?") for n in (1, 3, middle)]
    vectors = [[math.cos(a), math.sin(a)] for a in (-0.7, 0.3, 0.0)]
    engine: Any = Scripted(adding)
    how = Reasoning("zero-cot")
    found = auto_cot(engine, questions, 1, how, NUMBERS, embed=lambda _: vectors, at_once=1)
    assert [w.example.question for w in found] == [f"What is {taken}?"]
    assert len(engine.asked) == 2 * tried  # those further out are never asked


def test_a_cluster_without_a_good_chain_gives_none() -> None:
    questions = [Example((), f"What is {n} + 1?") for n in (9, 8, 1)]
    vectors = [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    engine: Any = Scripted(adding)
    found = auto_cot(engine, questions, 2, Reasoning("zero-cot"), NUMBERS, embed=lambda _: vectors)
    assert [w.made["cluster"] for w in found] == [1]


def test_bootstrapping_keeps_chains_that_reach_the_answer() -> None:
    def script(prompt: str, seed: int) -> str:
        question = prompt.split("Q: ")[-1]
        if not prompt.endswith("is"):
            return f"steps of draw {seed}."
        if "hard" in question:  # found at the second draw only
            return "7" if "draw 2" in prompt else "1"
        if "hopeless" in question:
            return "9" if "The answer is 9." in question else "0"
        return "5"

    labelled = [
        Example((), "easy?", "5"),
        Example((), "hard?", "7"),
        Example((), "hopeless?", "9"),
    ]
    engine: Any = Scripted(script)
    how = Reasoning("zero-cot")
    found = bootstrap(engine, labelled, 3, how, NUMBERS, attempts=3)
    assert [(w.example.question, w.made["attempt"]) for w in found] == [("easy?", 1), ("hard?", 3)]
    assert found[1].example.rationale == "steps of draw 2."
    hinted = bootstrap(engine, labelled, 3, how, NUMBERS, attempts=3, hint=True)
    assert [w.made["by"] for w in hinted][2] == "bootstrap with the answer as a hint"
    assert hinted[2].example.question == "hopeless?"  # the hint is not in the demonstration
    assert [w.made["kept"] for w in hinted][1:] == [
        "reaches the known answer",
        "reaches the known answer, which it was told",
    ]
    assert len(bootstrap(engine, labelled, 1, how, NUMBERS)) == 1
    with pytest.raises(InputError, match="has no answer"):
        bootstrap(engine, [Example((), "x?")], 1, how, NUMBERS)


def test_the_hint_is_in_the_questions_language() -> None:
    engine: Any = Scripted(lambda prompt, _: "모른다.")
    labelled = [Example((), "몇 개야?", "3")]
    assert bootstrap(engine, labelled, 1, Reasoning("zero-cot"), NUMBERS, hint=True) == []
    assert "Q: 몇 개야? 정답은 3입니다.\n" in engine.asked[-1].text


def test_each_question_has_choices_of_its_own() -> None:
    def script(prompt: str, _: int) -> str:
        asks = prompt.endswith("is")
        return "the last" if asks and "through C" in prompt else "It is blue."

    forms = [Asked(qa, "choice", ("red", "blue")), Asked(qa, "choice", ("no", "not", "the last"))]
    labelled = [Example((), "1?", "B"), Example((), "2?", "C")]
    engine: Any = Scripted(script)
    how = Reasoning("zero-cot")
    assert [w.example.answer for w in bootstrap(engine, labelled, 2, how, forms)] == ["B", "C"]
    vectors = [[0.0, 1.0], [1.0, 0.0]]
    found = auto_cot(engine, labelled, 2, how, forms, embed=lambda _: vectors)
    assert {w.example.question: w.example.answer for w in found} == {"1?": "B", "2?": "C"}
