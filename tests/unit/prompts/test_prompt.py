from __future__ import annotations

import pytest

from isthmus.errors import ConfigError, PromptError
from isthmus.prompts.prompt import Example, Prompt, without_tags
from isthmus.prompts.templates import plain, template_named

SHOT = Example("a.jpg", "How many?", "2")


def test_questions_are_flamingos_letter_by_letter() -> None:
    # Alayrac et al. 2022, appendix C.2; OpenFlamingo, eval/models and eval/evaluate.py
    prompt = plain([SHOT], Example("b.jpg", "What is it?"))
    assert prompt.text == (
        "<image>Question: How many? Answer: 2<|endofchunk|><image>Question: What is it? Answer:"
    )
    assert prompt.images == ("a.jpg", "b.jpg")


def test_captions_are_flamingos_letter_by_letter() -> None:
    prompt = plain([Example("a.jpg", answer="a dog")], Example("b.jpg"))
    assert prompt.text == "<image>Output: a dog<|endofchunk|><image>Output:"


def test_several_images_and_none() -> None:
    assert plain([], Example(("a", "b"), "Same?")).text == "<image><image>Question: Same? Answer:"
    assert plain([], Example((), "Two?")).text == "Question: Two? Answer:"


def test_a_query_equal_to_a_shot_is_still_a_query() -> None:
    assert plain([SHOT], SHOT).text.endswith("<image>Question: How many? Answer:")


@pytest.mark.parametrize("field", ["question", "answer"])
def test_tags_in_user_text_are_refused(field: str) -> None:
    example = Example("a", **{"question": "q", "answer": "a", field: "an <image> tag"})
    with pytest.raises(PromptError, match="more <image> tags than images"):
        plain([example], Example("b", "q"))


def test_a_shot_without_answer_is_refused() -> None:
    with pytest.raises(PromptError, match="has no answer"):
        plain([Example("a", "q")], Example("b", "q"))


def test_a_prompt_counts_its_images() -> None:
    with pytest.raises(PromptError, match="2 <image> tags and 1 images"):
        Prompt("<image><image>", ("a",))


def test_unknown_template() -> None:
    with pytest.raises(ConfigError, match='did you mean "plain"'):
        template_named("plane")


def test_a_models_own_text_can_be_put_into_a_prompt() -> None:
    written = "a <im<image>age> dog<|endofchunk|>"
    assert without_tags(written) == "a  dog"
    assert plain([], Example((), "Why?"), lead=without_tags(written)).text.endswith("a  dog")
