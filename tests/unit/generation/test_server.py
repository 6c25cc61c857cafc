"""The serving engine says what the model alone says, whoever else is asking."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import isthmus as im
from isthmus import testing
from isthmus.errors import ConfigError, EngineClosed, PromptError, QueueFull
from isthmus.generation import tiers
from isthmus.generation.apart import Apart
from isthmus.generation.decode import generate
from isthmus.generation.server import (
    Delta,
    Finished,
    GenerationRequest,
    ServingEngine,
)
from isthmus.media.image import open_image
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.batch import Batch
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Prompt

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "cross_attention": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2),
    "previous": im.CrossAttention(
        every=2, offset=1, heads=2, head_dim=8, ffw_mult=2, sees="previous"
    ),
    "hybrid": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, inline=True, gate=0.5),
}
# gemma3 has layers with sliding windows, bloom's positions are read off the mask
ALONE = ("gemma3", "bloom")
EVERY = [
    *[("llama", fusion) for fusion in FUSIONS],
    *[(f, fusion) for f in ("gpt2", "qwen3", "opt", *ALONE) for fusion in ("inline", "hybrid")],
    ("gpt2", "previous"),
    ("gemma3", "cross_attention"),
]


def language_model(family: str) -> Any:
    if family != "bloom":
        return tiny_language_model(family)
    from transformers import BloomConfig, BloomForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BloomConfig(vocab_size=259, hidden_size=64, n_layer=4, n_head=4, seq_length=256)
        model = BloomForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = 258
    return model.eval()


def model_of(family: str, fusion: str) -> VisionLanguageModel:
    """A tiny model whose images count."""
    torch.manual_seed(0)
    model = im.compose(
        "tiny-vit",
        language_model(family),
        im.Resampler(latents=3, depth=1, heads=2, head_dim=8),
        FUSIONS[fusion],
        tokenizer=byte_tokenizer(),
    )
    testing.open_gates(model)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def image(number: int) -> Image.Image:
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(noise.to(torch.uint8).numpy())


PROMPTS = [
    Prompt("What is it?"),
    Prompt("<image>What is it?", (image(1),)),
    Prompt("<image>Q: a? A: b<|endofchunk|><image>Q: c? A:", (image(1), image(2))),
    Prompt("<image><image>Two of them, and a question that is longer.", (image(3), image(1))),
    Prompt("<image>", (image(4),)),
    Prompt("x"),
    Prompt("<image>Q: a? A: b<|endofchunk|><image>Q: d? A:", (image(1), image(5))),
    Prompt("A text without an image, long enough to need several pieces."),
]


def naive_ids(model: VisionLanguageModel, prompt: Prompt, most: int) -> torch.Tensor:
    batch = model.prepare([prompt.text], [[open_image(p) for p in prompt.images]])
    return generate(model, batch, max_new_tokens=most)[0]


def naive(model: VisionLanguageModel, prompt: Prompt, most: int = 8) -> str:
    """What the language model's own `generate` says; half a character at the end is no text."""
    return model.special_tokens.decode(naive_ids(model, prompt, most)).rstrip("\ufffd")


def request(prompt: Prompt | str, **options: Any) -> GenerationRequest:
    options.setdefault("max_new_tokens", 8)
    made = Prompt(prompt) if isinstance(prompt, str) else prompt
    return GenerationRequest(prompt=made, **options)


