"""The engine is the naive computation, done with less work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import isthmus as im
from isthmus import testing
from isthmus.errors import ConfigError, PromptError
from isthmus.generation.decode import generate, text_of
from isthmus.generation.engine import Engine
from isthmus.media.image import open_image
from isthmus.model.backbones.tiny import FAMILIES, byte_tokenizer, tiny_language_model
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
ANSWERS = ["cat", "car", "carpet", "dog", "x", "do"]


def model_of(family: str, fusion: str) -> VisionLanguageModel:
    """A tiny model whose images count."""
    torch.manual_seed(0)
    model = im.compose(
        "tiny-vit",
        tiny_language_model(family),
        im.Resampler(latents=3, depth=1, heads=2, head_dim=8),
        FUSIONS[fusion],
        tokenizer=byte_tokenizer(),
    )
    testing.open_gates(model)
    with torch.no_grad():  # weights far from zero, so that whatever is wrong shows
        for parameter in model.fusion.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def image(number: int) -> Image.Image:
    """An image unlike the others."""
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def few_shot(query: str, shots: int = 2, images: int = 1, seed: int = 0) -> Prompt:
    """Demonstrations that are shared, and a query with images of its own."""
    start = "".join(f"<image>Q: {i}? A: {i * 7}<|endofchunk|>" for i in range(shots))
    shown = [image(100 * seed + i) for i in range(shots)]
    own = [image(1000 + ord(query[0]) + i) for i in range(images)]
    text = f"{start}{'<image>' * images}Q: {query}? A:"
    return Prompt(text, (*shown, *own), shared=len(start))


PROMPTS = [
    few_shot("a"),
    few_shot("bbbb"),
    few_shot("c", images=2),
    few_shot("dd", images=0),  # sees the last demonstration's image
    few_shot("a", shots=3),
    few_shot("e", seed=1),
    Prompt("No image here", shared=3),
    Prompt("<image>", (image(5),)),
]


def naive_batch(model: VisionLanguageModel, prompt: Prompt) -> Batch:
    return model.prepare([prompt.text], [[open_image(p) for p in prompt.images]])


@torch.inference_mode()
def naive_scores(model: VisionLanguageModel, prompt: Prompt, answers: Sequence[str]) -> list[float]:
    """One forward pass of the whole text for each answer."""
    batch = naive_batch(model, prompt)
    start = batch.input_ids.shape[1]
    scores = []
    for answer in answers:
        ids = torch.cat(
            [batch.input_ids, torch.tensor([model.special_tokens.encode(answer)])], dim=1
        )
        both = Batch(input_ids=ids, attention_mask=torch.ones_like(ids), pixels=batch.pixels)
        logits = model(both).logits[0, start - 1 : -1]
        scores.append(-float(F.cross_entropy(logits, ids[0, start:], reduction="sum")))
    return scores


@pytest.fixture(scope="module", params=[(f, x) for f in FAMILIES for x in FUSIONS], ids="-".join)
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return model_of(*request.param)


@pytest.fixture(scope="module")
def llama() -> VisionLanguageModel:
    return model_of("llama", "cross_attention")


def test_greedy_texts_and_their_log_probabilities_are_the_naive_ones(
    model: VisionLanguageModel,
) -> None:
    engine = Engine(model, batch_size=3)
    for _ in range(2):  # the second time every prefix is there
        results = engine.generate(PROMPTS, max_new_tokens=5, stop=["\n"])
        for prompt, result in zip(PROMPTS, results, strict=True):
            batch = naive_batch(model, prompt)
            ids = generate(model, batch, max_new_tokens=5, stop=["\n"])[0]
            completion = result.completions[0]
            assert list(completion.ids) == ids.tolist()
            assert completion.text == text_of(model, ids, ["\n"])
            assert result.prompt_tokens == batch.input_ids.shape[1]
            answer = Batch(
                input_ids=torch.cat([batch.input_ids, ids[None]], dim=1),
                attention_mask=torch.ones(1, batch.input_ids.shape[1] + len(ids), dtype=torch.long),
                pixels=batch.pixels,
            )
            with torch.inference_mode():
                logits = model(answer).logits[0, result.prompt_tokens - 1 : -1]
            expected = -float(F.cross_entropy(logits, ids, reduction="sum"))
            assert completion.logprob == pytest.approx(expected, abs=1e-4)


def test_scores_are_the_naive_ones(model: VisionLanguageModel) -> None:
    engine = Engine(model, batch_size=3)
    results = engine.score(PROMPTS, ANSWERS)
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = naive_scores(model, prompt, ANSWERS)
        assert result.logprobs == pytest.approx(expected, abs=1e-4)
        assert result.tokens == result.bytes == tuple(len(a) for a in ANSWERS)


def test_images_count_in_these_tests(model: VisionLanguageModel) -> None:
    engine = Engine(model)
    prompt = few_shot("a")
    other = Prompt(prompt.text, (*prompt.images[:-1], image(77)), prompt.shared)
    one, two = engine.score([prompt, other], ANSWERS)
    assert max(abs(a - b) for a, b in zip(one.logprobs, two.logprobs, strict=True)) > 1e-2


@pytest.mark.parametrize("fusion", FUSIONS)
def test_samples_do_not_depend_on_what_else_is_in_the_batch(fusion: str) -> None:
    model = model_of("llama", fusion)
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 6, "seed": 3}
    together = Engine(model, batch_size=4).generate(PROMPTS, samples=3, **options)
    for prompt, several in zip(PROMPTS, together, strict=True):
        (alone,) = Engine(model, batch_size=1).generate([prompt], samples=3, **options)
        texts = [c.ids for c in several.completions]
        assert texts == [c.ids for c in alone.completions]
        (first,) = Engine(model).generate([prompt], **options)
        assert first.completions[0].ids == texts[0]
    drawn = {c.ids for several in together for c in several.completions}
    assert len(drawn) > len(PROMPTS)  # they are samples, after all


def test_with_next_to_no_memory_the_results_are_the_same(llama: VisionLanguageModel) -> None:
    roomy, tight, nothing = (Engine(llama, memory=m) for m in (1 << 30, 1 << 17, 1))
    for _ in range(2):
        a, b, c = (e.generate(PROMPTS, max_new_tokens=4) for e in (roomy, tight, nothing))
        assert [r.completions[0].ids for r in a] == [r.completions[0].ids for r in b]
        assert [r.completions[0].ids for r in a] == [r.completions[0].ids for r in c]
        one, two, three = (e.score(PROMPTS, ANSWERS) for e in (roomy, tight, nothing))
        for x, y, z in zip(one, two, three, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)
            assert x.logprobs == pytest.approx(z.logprobs, abs=1e-4)
    assert roomy.statistics.evictions == 0
    assert tight.statistics.evictions > 0
    assert nothing.statistics.bytes == nothing.statistics.evictions == 0  # nothing fits


def test_a_shared_prefix_is_never_mutated(llama: VisionLanguageModel) -> None:
    engine = Engine(llama, batch_size=2)
    engine.generate([few_shot("a")], max_new_tokens=2)
    (prefix,) = engine._prefiller.prefixes._kept.values()
    before = [(x.keys.clone(), x.values.clone()) for x in prefix.states.layers]
    queries = [few_shot(letter) for letter in "abcdefgh"]
    engine.generate(queries, max_new_tokens=4)
    engine.generate(queries, max_new_tokens=4, samples=3, temperature=1.0)
    engine.score(queries, ANSWERS)
    engine.generate([few_shot("a", shots=3)], max_new_tokens=1)  # goes on from it
    for (keys, values), layer in zip(before, prefix.states.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


def test_nothing_that_prompts_share_is_computed_twice(llama: VisionLanguageModel) -> None:
    engine = Engine(llama)
    queries = [few_shot(letter) for letter in "abcdefgh"]
    shared = len(llama.encode_text(queries[0].text[: queries[0].shared], 2))
    results = engine.score(queries, ANSWERS)
    own = sum(r.prompt_tokens for r in results) - len(queries) * shared
    statistics = engine.statistics
    assert statistics.prefill_tokens == shared + own
    assert statistics.cached_tokens == len(queries) * shared
    assert statistics.images_encoded == 2 + len(queries)
    # the tree of cat car carpet dog x do: c, ca, car, carp, carpe, d, do
    assert statistics.scored_tokens == 7 * len(queries)
    engine.score(queries, ANSWERS)
    assert engine.statistics.images_encoded == 2 + len(queries)
    assert engine.statistics.prefill_tokens == shared + 2 * own
    assert engine.statistics.prefix_hits >= 1


def test_a_tree_of_prefixes_is_computed_branch_by_branch(llama: VisionLanguageModel) -> None:
    engine = Engine(llama)
    long, short = few_shot("a", shots=3), few_shot("a", shots=2)
    counts = [len(llama.encode_text(p.text[: p.shared], len(p.images) - 1)) for p in (short, long)]
    engine.score([short], ["x"])
    before = engine.statistics.prefill_tokens
    (result,) = engine.score([long], ["x"])
    computed = engine.statistics.prefill_tokens - before
    assert computed == result.prompt_tokens - counts[0]
    # another set of demonstrations with the same beginning
    other = Prompt(long.text.replace("14", "99"), long.images, long.shared)
    before = engine.statistics.prefill_tokens
    engine.score([other], ["x"])
    common = long.text.index("14")
    shared = len(llama.encode_text(long.text[:common], 3))
    assert engine.statistics.prefill_tokens - before == result.prompt_tokens - shared


def test_the_same_text_with_other_images_is_another_prefix(llama: VisionLanguageModel) -> None:
    engine = Engine(llama)
    one, two = few_shot("a", seed=0), few_shot("a", seed=1)
    engine.score([one], ANSWERS)
    (got,) = engine.score([two], ANSWERS)
    assert got.logprobs == pytest.approx(naive_scores(llama, two, ANSWERS), abs=1e-4)


def test_the_prompts_trailing_space_belongs_to_the_answer(llama: VisionLanguageModel) -> None:
    engine = Engine(llama)
    with_space, without = Prompt("Answer: "), Prompt("Answer:")
    (a,), (b,) = engine.score([with_space], ["yes"]), engine.score([without], [" yes"])
    assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_a_packed_tree_in_pieces_is_the_tree(
    llama: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isthmus.generation import score

    whole = Engine(llama).score(PROMPTS[:3], ANSWERS)
    monkeypatch.setattr(score, "NODES_AT_ONCE", 2)
    pieces = Engine(llama).score(PROMPTS[:3], ANSWERS)
    for a, b in zip(whole, pieces, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_norms() -> None:
    from isthmus.generation.results import ChoiceScores

    scores = ChoiceScores((-2.0, -3.0, -8.0), (1, 3, 2), (2, 12, 8), 1, 0)
    assert scores.best() == 0
    assert scores.best("token") == 1
    assert scores.by("byte") == (-1.0, -0.25, -1.0)
    assert scores.best("byte") == 1


def test_what_cannot_be_is_said(llama: VisionLanguageModel) -> None:
    engine = Engine(llama)
    with pytest.raises(ConfigError, match="temperature"):
        engine.generate(PROMPTS, samples=2)
    with pytest.raises(PromptError, match="empty stop"):
        engine.generate(PROMPTS, stop=[""])
    for answers in ([], ["a", ""]):
        with pytest.raises(PromptError, match="closed answers"):
            engine.score(PROMPTS, answers)
    with pytest.raises(PromptError, match="images"):
        engine.score([Prompt("<image>")], ["a"])
