"""llama.cpp decodes what PyTorch would. It runs where its binding is: llama-cpp-python."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.evaluation.runner import computed_in
from isthmus.generation import llama_cpp
from isthmus.generation.encode import PromptEncoder
from isthmus.generation.engine import Engine
from isthmus.generation.images import VisualTokens
from isthmus.generation.llama_cpp import SEQUENCES, CacheFull, LlamaCpp
from isthmus.generation.llama_rows import LlamaDecoding, LlamaRows
from isthmus.generation.requests import Delta, Finished, GenerationRequest
from isthmus.generation.rows import Rows
from isthmus.generation.server import ServingEngine
from isthmus.prompts.prompt import Prompt

from .test_llama_file import inline

pytest.importorskip("llama_cpp")
FUSIONS = {
    "plain": im.Inline(),
    **{
        when: im.Inline(adapter=im.Adapter(rank=2, when=when))
        for when in ("image", "after", "sample")
    },
}


def image(number: int) -> Image.Image:
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(noise.to(torch.uint8).numpy())


PROMPTS = [
    Prompt("No image here"),
    Prompt("<image>Q: what? A:", (image(1),)),
    Prompt("Look: <image> and <image> again", (image(2), image(3))),
    Prompt("Look: <image> and something else", (image(2),), shared=5),
    Prompt("Look: <image> and more", (image(2),), shared=16),
]


def exactly(model: im.VisionLanguageModel, **options: Any) -> im.VisionLanguageModel:
    """The model, decoded by llama.cpp in float32."""
    model.engine = "llama"
    llama_cpp._READ[model] = LlamaCpp(model, exact=True, **options)
    return model


def both(model: im.VisionLanguageModel, at: LlamaCpp, prompts: Sequence[Prompt]) -> Any:
    """Rows of the same prompts in PyTorch and in llama.cpp."""
    encode, kept = PromptEncoder(model), VisualTokens(model, 1 << 20)
    found = [encode(prompt) for prompt in prompts]
    visual = kept.of([pair for _, images in found for pair in images.items()])
    encoded = [own for own, _ in found]
    return Rows(model, encoded, visual), LlamaRows(at, model, encoded, visual)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of two logits, which must be -inf at the same tokens."""
    columns = ours.shape[1]
    assert torch.equal(ours.isinf(), theirs[:, :columns].isinf())
    assert bool(theirs[:, columns:].isinf().all())
    return float((ours - theirs[:, :columns]).nan_to_num(0).abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_pytorch(family: str, fusion: str) -> None:
    model = inline(family, FUSIONS[fusion])
    at = LlamaCpp(model, exact=True)
    for prompts in (PROMPTS[:1], PROMPTS[1:3]):
        ours, theirs = both(model, at, prompts)
        assert apart(ours.prefill(), theirs.prefill()) < 1e-4
        decoding = LlamaDecoding(at, model)
        decoding.join(theirs, range(len(prompts)))
        for token in (5, 77, 130):
            ids = [token + row for row in range(len(prompts))]
            assert apart(ours.step(torch.tensor(ids)), decoding.step(ids)) < 1e-4


@torch.inference_mode()
def test_rounded_weights_move_logits_by_what_rounding_does() -> None:
    """Weights to 8 bits in blocks of 32, and llama.cpp rounds the activations likewise."""
    model = inline()
    ours, theirs = both(model, LlamaCpp(model), PROMPTS[1:2])
    expected = ours.prefill()
    largest = float(expected[expected.isfinite()].abs().max())
    assert 0 < apart(expected, theirs.prefill()) < 0.1 * largest


@pytest.mark.parametrize("fusion", ["plain", "after", "sample"])
def test_the_engine_writes_the_same_texts(fusion: str) -> None:
    model = inline(fusion=FUSIONS[fusion])
    ways: list[dict[str, Any]] = [{}, {"samples": 2, "temperature": 0.8, "top_p": 0.9, "seed": 3}]
    for options in ways:
        model.engine = "torch"
        expected = Engine(model).generate(PROMPTS, max_new_tokens=12, **options)
        engine = Engine(exactly(model))
        found = engine.generate(PROMPTS, max_new_tokens=12, **options)
        again = engine.generate(PROMPTS, max_new_tokens=12, **options)
        for one, other, third in zip(expected, found, again, strict=True):
            assert [c.ids for c in one.completions] == [c.ids for c in other.completions]
            assert [c.ids for c in one.completions] == [c.ids for c in third.completions]
            logprobs = [c.logprob for c in one.completions]
            assert [c.logprob for c in other.completions] == pytest.approx(logprobs, abs=1e-3)
    assert [g.cached_tokens for g in found] == [g.cached_tokens for g in expected]
    assert engine.statistics.prefix_hits > 0


def test_a_stream_and_a_server_say_the_same() -> None:
    model = inline(fusion=FUSIONS["after"])
    requests = [GenerationRequest(prompt=replace(p, shared=0), max_new_tokens=9) for p in PROMPTS]
    expected = [made.ids for made in Engine(model).run(requests)]
    engine = Engine(exactly(model))
    events = list(engine.stream(requests[1]))
    [whole] = engine.run(requests[1:2])
    assert "".join(e.text for e in events if isinstance(e, Delta)).strip() == whole.text
    assert isinstance(events[-1], Finished)
    asked = [replace(request, logprobs=0) for request in requests]
    with ServingEngine(model, max_batch=3, prefill_tokens=8) as server:
        for _ in range(2):  # the second time from kept prefixes
            told = [ticket.result() for ticket in [server.submit(each) for each in asked]]
            ends = {model.special_tokens.end_id, *model.language.end_ids()}
            ids = [tuple(token.token_id for token in tokens) for _, tokens, _ in told]
            assert ids == [tuple(t for t in own if t not in ends) for own in expected]
        assert told[2][2].usage.cached_tokens > 0
        assert server.statistics().rows_together


def test_scores_are_pytorchs_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    model, answers = inline(), ["cat", "car", "dog"]
    expected = Engine(model).score(PROMPTS[1:], answers)
    engine = Engine(exactly(model))
    with caplog.at_level(logging.WARNING):
        assert [s.logprobs for s in engine.score(PROMPTS[1:], answers)] == [
            s.logprobs for s in expected
        ]
        engine.score(PROMPTS[1:], answers)
    assert caplog.messages == ["engine llama: scores of closed answers are computed by PyTorch"]
    assert engine.statistics.prefill_tokens > 0


def test_where_llama_cpp_cannot_pytorch_decodes(caplog: pytest.LogCaptureFixture) -> None:
    model = inline(fusion=im.CrossAttention(every=2))
    expected = Engine(model).generate(PROMPTS, max_new_tokens=4)
    model.engine = "llama"
    with caplog.at_level(logging.WARNING):
        found = Engine(model).generate(PROMPTS, max_new_tokens=4)
    assert [g.completions[0].ids for g in found] == [g.completions[0].ids for g in expected]
    [line] = caplog.messages
    assert "blocks of its own" in line
    assert "PyTorch decodes" in line


def test_a_prompt_that_has_no_room_is_refused_and_the_next_one_is_not() -> None:
    engine = Engine(exactly(inline(), cells=256))
    with pytest.raises(im.PromptError, match=r"cache has 256 tokens"):
        engine.generate([Prompt("a" * 300)], max_new_tokens=2)
    gc.collect()
    assert engine.generate([Prompt("a" * 200)], max_new_tokens=2)[0].completions[0].ids


def long(count: int, letters: int) -> list[Prompt]:
    return [Prompt(chr(97 + n) * letters) for n in range(count)]


def served(
    server: ServingEngine, asked: Sequence[GenerationRequest]
) -> list[tuple[int, ...] | str]:
    """Tokens of each request's text, or why it failed."""
    found: list[tuple[int, ...] | str] = []
    for ticket in [server.submit(replace(request, logprobs=0)) for request in asked]:
        try:
            found.append(tuple(token.token_id for token in ticket.result()[1]))
        except CacheFull as error:
            found.append(str(error))
    return found


def test_kept_prefixes_make_room_for_rows_that_run() -> None:
    model = inline()
    kept = [GenerationRequest(prompt=p, max_new_tokens=2) for p in long(2, 120)]
    asked = [GenerationRequest(prompt=p, max_new_tokens=130) for p in long(3, 20)]
    with ServingEngine(model) as server:
        expected = served(server, asked)
    with ServingEngine(exactly(model, cells=512)) as server:
        served(server, kept)
        before = server.statistics()
        assert served(server, asked) == expected
        assert server.statistics().failed == 0
        assert server.statistics().evictions > before.evictions


def test_a_full_cache_fails_the_longest_row_alone() -> None:
    model = inline()
    asked = [
        GenerationRequest(prompt=Prompt(letter * letters), max_new_tokens=100)
        for letter, letters in (("a", 20), ("b", 60), ("c", 21))
    ]
    with ServingEngine(model) as server:
        expected = served(server, asked)
    with ServingEngine(exactly(model, cells=256), prefill_tokens=512) as server:
        found = served(server, asked)
        assert (found[0], found[2]) == (expected[0], expected[2])
        assert "cache has 256 tokens" in str(found[1])
        assert server.statistics().failed == 1


@torch.inference_mode()
def test_a_step_that_found_no_room_was_not_taken() -> None:
    """The row without adapters takes the last cell, and there is none for the one with adapters."""
    model = inline(fusion=FUSIONS["after"])
    prompts = [Prompt("a" * 121), Prompt("<image>" + "b" * 80, (image(1),))]
    small, large = (LlamaCpp(model, exact=True, cells=cells) for cells in (256, 512))
    ways = []
    for at in (small, large):
        _, rows = both(model, at, prompts)
        rows.prefill()
        ways.append(LlamaDecoding(at, model))
        ways[-1].join(rows, [0, 1])
        del rows
    tight, wide = ways
    for token in range(40, 40 + (256 - sum(tight.lengths)) // 2):
        assert apart(wide.step([token, token + 1]), tight.step([token, token + 1])) < 1e-4
    before = list(tight.lengths)
    assert sum(before) == 255
    with pytest.raises(CacheFull):
        tight.step([7, 8])
    assert list(tight.lengths) == before
    for way in ways:
        way.leave(1)
    for token in (7, 9, 11):
        assert apart(wide.step([token]), tight.step([token])) < 1e-4


def test_engines_of_one_model_keep_half_of_the_cells_together() -> None:
    model = exactly(inline(), cells=512)
    at, engines = llama_cpp._READ[model], [Engine(model) for _ in range(2)]
    for number in range(12):
        for engine in engines:
            found = engine.generate([Prompt(f"{number}" * 60, shared=50)], max_new_tokens=3)
            assert found[0].completions[0].ids
    stores = [engine._prefiller.prefixes for engine in engines]
    assert sum(store.bytes for store in stores) <= 256 * at.cell_bytes
    assert [len(store) for store in stores] == [2, 3]  # what was used least recently went
    engines[0].generate([Prompt("z" * 250, shared=240)], max_new_tokens=3)
    assert [len(store) for store in stores] == [1, 0]


@pytest.mark.parametrize(("letters", "shared"), [(100, 0), (100, 90), (300, 0), (300, 290)])
def test_prompts_that_have_room_alone_are_answered_together(letters: int, shared: int) -> None:
    model = inline()
    prompts = [Prompt("a" * (letters - 1) + str(n), shared=shared) for n in range(9)]
    prompts += [Prompt("b" * (letters - 1) + str(n), shared=shared) for n in range(9)]
    expected = Engine(model).generate(prompts, max_new_tokens=20)
    found = Engine(exactly(model, cells=512)).generate(prompts, max_new_tokens=20)
    assert [g.completions[0].ids for g in found] == [g.completions[0].ids for g in expected]


def test_sequences_are_let_go() -> None:
    model = exactly(inline())
    at = llama_cpp._READ[model]
    engine = Engine(model)
    for number in range(SEQUENCES + 10):
        engine.generate([Prompt(f"{number}"), Prompt("more")], max_new_tokens=2)
    del engine
    gc.collect()
    at.drop(at.take())
    at.take()
    assert len(at._free) == SEQUENCES - 1


def test_a_sequence_too_many_is_refused() -> None:
    at = LlamaCpp(inline(), exact=True)
    take = partial(at.take)
    for _ in range(SEQUENCES):
        take()
    with pytest.raises(im.PromptError, match="255 sequences"):
        take()


@pytest.mark.parametrize("shared", [0, 5])
def test_what_was_refused_holds_no_sequences(shared: int) -> None:
    model = exactly(inline())
    at, engine = llama_cpp._READ[model], Engine(model, batch_size=SEQUENCES + 5)
    many = [Prompt(f"start {n}", shared=shared) for n in range(SEQUENCES + 5)]
    with pytest.raises(im.PromptError, match="ask for fewer"):
        engine.generate(many[:1], max_new_tokens=2, samples=len(many), temperature=1.0)
    assert all(made.completions[0].ids for made in engine.generate(many, max_new_tokens=2))
    del engine
    gc.collect()
    at.drop(at.take())
    at.take()
    assert len(at._free) == SEQUENCES - 1


def named() -> im.VisionLanguageModel:
    """A model whose parts have names, so that it can be loaded by its folder alone."""
    return im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())


def test_it_is_asked_for_by_name(run: Any, tmp_path: Path) -> None:
    folder = im.save(named(), tmp_path / "model")
    image(4).save(tmp_path / "noise.png")
    model = im.load(folder, engine="llama")
    assert isinstance(model, im.VisionLanguageModel)
    expected = im.ask(model, tmp_path / "noise.png", "What?", max_new_tokens=6).text
    options = ("--model", folder, "--max-new-tokens", 6, "--engine", "llama")
    code, out, err = run("ask", tmp_path / "noise.png", "What?", *options)
    assert (code, out.strip(), err) == (0, expected.strip(), "")
    code, out, err = run("ask", tmp_path / "noise.png", "What?", "--engine", "vllm")
    assert code == 2
    assert 'unknown engine "vllm"' in err


def test_an_evaluation_says_by_whom_it_was_computed(tmp_path: Path) -> None:
    folder = im.save(named(), tmp_path / "model")
    options: dict[str, Any] = {"shots": [0], "limit": 2, "engine": "llama"}
    found = im.evaluate(folder, "parity", out=tmp_path / "out", **options)
    assert found.config["dtype"] == "float32 by llama"
    other = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))
    other.engine = "llama"  # which decodes nothing for it
    assert computed_in(other) == "float32"
