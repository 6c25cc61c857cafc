from __future__ import annotations

import pytest
import torch

import isthmus as im
from isthmus.errors import ConfigError, PromptError

PICTURE = torch.zeros(3, 32, 32)


@pytest.fixture
def model() -> im.VisionLanguageModel:
    torch.manual_seed(0)
    return im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))


def test_a_reader_who_leaves_ends_the_stream(model: im.VisionLanguageModel) -> None:
    steps = []
    model.language.model.register_forward_hook(lambda *_: steps.append(1))
    pieces = im.stream(model, (), "Count to a thousand.", max_new_tokens=2000, stop=())
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert len(steps) < 2000
    text = model.prepare(["words"])
    bare = model.language.model(input_ids=text.input_ids).logits
    assert torch.equal(model(text).logits, bare)


def test_an_empty_stop_string_is_refused(model: im.VisionLanguageModel) -> None:
    with pytest.raises(PromptError, match="empty stop string"):
        im.ask(model, (), "Why?", stop=("",))


# --- in steps -------------------------------------------------------------------------------------

BRIEF = im.Reasoning("zero-cot", max_step_tokens=3, max_new_tokens=2)


def test_reason_alone_takes_the_way_that_the_examples_show(model: im.VisionLanguageModel) -> None:
    plain = im.Example(PICTURE, "1 + 1?", "2")
    worked = im.Example(PICTURE, "1 + 1?", "2", rationale="One more.")
    few = im.ask(model, PICTURE, "2 + 3?", shots=[worked], reason=True)
    assert few.prompt == (
        "<image>Question: 1 + 1? Answer: One more. The answer is 2.<|endofchunk|>"
        "<image>Question: 2 + 3? Answer:"
    )
    assert few.prompts == (few.prompt,)
    two = im.ask(model, PICTURE, "2 + 3?", shots=[plain], reason=True, max_new_tokens=2)
    assert two.prompts[0] == (
        "<image>Question: 1 + 1? Answer: 2<|endofchunk|>"
        "<image>Question: 2 + 3? Answer: Let's think step by step."
    )
    assert two.prompts[1].startswith(two.prompts[0])
    assert two.prompts[1].endswith(" \nTherefore, the answer is")
    korean = im.ask(model, (), "몇 개야?", reason=True, max_new_tokens=2)
    assert korean.prompts[0] == "Question: 몇 개야? Answer: 차근차근 생각해봐."


def test_a_reasonings_own_lengths_hold_unless_another_is_given(
    model: im.VisionLanguageModel,
) -> None:
    chosen = im.ask(model, (), "2 + 3?", reason=BRIEF)
    assert chosen.new_tokens == 3 + 2
    assert im.ask(model, (), "2 + 3?", reason=BRIEF, max_new_tokens=4).new_tokens == 3 + 4


def test_one_engine_and_one_question_agree(model: im.VisionLanguageModel) -> None:
    from isthmus.prompting.reason import Asked, solve
    from isthmus.templates import plain

    alone = im.ask(model, PICTURE, "2 + 3?", reason=BRIEF)
    queries = [im.Example(PICTURE, q) for q in ("2 + 3?", "Why not?")]
    first, _ = solve(im.Engine(model), queries, [[], []], BRIEF, Asked(plain))
    assert (alone.rationale, alone.prompts) == (
        first.rationale,
        tuple(p.text for p in first.prompts),
    )
    assert alone.text == (first.answer or first.text)


def test_options_that_say_the_same_twice(model: im.VisionLanguageModel) -> None:
    with pytest.raises(ConfigError, match="temperature cannot go with reason"):
        im.ask(model, PICTURE, "Why?", reason=True, temperature=1.0)
    with pytest.raises(ConfigError, match="no demonstration has a rationale"):
        im.ask(model, PICTURE, "Why?", reason=im.Reasoning("cot"))
    with pytest.raises(ConfigError, match="choices"):
        im.ask(model, PICTURE, "Why?", reason=BRIEF, kind="choice")
