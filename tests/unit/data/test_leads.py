"""What leads an answer in is trained as it is prompted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import isthmus as im
from isthmus.data.records import Record
from isthmus.data.rows import to_record
from isthmus.data.samples import tokenize
from isthmus.generation.requests import GenerationRequest
from isthmus.media.file_ref import FileRef
from isthmus.prompts.prompt import Example, Prompt
from isthmus.prompts.templates import TEMPLATES
from isthmus.reasoning.method import Reasoning
from isthmus.reasoning.programs import zero_shot
from isthmus.reasoning.question import Asked

A = FileRef(Path("a.png"))
STEPS = "On the left: an onion, a bank. So 1."
TRIGGER = "Let's think step by step."


@pytest.fixture(scope="module")
def model() -> im.VisionLanguageModel:
    return im.compose("tiny-vit", "tiny-lm", im.Pool(tokens=4), im.Inline())


def row(lead: str, answer: str, question: str = "How many?") -> Record:
    values = {"image": "a.png", "question": question, "lead": lead, "answer": answer}
    return to_record(values, lambda name: FileRef(Path(name)), "line 1")


class Said:
    """A completion with the steps."""

    text, reason, new_tokens, prompt_tokens, cached_tokens = f" {STEPS}", "stop", 9, 9, 0


def prompts(template: str, question: str) -> list[Prompt]:
    """Both prompts of a zero-shot chain of thought."""
    asked = Asked(TEMPLATES[template], "number").question(Example(A, question))
    program = zero_shot(asked, Reasoning("zero-cot"), 0)
    requests: list[GenerationRequest] = [call.request for call in next(program)]
    requests += [call.request for call in program.send([Said()])]
    return [request.prompt for request in requests]


@pytest.mark.parametrize("template", ["plain", "qa", "openflamingo"])
@pytest.mark.parametrize("question", ["How many?", "몇 개야?"])
def test_a_lead_is_trained_as_a_trigger_prompts(
    model: im.VisionLanguageModel, template: str, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "config", replace(model.config, template=template))
    first, second = prompts(template, question)
    for prompt, answer in ((first, STEPS), (second, "1.")):
        lead = prompt.spans[-1].text
        sample = tokenize(model, row(lead, answer, question))
        asked = model.encode_text(prompt.spans, [model.layout])
        start = sample.learned.index(True)
        assert sample.ids[:start] == asked
        learned = sample.ids[start:]
        end = TEMPLATES[template].end
        assert learned == model.special_tokens.encode(f" {answer}{end}")
        assert all(sample.learned[start:])
    assert first.spans[-1].text in (TRIGGER, "차근차근 생각해봐.")


def test_a_demonstration_shows_its_lead() -> None:
    shot = Example(A, "How many?", "1", STEPS, lead=TRIGGER)
    text = TEMPLATES["plain"]([shot], Example(A, "And now?"), conclusion="It is {answer}.").text
    assert f"Answer: {TRIGGER} {STEPS} It is 1.<|endofchunk|>" in text


def test_only_the_turns_that_are_led_in_change(model: im.VisionLanguageModel) -> None:
    plain = Example(A, "What?", "a cat")
    led = Example((), "Sure?", "Yes.", lead="Hm.")
    sample = tokenize(model, Record((plain, led)))
    tags = model.special_tokens
    said = [i for i, flag in zip(sample.ids, sample.learned, strict=True) if flag]
    assert said == tags.encode(" a cat<|endofchunk|> Yes.<|endofchunk|>")
    asked = TEMPLATES["plain"]([plain], Example((), "Sure?"), lead="Hm.")
    assert sample.ids[: -len(tags.encode(" Yes.<|endofchunk|>"))] == model.encode_text(
        asked.spans, [model.layout]
    )
    shown = tokenize(model, Record((plain, replace(led, learned=False))))
    assert sum(shown.learned) == len(tags.encode(" a cat<|endofchunk|>"))
