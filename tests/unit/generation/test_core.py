"""One core: whoever asks - an engine, a stream, `ask`, a server - gets the same text."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus import testing
from isthmus.errors import PromptError
from isthmus.generation.apart import Apart
from isthmus.generation.decoding import Decoding
from isthmus.generation.engine import Engine
from isthmus.generation.requests import Delta, Finished, GenerationRequest
from isthmus.generation.rows import Encoded, Rows
from isthmus.generation.server import ServingEngine
from isthmus.generation.tiers import Tiers
from isthmus.model.backbones.tiny import FAMILIES, byte_tokenizer, tiny_language_model
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example, Prompt
from isthmus.prompts.templates import template_named
from isthmus.reasoning.question import STOPS

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "last": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2),
    "previous": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, sees="previous"),
    "hybrid": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, inline=True, gate=0.5),
}


def model_of(family: str = "llama", fusion: str = "hybrid") -> VisionLanguageModel:
    """A tiny model whose images count."""
    torch.manual_seed(0)
    language = tiny_language_model(family)
    connector = im.Resampler(latents=3, depth=1, heads=2, head_dim=8)
    made = im.compose("tiny-vit", language, connector, FUSIONS[fusion], tokenizer=byte_tokenizer())
    testing.open_gates(made)
    with torch.no_grad():
        for parameter in made.fusion.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return made.eval()


def image(number: int) -> Image.Image:
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(noise.to(torch.uint8).numpy())


PICTURES = [image(n) for n in range(3)]
START = "<image>Q: 1? A: 2<|endofchunk|>"


def random_request(chance: random.Random) -> GenerationRequest:
    """A prompt of images and texts, half of them with a beginning that others share."""
    text, images = "", []
    if chance.random() < 0.5:
        text, images = START, [PICTURES[0]]
    shared = len(text)
    for _ in range(chance.randint(1, 3)):
        if chance.random() < 0.4:
            text += "<image>"
            images.append(chance.choice(PICTURES))
        else:
            text += chance.choice(("Q: a", "b? A:", "Why", "a longer question than that"))
    warm: dict[str, Any] = {"temperature": 1.0, "seed": chance.randint(0, 99)}
    return GenerationRequest(
        prompt=Prompt(text, tuple(images), shared),
        max_new_tokens=chance.randint(0, 9),
        stop=chance.choice(((), ("e", "\n"))),
        **chance.choice(({}, warm, {**warm, "top_p": 0.8}, {**warm, "top_k": 5})),
    )


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_request_has_one_text_whoever_asks_and_whatever_else_is_asked(
    family: str, fusion: str
) -> None:
    model = model_of(family, fusion)
    chance = random.Random(0)
    asked = [random_request(chance) for _ in range(24)]
    alone = [Engine(model, batch_size=1).run([request])[0] for request in asked]
    texts, ids = [made.text for made in alone], [made.ids for made in alone]
    engine = Engine(model, batch_size=5)
    order = list(range(len(asked)))
    for _ in range(2):  # the second time with prefixes that are there
        chance.shuffle(order)
        together = engine.run([asked[n] for n in order])
        assert [made.ids for made in together] == [ids[n] for n in order]
        assert [made.text for made in together] == [texts[n] for n in order]
        for n, made in zip(order, together, strict=True):
            assert made.logprob == pytest.approx(alone[n].logprob, abs=1e-3)
    streamed = [
        "".join(event.text for event in engine.stream(request) if isinstance(event, Delta))
        for request in asked
    ]
    assert [text.strip() for text in streamed] == texts
    with ServingEngine(model, max_batch=4, prefill_tokens=9) as server:
        tickets = [server.submit(request) for request in asked]
        served = [ticket.result() for ticket in tickets]
    assert [text for text, _, _ in served] == streamed
    assert [done.usage.completion_tokens for _, _, done in served] == [len(i) for i in ids]
    assert len({text for text in texts if text}) > 8


def test_a_seed_gives_ask_the_text_of_the_engine_and_of_the_server() -> None:
    model = model_of()
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_new_tokens": 12}
    render = template_named(model.config.template, model.language.tokenizer)
    prompt = render([], Example(PICTURES[0], "What is it?"))
    [[expected]] = [g.completions for g in Engine(model).generate([prompt], stop=STOPS, **options)]
    assert im.ask(model, PICTURES[0], "What is it?", **options).text == expected.text
    pieces = im.stream(model, PICTURES[0], "What is it?", **options)
    assert "".join(pieces) == expected.text
    with ServingEngine(model) as server:
        request = GenerationRequest(prompt=prompt, stop=tuple(STOPS), **options)
        assert server.submit(request).result()[0].strip() == expected.text
    other = im.ask(model, PICTURES[0], "What is it?", **{**options, "seed": 4})
    assert other.text != expected.text


# --- what the context has room for ----------------------------------------------------------------


@pytest.mark.parametrize("ask", [im.ask, lambda *a: list(im.stream(*a))], ids=["ask", "stream"])
def test_a_prompt_without_room_is_refused_at_once_with_the_numbers(ask: Callable[..., Any]) -> None:
    model = model_of()

    def never(*args: Any) -> None:
        raise AssertionError("something was computed")

    model.language.model.register_forward_pre_hook(never)
    with pytest.raises(PromptError, match=r"has 41\d\d\d tokens and the model's context 1024"):
        ask(model, (), "word " * 8300)
    with pytest.raises(PromptError, match="context 1024"):
        Engine(model).score([Prompt("a" * 1020)], ["abcdef"])


def test_nothing_is_generated_where_nothing_is_asked_for() -> None:
    model = model_of()
    [made] = Engine(model).generate([Prompt("Hi")], max_new_tokens=0)
    [none] = made.completions
    assert (none.text, none.ids, none.reason, none.prompt_tokens) == ("", (), "length", 2)
    answer = im.ask(model, PICTURES[0], "What?", max_new_tokens=0)
    assert (answer.text, answer.new_tokens) == ("", 0)
    assert list(im.stream(model, PICTURES[0], "What?", max_new_tokens=0)) == []
    batch = model.prepare(["Hi", "there"])
    assert im.generate(model, batch, max_new_tokens=0).shape == (2, 0)
    with ServingEngine(model) as server:
        request = GenerationRequest(prompt=Prompt("Hi"), max_new_tokens=0)
        text, _, finished = server.submit(request).result()
        assert (text, finished.usage.completion_tokens) == ("", 0)
        assert server.statistics().completed == 1
        assert server.statistics().decoded_tokens == 0


# --- the caller's own thread ----------------------------------------------------------------------


def test_requests_of_one_prompt_are_prefilled_once() -> None:
    engine = Engine(model_of())
    prompt = Prompt("<image>What is it?", (PICTURES[0],))
    [made] = engine.generate([prompt], samples=6, temperature=1.0, max_new_tokens=4)
    assert engine.statistics.prefill_tokens == made.prompt_tokens
    assert engine.statistics.running == 0
    assert len({c.ids for c in made.completions}) > 1


def test_a_stream_and_a_batch_of_one_engine_do_not_disturb_each_other() -> None:
    engine = Engine(model_of())
    asked = GenerationRequest(prompt=Prompt("Tell"), max_new_tokens=12)
    [alone] = engine.run([asked])
    others = [Prompt("<image>a", (PICTURES[1],)), Prompt("What?")]
    expected = engine.generate(others, max_new_tokens=6)
    events = engine.stream(asked)
    said = [next(events)]
    assert [g.completions[0].ids for g in engine.generate(others, max_new_tokens=6)] == [
        g.completions[0].ids for g in expected
    ]
    said += events
    assert "".join(e.text for e in said if isinstance(e, Delta)).strip() == alone.text
    assert isinstance(said[-1], Finished)
    assert said[-1].usage.completion_tokens == len(alone.ids)


def test_whoever_leaves_a_stream_ends_it() -> None:
    engine = Engine(model_of())
    events = engine.stream(GenerationRequest(prompt=Prompt("Tell"), max_new_tokens=500))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert engine.statistics.running == 0
    assert engine.statistics.cancelled == 1
    assert engine.statistics.decoded_tokens < 500


def test_a_failure_reaches_the_caller_and_leaves_nothing_behind() -> None:
    model = model_of()
    engine = Engine(model)
    prompts = [Prompt("one"), Prompt("another one")]
    expected = [g.completions[0].ids for g in engine.generate(prompts, max_new_tokens=5)]
    calls = []

    def fails(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no memory, say")

    handle = model.language.model.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="no memory, say"):
        engine.generate(prompts, max_new_tokens=5)
    handle.remove()
    assert engine.statistics.running == 0
    again = engine.generate(prompts, max_new_tokens=5)
    assert [g.completions[0].ids for g in again] == expected


# --- rows that join and leave ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Tiers, Apart])
@torch.inference_mode()
def test_rows_that_join_and_leave_anywhere_have_their_own_logits(
    kind: Callable[[VisionLanguageModel], Decoding], monkeypatch: pytest.MonkeyPatch
) -> None:
    from isthmus.generation import tiers

    monkeypatch.setattr(tiers, "SHORT", 6)  # so that there are several
    model = model_of()
    chance = random.Random(0)
    decoding = kind(model)
    own: list[list[int]] = []
    for _ in range(60):
        if len(own) < 2 or (len(own) < 9 and chance.random() < 0.3):
            prompts = [
                [chance.randint(1, 255) for _ in range(chance.randint(1, 12))]
                for _ in range(chance.randint(1, 4))
            ]
            rows = Rows(model, [Encoded(tuple(p), tuple(p), (), ()) for p in prompts], {})
            rows.prefill()
            which = [chance.randrange(len(prompts)) for _ in range(chance.randint(1, 4))]
            decoding.join(rows, which)
            own += [list(prompts[n]) for n in which]
        elif chance.random() < 0.4:
            gone = chance.randrange(len(own))
            decoding.leave(gone)
            own[gone] = own[-1]
            own.pop()
        else:
            tokens = [chance.randint(1, 255) for _ in own]
            logits = decoding.step(tokens)
            for row, token in enumerate(tokens):
                own[row].append(token)
                alone = model.language.model(input_ids=torch.tensor([own[row]])).logits[0, -1]
                assert torch.allclose(logits[row], alone, atol=1e-4), row
        assert list(decoding.lengths) == [len(ids) for ids in own]


def test_families_are_those_that_are_tried() -> None:
    assert {"llama", "gemma3", "opt"} <= set(FAMILIES)
