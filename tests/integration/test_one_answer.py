"""`ask`, an evaluation and the server run the same programs: one question, one answer."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.evaluation.records import read
from isthmus.evaluation.task import Item, Task
from isthmus.serving.app import create_app
from isthmus.serving.settings import ServerSettings
from isthmus.testing import open_gates

QUESTION = "How many dots are there?"
SEED, STEPS, SHORT = 3, 16, 8
WAYS = ["none", "cot", "zero-cot", "least-to-most"]


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


PICTURE, SHOT = noise(1), noise(2)
WORKED = im.Example(SHOT, "How many lines are there?", "2", "One here, one there.")


@pytest.fixture(scope="module", params=["inline", "cross-attention"])
def model(request: pytest.FixtureRequest) -> Any:
    """A model whose texts are short lists of questions and numbers, so that all can be parsed."""
    torch.manual_seed(0)
    fusion = im.Inline() if request.param == "inline" else im.CrossAttention(every=2)
    made = im.compose("tiny-vit", "tiny-lm", im.Linear(), fusion)
    open_gates(made)
    allowed = torch.tensor([ord(c) for c in "12. ?"])

    def digits(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        others = torch.ones(logits.shape[-1], dtype=torch.bool)
        others[allowed] = False
        return logits.masked_fill(others, -1e4)

    made.language.output_embedding.register_forward_hook(digits)
    return made


@pytest.fixture(scope="module")
def app(model: Any) -> Iterator[Any]:
    made = create_app(model, settings=ServerSettings(model_name="tiny"))
    yield made
    made.state.engine.close(drain=False, timeout=10)


def shots_of(way: str) -> list[im.Example]:
    return [WORKED] if way == "cot" else []


def asked(model: Any, way: str, samples: int, **options: Any) -> im.Answer:
    return im.ask(
        model,
        PICTURE,
        QUESTION,
        shots=shots_of(way),
        reasoning=way,
        kind="number",
        samples=samples,
        seed=SEED,
        max_rationale_tokens=STEPS,
        max_new_tokens=SHORT,
        **options,
    )


def evaluated(model: Any, way: str, samples: int, folder: Path) -> Any:
    """The record of the question as the only one of a task."""
    item = Item("one", im.Example(PICTURE, QUESTION, "2"), shots=tuple(shots_of(way)))
    task = Task(
        "dots",
        "number",
        [item],
        episodic=True,
        max_new_tokens=SHORT,
        max_rationale_tokens=STEPS,
    )
    count = len(shots_of(way))
    im.evaluate(
        model, task, shots=[count], reasoning=way, samples=samples, seeds=[SEED], out=folder
    )
    [record] = read(folder / "records.jsonl")
    return record


def body_of(way: str, samples: int) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": uri(PICTURE)}}
    shown = [
        {
            "images": [uri(SHOT)],
            "question": shot.question,
            "answer": shot.answer,
            "rationale": shot.rationale,
        }
        for shot in shots_of(way)
    ]
    return {
        "messages": [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}],
        "shots": shown,
        "seed": SEED,
        "max_tokens": 500,
        "return_prompt": True,
        "reasoning": {
            "way": way,
            "kind": "number",
            "samples": samples,
            "max_rationale_tokens": STEPS,
            "max_new_tokens": SHORT,
        },
    }


def posted(app: Any, body: dict[str, Any]) -> httpx.Response:
    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/chat/completions", json=body, timeout=300)

    answer = asyncio.run(post())
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("way", WAYS)
def test_three_who_ask_get_one_answer(
    model: Any, app: Any, way: str, samples: int, tmp_path: Path
) -> None:
    own = asked(model, way, samples)
    record = evaluated(model, way, samples, tmp_path)
    assert (record.text, record.parsed, record.rationale, record.agreement, record.prompt) == (
        own.written,
        own.parsed,
        own.rationale,
        own.agreement,
        own.prompt,
    )
    assert (record.prompt_tokens, record.new_tokens) == (own.prompt_tokens, own.new_tokens)
    told = posted(app, body_of(way, samples)).json()
    [choice] = told["choices"]
    assert choice["message"]["content"] == own.text
    assert choice["message"]["reasoning_content"] == own.rationale
    assert tuple(choice["prompts"]) == own.prompts
    assert choice["finish_reason"] == own.finish_reason
    assert told["usage"]["completion_tokens"] == own.new_tokens
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == own.rationale_tokens
    if samples > 1:
        assert choice["vote"] == {
            "votes": own.votes,
            "agreement": own.agreement,
            "unparsed": own.unparsed,
        }
        assert sum(own.votes.values()) == round(samples * (1 - own.unparsed))
    else:
        assert "vote" not in choice


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("way", WAYS)
def test_a_stream_s_pieces_are_the_answer(model: Any, app: Any, way: str, samples: int) -> None:
    own = asked(model, way, samples)
    told = posted(app, {**body_of(way, samples), "stream": True}).text
    lines = [line.removeprefix("data: ") for line in told.split("\n") if line]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    deltas = [choice["delta"] for choice in choices]
    assert "".join(d.get("content") or "" for d in deltas) == own.text
    steps = "".join(d.get("reasoning_content") or "" for d in deltas)
    assert steps.strip() == (own.rationale or "")
    ends = [c for c in choices if c["finish_reason"]]
    assert [c["finish_reason"] for c in ends] == [own.finish_reason]
    if samples > 1:
        assert ends[0]["vote"]["votes"] == own.votes
    elif way in ("zero-cot", "cot") and len(own.rationale or "") > 2:  # told as it is written
        assert len([d for d in deltas if d.get("reasoning_content")]) > 1


def test_a_seed_draws_one_text_for_all(model: Any, app: Any) -> None:
    """At a temperature, in one chain."""
    own = im.ask(model, PICTURE, QUESTION, temperature=1.0, seed=SEED, max_new_tokens=SHORT)
    others = [
        im.ask(model, PICTURE, QUESTION, temperature=1.0, seed=seed, max_new_tokens=SHORT).text
        for seed in range(10, 16)
    ]
    assert len({own.text, *others}) > 1
    pieces = im.stream(model, PICTURE, QUESTION, temperature=1.0, seed=SEED, max_new_tokens=SHORT)
    assert "".join(pieces) == own.text
    body = {**body_of("none", 1), "temperature": 1.0, "max_tokens": SHORT}
    assert posted(app, body).json()["choices"][0]["message"]["content"] == own.text


ASKED = "Question: What is 2 + 3? Answer:"
LISTED = f"{ASKED} Let's break down this problem:"
PARTS = " 1. What is 2? 2. What is 3?"
WRITTEN = {
    LISTED: f"{PARTS}\n\n",
    f"{LISTED}{PARTS}\n1.": " It is 2.\n",
    f"{LISTED}{PARTS}\n1. It is 2.\n2.": " It is 3.\n",
    f"{LISTED}{PARTS}\n1. It is 2.\n2. It is 3."
    "\nTherefore, the answer (arabic numerals) is": " 5.\n",
}


@pytest.fixture(scope="module")
def lister() -> Any:
    """A model that has learned, letter by letter, to break one question down."""
    torch.manual_seed(0)
    made = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    batch = made.prepare([prompt + text for prompt, text in WRITTEN.items()])
    targets = batch.input_ids.clone()
    for row, text in enumerate(WRITTEN.values()):
        ends = int(batch.attention_mask[row].nonzero().max()) + 1
        targets[row, : ends - len(text)] = -100  # a token is a byte: learn the text alone
        targets[row, ends:] = -100
    weights = [p.requires_grad_(True) for p in made.language.model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=4e-3)
    for _ in range(120):
        logits = made(batch).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.02
    return made


def test_least_to_most_and_its_vote_over_http(lister: Any) -> None:
    app = create_app(lister, settings=ServerSettings(model_name="lister", template="plain"))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "What is 2 + 3?"}],
        "reasoning": {"way": "least-to-most", "kind": "number"},
        "return_prompt": True,
    }
    steps = f"{PARTS.strip()}\n1. It is 2.\n2. It is 3."
    [choice] = posted(app, body).json()["choices"]
    assert choice["prompts"] == list(WRITTEN)
    assert choice["message"]["content"] == "5"
    assert choice["message"]["reasoning_content"] == steps
    own = im.ask(lister, (), "What is 2 + 3?", reasoning="least-to-most", kind="number")
    assert (own.prompts, own.text, own.rationale) == (tuple(WRITTEN), "5", steps)
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in posted(app, {**body, "stream": True}).text.split("\n")
        if line and "DONE" not in line
    ]
    told = [d["reasoning_content"] for d in deltas if d.get("reasoning_content")]
    assert "".join(told) == steps
    assert len(told) > 4  # the answers to the smaller questions, as they are written
    assert "".join(d.get("content") or "" for d in deltas) == "5"
    body["reasoning"] |= {"samples": 4}
    [choice] = posted(app, {**body, "temperature": 0.2, "seed": 1}).json()["choices"]
    assert choice["vote"] == {"votes": {"5": 4}, "agreement": 1.0, "unparsed": 0.0}
    app.state.engine.close(drain=False, timeout=10)


@pytest.mark.parametrize(
    ("reasoning", "rest", "said"),
    [
        ("cot", {}, "needs a demonstration with a rationale"),
        ({"kind": "choice"}, {}, "choices go with"),
        ({"samples": 3}, {"temperature": 0}, "would all be the same"),
        ({"trigger": "logicaly"}, {}, 'did you mean \\"logically\\"'),
        ({"samples": 99}, {}, "reasoning"),
        ("zero-cto", {}, "reasoning"),
    ],
)
def test_what_the_server_refuses(app: Any, reasoning: Any, rest: Any, said: str) -> None:
    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            body = {"messages": [{"role": "user", "content": "2 + 3?"}], "reasoning": reasoning}
            return await client.post("/v1/chat/completions", json={**body, **rest})

    answer = asyncio.run(post())
    assert answer.status_code == 400
    assert said in answer.text
