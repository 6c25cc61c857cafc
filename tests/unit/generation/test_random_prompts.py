"""Random prompts, prefixes and orders: both engines say what the model says, asked afresh."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus import testing
from isthmus.generation.engine import Engine
from isthmus.generation.prefix import boundary
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.media.image import open_image
from isthmus.model.layout import Layout, filled
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Prompt

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "cross_attention": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2),
    "hybrid": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, inline=True, gate=0.5),
    **{
        f"adapter_{when}": im.Inline(adapter=im.Adapter(rank=2, start=1, when=when))
        for when in ("image", "after", "sample")
    },
    "hybrid_adapter": im.CrossAttention(
        every=2, heads=2, head_dim=8, inline=True, gate=0.5, adapter=im.Adapter(rank=2)
    ),
}
ANSWERS = ["a", "b", " c"]
MOST = 3
TEXTS = ("Q: a", "b?", "A:", "<|endofchunk|>", "Why")


def image(number: int) -> Image.Image:
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(noise.to(torch.uint8).numpy())


PICTURES = [image(n) for n in range(3)]


@pytest.fixture(scope="module", params=FUSIONS)
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    torch.manual_seed(0)
    connector = im.Resampler(latents=3, depth=1, heads=2, head_dim=8)
    model = im.compose("tiny-vit", "tiny-lm", connector, FUSIONS[request.param])
    testing.open_gates(model)
    with torch.no_grad():  # weights far from zero, so that whatever is wrong shows
        for parameter in model.fusion.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        for parameter in model.special_tokens.parameters():  # the two ends would be alike
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def random_prompt(chance: random.Random) -> Prompt:
    """A few images and texts, any number of whose characters is shared: also half a tag."""
    text, images = "", []
    for _ in range(chance.randint(1, 5)):
        if chance.random() < 0.5:
            text += "<image>"
            images.append(chance.choice(PICTURES))
        else:
            text += chance.choice(TEXTS)
    ends = [n for n in range(len(text) + 1) if text[:n].endswith(("<image>", "<image>Q"))]
    anywhere = chance.randint(0, len(text))
    at_image = chance.choice([*ends, len(text)])
    return Prompt(text, tuple(images), shared=chance.choice([anywhere, at_image]))


@torch.inference_mode()
def naive(model: VisionLanguageModel, prompt: Prompt) -> tuple[list[float], list[int]]:
    """Scores of the answers and the greedy tokens, from passes over the whole text."""
    opened = [open_image(p) for p in prompt.images]
    batch = model.prepare([prompt.text], [opened])
    start = batch.input_ids.shape[1]

    def known(new: Sequence[int]) -> torch.Tensor:
        ids = torch.cat([batch.input_ids, torch.tensor([new], dtype=torch.long)], dim=1)
        whole = replace(batch, input_ids=ids, attention_mask=torch.ones_like(ids))
        return model(whole).logits[0, start - 1 :].float().log_softmax(dim=-1)

    first = known([])
    scores = []
    for answer in ANSWERS:
        ids = model.special_tokens.encode(answer)
        found = first if len(ids) == 1 else known(ids[:-1])
        scores.append(sum(float(found[n, i]) for n, i in enumerate(ids)))
    greedy = [int(first[-1].argmax())]
    ends = {*model.language.end_ids(), model.special_tokens.end_id}
    while len(greedy) < MOST and greedy[-1] not in ends:
        greedy.append(int(known(greedy)[-1].argmax()))
    return scores, greedy


def test_scores_and_texts_of_random_prompts_are_the_naive_ones(model: VisionLanguageModel) -> None:
    chance = random.Random(0)
    checked = inside = 0
    for memory in (1 << 30, 1 << 15, 0):  # room for all, for a few prefixes, for none
        prompts = [random_prompt(chance) for _ in range(40)]
        expected = [naive(model, p) for p in prompts]
        engine = Engine(model, memory=memory, batch_size=3)
        order = list(range(len(prompts)))
        chance.shuffle(order)
        while order:
            count = chance.randint(1, 8)
            part, order = order[:count], order[count:]
            asked = [prompts[n] for n in part]
            for n, found in zip(part, engine.score(asked, ANSWERS), strict=True):
                assert found.logprobs == pytest.approx(expected[n][0], abs=1e-4), prompts[n]
            for n, texts in zip(part, engine.generate(asked, max_new_tokens=MOST), strict=True):
                assert list(texts.completions[0].ids) == expected[n][1], prompts[n]
            checked += 2 * len(part)
            inside += sum(p.text[: p.shared].endswith("<image>") for p in asked)
    assert checked == 240
    assert inside > 10  # prefixes that end with an image


def test_a_server_says_the_same_of_random_prompts(model: VisionLanguageModel) -> None:
    chance = random.Random(1)
    prompts = [random_prompt(chance) for _ in range(40)]
    expected = [naive(model, p)[1] for p in prompts]
    for memory, pieces in ((1 << 30, 4), (1 << 15, 256), (0, 1)):
        with ServingEngine(model, memory=memory, prefill_tokens=pieces, max_batch=4) as engine:
            tickets = [
                engine.submit(GenerationRequest(prompt=p, max_new_tokens=MOST, logprobs=0))
                for p in prompts
            ]
            ends = {*model.language.end_ids(), model.special_tokens.end_id}
            for ticket, ids in zip(tickets, expected, strict=True):
                said = [token.token_id for token in ticket.result()[1]]
                assert said == [i for i in ids if i not in ends]


@pytest.mark.parametrize("first", ["<image>Question: A", "<image>"])
def test_a_prefix_that_ends_with_an_image_leaves_later_scores_right(
    model: VisionLanguageModel, first: str
) -> None:
    engine = Engine(model)
    seen = (PICTURES[0],)
    engine.score([Prompt(first, seen, shared=min(15, len(first)))], ANSWERS)
    later = Prompt("<image>Why", seen, shared=len("<image>"))
    [found] = engine.score([later], ANSWERS)
    assert found.logprobs == pytest.approx(naive(model, later)[0], abs=1e-4)


def test_a_prefix_without_room_is_computed_once_for_all_its_prompts(
    model: VisionLanguageModel,
) -> None:
    engine = Engine(model, memory=0, batch_size=2)
    start = "<image>Q: 1? A: 2<|endofchunk|>"
    prompts = [Prompt(f"{start}{n}", (PICTURES[0],), shared=len(start)) for n in range(9)]
    found = engine.score(prompts, ANSWERS)
    assert engine.statistics.prefill_tokens == found[0].prompt_tokens - 1 + len(prompts)


def test_no_prefix_cuts_an_image() -> None:
    chance = random.Random(0)
    for _ in range(200):
        symbols: list[int | str] = []
        layouts: list[Layout] = []
        ends = {0}
        for _ in range(chance.randint(0, 6)):
            if chance.random() < 0.5:  # of any length, so that runs of one hash are ambiguous
                layouts.append(filled(chance.randint(1, 4)))
                symbols += [chance.choice("ab")] * len(layouts[-1])
            else:
                symbols.append(7)
            ends.add(len(symbols))
        for place in range(len(symbols) + 1):
            down = boundary(symbols, place, layouts)
            up = boundary(symbols, place, layouts, down=False)
            assert down == max(e for e in ends if e <= place)
            assert up == min(e for e in ends if e >= place)
