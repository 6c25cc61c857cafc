from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.errors import ConfigError, PromptError
from isthmus.evaluation.task import Item, Task

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


def test_a_image_is_the_same_as_a_path_bytes_a_file_and_opened(
    model: im.VisionLanguageModel, tmp_path: Path
) -> None:
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    path = tmp_path / "picture.png"
    image.save(path)
    with path.open("rb") as file:
        forms = [image, path, str(path), path.read_bytes(), bytearray(path.read_bytes()), file]
        answers = [im.ask(model, [form], "What is it?", max_new_tokens=6) for form in forms]
    assert len({answer.text for answer in answers}) == 1
    assert len({answer.prompt_tokens for answer in answers}) == 1
    named = im.evaluate(model, task_of(path), shots=[0], limit=1)
    assert named.rows[0].n == 1


def task_of(path: Path) -> Task:
    """A task whose image is a path."""
    return Task("t", "text", [Item("a", im.Example(path, "What is it?", "noise"))])


# --- in steps -------------------------------------------------------------------------------------

BRIEF = im.Reasoning("zero-cot", max_rationale_tokens=3, max_new_tokens=2)


def test_auto_takes_the_way_that_the_examples_show(model: im.VisionLanguageModel) -> None:
    plain = im.Example(PICTURE, "1 + 1?", "2")
    worked = im.Example(PICTURE, "1 + 1?", "2", rationale="One more.")
    few = im.ask(model, PICTURE, "2 + 3?", shots=[worked], reasoning="auto")
    assert few.prompt == (
        "<image>Question: 1 + 1? Answer: One more. The answer is 2.<|endofchunk|>"
        "<image>Question: 2 + 3? Answer:"
    )
    assert few.prompts == (few.prompt,)
    two = im.ask(model, PICTURE, "2 + 3?", shots=[plain], reasoning="auto", max_new_tokens=2)
    assert two.prompts[0] == (
        "<image>Question: 1 + 1? Answer: 2<|endofchunk|>"
        "<image>Question: 2 + 3? Answer: Let's think step by step."
    )
    assert two.prompts[1].startswith(two.prompts[0])
    assert two.prompts[1].endswith(" \nTherefore, the answer is")
    korean = im.ask(model, (), "몇 개야?", reasoning="auto", max_new_tokens=2)
    assert korean.prompts[0] == "Question: 몇 개야? Answer: 차근차근 생각해봐."


def test_a_reasonings_own_lengths_hold_unless_another_is_given(
    model: im.VisionLanguageModel,
) -> None:
    chosen = im.ask(model, (), "2 + 3?", reasoning=BRIEF)
    assert chosen.new_tokens == 3 + 2
    assert im.ask(model, (), "2 + 3?", reasoning=BRIEF, max_new_tokens=4).new_tokens == 3 + 4


def test_one_engine_and_one_question_agree(model: im.VisionLanguageModel) -> None:
    from isthmus.prompts.templates import plain
    from isthmus.reasoning.drivers import solve
    from isthmus.reasoning.question import Asked

    alone = im.ask(model, PICTURE, "2 + 3?", reasoning=BRIEF)
    queries = [im.Example(PICTURE, q) for q in ("2 + 3?", "Why not?")]
    first, _ = solve(im.Engine(model), queries, [[], []], BRIEF, Asked(plain))
    assert (alone.text, alone.rationale, alone.prompts) == (
        first.text,
        first.rationale,
        first.prompts,
    )


def test_options_that_say_the_same_twice(model: im.VisionLanguageModel) -> None:
    with pytest.raises(ConfigError, match="would all be the same"):
        im.ask(model, PICTURE, "Why?", samples=2, temperature=0.0)
    with pytest.raises(ConfigError, match="no demonstration has a rationale"):
        im.ask(model, PICTURE, "Why?", reasoning=im.Reasoning("cot"))
    with pytest.raises(ConfigError, match="choices"):
        im.ask(model, PICTURE, "Why?", reasoning=BRIEF, kind="choice")