class Gate:
    """An observer that holds up the engine's thread at a first token until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.queues: list[int] = []
        self.firsts: list[float] = []
        self.tokens: list[float] = []

    def first_token(self, seconds: float) -> None:
        self.firsts.append(seconds)
        self.reached.set()
        assert self.go.wait(30)

    def token(self, seconds: float) -> None:
        self.tokens.append(seconds)

    def queued(self, requests: int) -> None:
        self.queues.append(requests)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return model_of("llama", "hybrid")


@pytest.fixture
def engine(model: VisionLanguageModel) -> Iterator[ServingEngine]:
    with ServingEngine(model) as engine:
        yield engine


@pytest.mark.parametrize(("family", "fusion"), EVERY)
def test_batched_is_alone(family: str, fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "SHORT", 16)  # so that there are several
    model = model_of(family, fusion)
    most = [8, 3, 12, 5, 8, 1, 9, 10]  # so that rows leave from everywhere
    expected = [naive(model, p, n) for p, n in zip(PROMPTS, most, strict=True)]
    with ServingEngine(model, max_batch=3, prefill_tokens=7) as engine:
        assert isinstance(engine._batch._rows, Apart if family in ALONE else tiers.Tiers)
        for _ in range(2):  # the second time with whatever is known from the first
            tickets = [
                engine.submit(request(p, max_new_tokens=n))
                for p, n in zip(PROMPTS, most, strict=True)
            ]
            assert [t.result()[0] for t in tickets] == expected
        for prompt, n, text in zip(PROMPTS, most, expected, strict=True):
            assert engine.submit(request(prompt, max_new_tokens=n)).result()[0] == text
        statistics = engine.statistics()
    assert statistics.images_encoded == 5
    if family not in ALONE:
        assert statistics.steps < statistics.decoded_tokens - 3 * len(PROMPTS)  # they were batched
        assert statistics.cached_tokens > statistics.prefill_tokens


def test_images_count_in_these_tests(model: VisionLanguageModel) -> None:
    asked = PROMPTS[1]
    assert naive(model, asked) != naive(model, Prompt(asked.text, (image(77),)))


@pytest.mark.parametrize("fusion", ["previous", "hybrid"])
def test_a_seed_gives_its_text_whatever_else_is_in_the_batch(fusion: str) -> None:
    model = model_of("llama", fusion)
    options: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.7, "top_p": 0.9, "seed": 4},
        {"temperature": 1.5, "top_k": 20, "seed": 3},
        {"temperature": 0.0},
    ]
    asked = [request(p, max_new_tokens=12, **o) for p in PROMPTS[:5] for o in options]
    with ServingEngine(model, max_batch=7) as engine:
        together = [t.result()[0] for t in [engine.submit(r) for r in asked]]
    with ServingEngine(model, max_batch=1, memory=1) as engine:
        alone = [engine.submit(r).result()[0] for r in asked]
        again = request(PROMPTS[0], max_new_tokens=12, temperature=1.0, seed=5)
        other = engine.submit(again).result()[0]
    assert together == alone
    assert other != alone[0]  # another seed draws another text
    assert len(set(together)) == len(together)


def test_without_a_seed_two_texts_differ(engine: ServingEngine) -> None:
    asked = request("Hi", temperature=1.0, max_new_tokens=16)
    assert engine.submit(asked).result()[0] != engine.submit(asked).result()[0]


def test_log_probabilities_are_the_models(model: VisionLanguageModel) -> None:
    prompt = PROMPTS[2]
    ids = naive_ids(model, prompt, 8)
    batch = model.prepare([prompt.text], [[open_image(p) for p in prompt.images]])
    whole = torch.cat([batch.input_ids, ids[None]], dim=1)
    with torch.inference_mode():
        logits = model(
            Batch(input_ids=whole, attention_mask=torch.ones_like(whole), pixels=batch.pixels)
        ).logits[0]
    known = F.log_softmax(logits[batch.input_ids.shape[1] - 1 : -1], dim=-1)
    with ServingEngine(model) as engine:
        others = [engine.submit(request(p)) for p in PROMPTS]
        # penalties and temperature change what is drawn, not what is said of it
        text, tokens, _ = engine.submit(request(prompt, logprobs=3)).result()
        _, plain, _ = engine.submit(request(prompt, logprobs=0)).result()
        _, none, _ = engine.submit(request(prompt)).result()
        for other in others:
            other.result()
    assert [t.token_id for t in tokens] == ids.tolist()
    for token, row in zip(tokens, known, strict=True):
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        values, best = row.topk(3)
        assert [i for i, _, _ in token.top] == best.tolist()
        assert [v for _, _, v in token.top] == pytest.approx(values.tolist(), abs=1e-4)
    said = bytes(b for t in tokens for b in t.bytes)
    assert said.decode(errors="replace").rstrip("\ufffd") == text
    assert [t.token_id for t in plain] == ids.tolist()
    assert all(t.top == () for t in plain)
    assert none == ()


def test_penalties_keep_a_token_from_coming_again(
    model: VisionLanguageModel, engine: ServingEngine
) -> None:
    def ids(**options: float) -> list[int]:
        asked = request("abc", max_new_tokens=24, logprobs=0, **options)
        return [t.token_id for t in engine.submit(asked).result()[1]]

    plain, present, frequent = ids(), ids(presence_penalty=1e4), ids(frequency_penalty=1e4)
    assert len(set(plain)) < len(plain)
    assert len(set(present)) == len(present)
    assert present == frequent


def test_the_models_own_end_ends_a_text_and_is_none_of_it(model: VisionLanguageModel) -> None:
    ids = naive_ids(model, PROMPTS[0], 8).tolist()
    place = next(i for i in range(2, 8) if ids[i] not in ids[:i])
    own = model_of("llama", "hybrid")
    own.language.model.generation_config.eos_token_id = [258, ids[place]]
    with ServingEngine(own) as engine:
        text, tokens, finished = engine.submit(request(PROMPTS[0], logprobs=0)).result()
    assert text == own.special_tokens.decode(ids[:place]).rstrip("\ufffd")
    assert [t.token_id for t in tokens] == ids[:place]
    assert finished.reason == "stop"
    assert finished.usage.completion_tokens == place + 1


def test_a_stop_string_ends_a_text_and_none_of_it_is_said(
    model: VisionLanguageModel, engine: ServingEngine
) -> None:
    whole = naive(model, PROMPTS[3], 24)
    stop = whole[6:9]
    ticket = engine.submit(request(PROMPTS[3], max_new_tokens=24, stop=("never", stop)))
    events = list(ticket.events())
    said = [e.text for e in events if isinstance(e, Delta)]
    assert "".join(said) == whole[: whole.index(stop)]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "stop"
    assert events[-1].usage.completion_tokens < 24


def test_what_a_request_took_is_said(model: VisionLanguageModel, engine: ServingEngine) -> None:
    prompt = PROMPTS[2]
    count = len(model.encode_text(prompt.text, 2))
    assert engine.prompt_tokens(prompt) == count
    first = engine.submit(request(prompt)).result()[2]
    second = engine.submit(request(prompt)).result()[2]
    assert first.reason == "length"
    assert first.usage.prompt_tokens == second.usage.prompt_tokens == count
    assert first.usage.completion_tokens == 8
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == count - 1
    assert first.first_token_s is not None
    assert 0 < first.first_token_s < first.total_s


def test_the_next_turn_computes_only_what_is_new(
    model: VisionLanguageModel, engine: ServingEngine
) -> None:
    first = PROMPTS[2]
    text, _, done = engine.submit(request(first, max_new_tokens=6)).result()
    ids = naive_ids(model, first, 6).tolist()
    assume_same = model.special_tokens.encode(text)
    turn = Prompt(first.text + text + " And <image>?", (*first.images, image(9)))
    expected = naive(model, turn)
    known, _, after = engine.submit(request(turn)).result()
    assert known == expected
    # the last token was never put through the model, and half a character is not said again
    same = next((i for i, (a, b) in enumerate(zip(assume_same, ids, strict=False)) if a != b), 6)
    assert after.usage.cached_tokens == done.usage.prompt_tokens + min(same, len(text.encode()), 5)


def test_a_system_prompt_is_computed_once(engine: ServingEngine) -> None:
    start = "You are a helpful assistant with a long list of rules. "
    tickets = [engine.submit(request(f"{start}{q}")) for q in ("One?", "Two?", "Three?")]
    cached = [t.result()[2].usage.cached_tokens for t in tickets]
    assert cached[0] == 0
    assert cached[1] == len(start)
    assert cached[2] == len(start) + 1  # "T"
    statistics = engine.statistics()
    assert (statistics.prefix_hits, statistics.prefix_misses) == (2, 1)
    assert statistics.prefill_tokens + statistics.cached_tokens == 3 * len(start) + 4 + 4 + 6


def test_with_next_to_no_memory_nothing_is_kept(model: VisionLanguageModel) -> None:
    with ServingEngine(model, memory=1, max_batch=3) as engine:
        for _ in range(2):
            tickets = [engine.submit(request(p)) for p in PROMPTS]
            assert [t.result()[0] for t in tickets] == [naive(model, p) for p in PROMPTS]
        statistics = engine.statistics()
    assert statistics.bytes == 0
    assert statistics.cached_tokens == 0


def test_memory_stays_within_its_bound(model: VisionLanguageModel) -> None:
    bound = 1 << 18
    with ServingEngine(model, memory=bound) as engine:
        for letter in "abcdefgh":
            engine.submit(request(letter * 40)).result()
            assert 0 < engine.statistics().bytes <= bound
        assert engine.statistics().evictions > 0


def test_what_a_longer_prefix_holds_is_kept_once(engine: ServingEngine) -> None:
    finished = engine.submit(request("abcdef")).result()[2]
    kept = finished.usage.prompt_tokens + finished.usage.completion_tokens - 1
    one = 4 * 2 * 2 * 16 * 4  # layers, keys and values, key heads, their width, bytes
    assert engine.statistics().bytes == kept * one


def test_a_prefix_that_does_not_fit_drives_out_no_other(model: VisionLanguageModel) -> None:
    with ServingEngine(model, memory=1 << 17) as engine:  # 64 tokens' worth of prefixes
        engine.submit(request("a short one")).result()
        engine.submit(request("b" * 100)).result()
        assert engine.submit(request("a short one")).result()[2].usage.cached_tokens > 0


def test_a_finished_request_leaves_nothing_behind(model: VisionLanguageModel) -> None:
    engine = ServingEngine(model, max_batch=3)
    refs = []
    for number in range(4):
        shown = image(100 + number)
        prompt = Prompt("<image>Well?", (shown,))
        ticket = engine.submit(request(prompt, logprobs=1))
        ticket.result()
        refs += [weakref.ref(x) for x in (shown, prompt, ticket)]
    broken = torch.zeros(3, 5, 5)
    failing = engine.submit(request(Prompt("<image>", (broken,))))
    with pytest.raises(AssertionError, match="height") as caught:
        failing.result()
    refs.append(weakref.ref(broken))
    del shown, prompt, ticket, failing, broken
    engine.submit(request("z", max_new_tokens=1)).result()  # the thread's own variables move on
    assert engine.statistics().running == 0
    assert engine.statistics().running_bytes == 0
    gc.collect()
    assert [r() for r in refs] == [None] * len(refs)
    assert caught.value.args  # the error itself was there all the time
    engine.close()
    assert not engine._thread.is_alive()
    gone = weakref.ref(engine)
    del engine, caught
    gc.collect()
    assert gone() is None


# --- leaving early --------------------------------------------------------------------------------


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_cancelling_frees_the_row(model: VisionLanguageModel) -> None:
    with ServingEngine(model, max_batch=1) as engine:
        ticket = engine.submit(request("a", max_new_tokens=10**6))
        events = ticket.events()
        assert isinstance(next(events), Delta)
        following = engine.submit(request(PROMPTS[1]))
        ticket.cancel()
        ticket.cancel()
        *_, finished = events
        assert isinstance(finished, Finished)
        assert finished.reason == "cancelled"
        assert following.result()[0] == naive(model, PROMPTS[1])
        ticket.cancel()  # after the end it is nothing
        assert engine.statistics().cancelled == 1
        assert engine.statistics().completed == 1


def test_a_waiting_request_is_cancelled_at_once(model: VisionLanguageModel) -> None:
    gate = Gate()
    with ServingEngine(model, max_batch=1, observer=gate) as engine:
        running = engine.submit(request("a"))
        assert gate.reached.wait(30)
        waiting = engine.submit(request("b"))
        waiting.cancel()
        text, _, finished = waiting.result()  # while the engine's thread is held up
        assert (text, finished.reason, finished.first_token_s) == ("", "cancelled", None)
        assert engine.statistics().queued == 0
        gate.go.set()
        assert running.result()[2].reason == "length"
    assert gate.queues[-1] == 0


def test_whoever_stops_reading_cancels(model: VisionLanguageModel) -> None:
    with ServingEngine(model) as engine:
        ticket = engine.submit(request("a", max_new_tokens=10**6))
        for _ in ticket.events():
            break
        until(lambda: engine.statistics().cancelled == 1)
        assert engine.statistics().running == 0


def test_asyncio_reads_many_and_a_cancelled_task_cancels(model: VisionLanguageModel) -> None:
    async def read(ticket: Any) -> str:
        return "".join([e.text async for e in ticket if isinstance(e, Delta)])

    async def everything(engine: ServingEngine) -> list[str]:
        long = asyncio.ensure_future(read(engine.submit(request("a", max_new_tokens=10**6))))
        texts = await asyncio.gather(*[read(engine.submit(request(p))) for p in PROMPTS])
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        return texts

    with ServingEngine(model, max_batch=4) as engine:
        assert asyncio.run(everything(engine)) == [naive(model, p) for p in PROMPTS]
        until(lambda: engine.statistics().cancelled == 1)


def test_a_deadline_counts_while_waiting_and_while_running(model: VisionLanguageModel) -> None:
    gate = Gate()
    with ServingEngine(model, max_batch=1, observer=gate) as engine:
        running = engine.submit(request("a", deadline_s=0.02, max_new_tokens=50))
        assert gate.reached.wait(30)
        waiting = engine.submit(request("b", deadline_s=0.01))
        patient = engine.submit(request("c", deadline_s=1000))
        time.sleep(0.03)
        gate.go.set()
        text, _, finished = running.result()
        assert finished.reason == "deadline"
        assert finished.usage.completion_tokens == 1
        assert text == naive(model, Prompt("a"), 1)
        assert waiting.result()[2].reason == "deadline"
        assert patient.result()[2].reason == "length"
        assert engine.statistics().expired == 2
    assert gate.queues[-2:] == [1, 0]  # the late one left, then the patient one's turn came


def test_a_full_queue_says_so(model: VisionLanguageModel) -> None:
    gate = Gate()
    with ServingEngine(model, max_batch=1, max_queue=2, observer=gate) as engine:
        tickets = [engine.submit(request("a"))]
        assert gate.reached.wait(30)
        tickets += [engine.submit(request("b")), engine.submit(request("c"))]
        with pytest.raises(QueueFull, match="2 requests are waiting"):
            engine.submit(request("d"))
        assert engine.statistics().queued == 2
        gate.go.set()
        assert [t.result()[2].reason for t in tickets] == ["length"] * 3
        engine.submit(request("d")).result()
    assert len(gate.firsts) == 4
    assert len(gate.tokens) == 4 * 7
    assert max(gate.queues) == 2


def test_closing_finishes_what_there_is(model: VisionLanguageModel) -> None:
    engine = ServingEngine(model, max_batch=2)
    tickets = [engine.submit(request(p)) for p in PROMPTS]
    engine.close()
    assert [t.result()[0] for t in tickets] == [naive(model, p) for p in PROMPTS]
    with pytest.raises(EngineClosed):
        engine.submit(request("a"))
    engine.close()


@pytest.mark.parametrize("drain", [False, True])
def test_closing_at_once_or_after_a_while_cancels(model: VisionLanguageModel, drain: bool) -> None:
    gate = Gate()
    engine = ServingEngine(model, max_batch=2, observer=gate)
    tickets = [engine.submit(request(p, max_new_tokens=100)) for p in PROMPTS]
    assert gate.reached.wait(30)
    engine.close(drain=drain, timeout=0.01)
    gate.go.set()
    assert [t.result()[2].reason for t in tickets] == ["cancelled"] * len(PROMPTS)
    engine.close()
    assert not engine._thread.is_alive()


@pytest.mark.parametrize("family", ["llama", *ALONE])
def test_a_prompt_that_goes_on_from_one_that_runs(family: str) -> None:
    model = model_of(family, "inline")
    first = request("What may come after this?", max_new_tokens=40, logprobs=0)
    second = request(first.prompt.text + " And then?", logprobs=0)

    def scores(ticket: Any) -> list[float]:
        return [t.logprob for t in ticket.result()[1]]

    with ServingEngine(model, memory=1) as engine:
        alone = [scores(engine.submit(r)) for r in (first, second)]
    with ServingEngine(model, prefill_tokens=1) as engine:  # a step before the second begins
        tickets = [engine.submit(r) for r in (first, second)]
        for ticket, expected in zip(tickets, alone, strict=True):
            assert scores(ticket) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", *ALONE])
def test_a_prompt_that_goes_on_from_an_answer(family: str) -> None:
    model = model_of(family, "inline")

    def letters_only(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        allowed = torch.zeros(logits.shape[-1], dtype=torch.bool)
        allowed[ord("a") : ord("z")] = True
        return logits.masked_fill(~allowed, -torch.inf)

    model.language.output_embedding.register_forward_hook(letters_only)
    first = request("What may come after this?")
    with ServingEngine(model) as engine:
        text, _, before = engine.submit(first).result()
        assert len(text) == 8  # so its tokens are the prompt's that follows
        second = request(first.prompt.text + text + " And then?", logprobs=0)
        _, tokens, after = engine.submit(second).result()
    with ServingEngine(model, memory=1) as engine:
        expected = [t.logprob for t in engine.submit(second).result()[1]]
    assert [t.logprob for t in tokens] == pytest.approx(expected, abs=1e-4)
    # all but the last token, which never went through the model
    assert after.usage.cached_tokens == before.usage.prompt_tokens + 7


def test_many_threads_ask_and_change_their_minds(model: VisionLanguageModel) -> None:
    expected = {p.text: naive(model, p, 12) for p in PROMPTS}
    wrong: list[str] = []

    def ask(number: int) -> None:
        chance = random.Random(number)
        for _ in range(6):
            prompt = chance.choice(PROMPTS)
            ticket = engine.submit(request(prompt, max_new_tokens=12))
            patience = chance.choice((0, 1, 4, 100))
            text = ""
            for count, event in enumerate(ticket.events()):
                if isinstance(event, Delta):
                    text += event.text
                elif event.reason != "cancelled" and text != expected[prompt.text]:
                    wrong.append(text)
                if count >= patience:
                    ticket.cancel()
            if not expected[prompt.text].startswith(text):
                wrong.append(text)

    with ServingEngine(model, max_batch=3, memory=1 << 19, prefill_tokens=9) as engine:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        statistics = engine.statistics()
    assert wrong == []
    assert (statistics.queued, statistics.running, statistics.running_bytes) == (0, 0, 0)
    assert statistics.completed + statistics.cancelled == 36
    assert min(statistics.completed, statistics.cancelled) > 0


# --- what goes wrong ------------------------------------------------------------------------------


def test_what_cannot_be_is_said_at_once(engine: ServingEngine) -> None:
    assert engine.context_length == 1024
    with pytest.raises(PromptError, match="has 1024 tokens and the model's context 1024"):
        engine.submit(request("a" * 1024))
    with pytest.raises(PromptError, match="empty"):
        engine.submit(request(""))
    with pytest.raises(PromptError, match="empty stop"):
        request("a", stop=("x", ""))
    for name, value in (
        ("max_new_tokens", -1),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("logprobs", -1),
        ("deadline_s", 0),
        ("presence_penalty", float("inf")),
    ):
        with pytest.raises(ConfigError, match=name):
            request("a", **{name: value})


def test_the_context_bounds_the_text(engine: ServingEngine) -> None:
    finished = engine.submit(request("a" * 1018, max_new_tokens=10**6)).result()[2]
    assert finished.reason == "length"
    assert finished.usage.completion_tokens == 6


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_one_requests_failure_is_no_others(family: str) -> None:
    model = model_of(family, "hybrid")
    broken = Prompt("<image>?", (torch.zeros(3, 5, 5),))  # pixels that the encoder cannot take
    with ServingEngine(model, max_batch=4, prefill_tokens=7) as engine:
        tickets = [engine.submit(request(p)) for p in PROMPTS[:3]]
        failing = engine.submit(request(broken))
        tickets += [engine.submit(request(p)) for p in PROMPTS[3:]]
        with pytest.raises(Exception, match=r"(?i)size|shape|height"):
            failing.result()
        assert [t.result()[0] for t in tickets] == [naive(model, p) for p in PROMPTS]
        assert engine.statistics().failed == 1


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_failing_step_fails_its_rows_and_not_the_engine(family: str) -> None:
    model = model_of(family, "hybrid")
    failing = threading.Event()

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        if failing.is_set() and kwargs["inputs_embeds"].shape[1] == 1:
            raise RuntimeError("no memory, say")

    model.language.model.register_forward_pre_hook(fail, with_kwargs=True)
    gate = Gate()
    with ServingEngine(model, max_batch=2, observer=gate) as engine:
        tickets = [engine.submit(request(p)) for p in PROMPTS[:2]]
        assert gate.reached.wait(30)
        failing.set()
        gate.go.set()
        for ticket in tickets:
            with pytest.raises(RuntimeError, match="no memory, say"):
                ticket.result()
        failing.clear()
        texts = [t.result()[0] for t in [engine.submit(request(p)) for p in PROMPTS]]
        assert texts == [naive(model, p) for p in PROMPTS]
        assert engine.statistics().failed == 2


def test_a_failing_observer_changes_nothing(model: VisionLanguageModel) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    with ServingEngine(model, observer=Failing()) as engine:
        assert engine.submit(request(PROMPTS[0])).result()[0] == naive(model, PROMPTS[0])


# --- who waits for whom ---------------------------------------------------------------------------


def test_a_long_prompt_comes_in_pieces_while_others_run(model: VisionLanguageModel) -> None:
    lengths: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        lengths.append(kwargs["inputs_embeds"].shape[1])

    gate = Gate()
    with ServingEngine(model, prefill_tokens=16, observer=gate) as engine:
        handle = model.language.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            first = engine.submit(request("a", max_new_tokens=40))
            assert gate.reached.wait(30)
            long = engine.submit(request("b" * 100))
            gate.go.set()
            assert long.result()[0] == naive_without(handle, model, Prompt("b" * 100))
            first.result()
        finally:
            handle.remove()
    # a step of the running row between any two pieces
    assert lengths[:14] == [1, 15, 1, 16, 1, 16, 1, 16, 1, 16, 1, 16, 1, 5]


def naive_without(handle: Any, model: VisionLanguageModel, prompt: Prompt) -> str:
    handle.remove()
    return naive(model, prompt)


@pytest.mark.parametrize("short", [1024, 12])
def test_a_row_that_leaves_is_replaced_by_the_last(
    model: VisionLanguageModel, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "SHORT", short)
    asked = [(p, n) for n, p in zip((30, 2, 25, 4, 20, 6, 15, 8), PROMPTS, strict=True)]
    with ServingEngine(model, max_batch=8, prefill_tokens=1000) as engine:
        tickets = [engine.submit(request(p, max_new_tokens=n)) for p, n in asked]
        texts = [t.result()[0] for t in tickets]
    assert texts == [naive(model, p, n) for p, n in asked]
