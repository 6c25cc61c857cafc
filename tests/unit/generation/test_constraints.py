"""Answers in a form: whatever the model, what comes out is what the schema says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

import isthmus as im
from isthmus.errors import InputError
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.serving.app import create_app

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}


def assert_follows(told: Any) -> None:
    assert list(told) == ["name", "count", "kind"]
    assert isinstance(told["name"], str)
    assert len(told["name"]) <= 4
    assert type(told["count"]) is int
    assert 0 <= told["count"] <= 99
    assert told["kind"] in ("cat", "dog")


@pytest.fixture(scope="module")
def engine() -> Iterator[ServingEngine]:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    with ServingEngine(model) as made:
        yield made


def request(schema: Any = None, **how: Any) -> GenerationRequest:
    text = None if schema is None else json.dumps(schema)
    return GenerationRequest(
        prompt=im.Prompt("What?"), json_schema=text, **{"max_new_tokens": 120, **how}
    )


def test_untrained_models_keep_to_a_schema_and_disturb_nobody(engine: ServingEngine) -> None:
    alone = engine.submit(request()).result()[0]
    tickets = [engine.submit(request(SCHEMA, temperature=1.0, seed=i)) for i in range(8)]
    free = engine.submit(request())
    told = []
    for ticket in tickets:
        text, _, end = ticket.result()
        assert end.reason == "stop"
        told.append(json.loads(text))
        assert_follows(told[-1])
        assert (
            text == json.dumps(told[-1], separators=(",", ":"), ensure_ascii=False) or " " in text
        )
    assert len({json.dumps(one) for one in told}) > 1
    assert free.result()[0] == alone
    with pytest.raises(ValueError, match=r"Expecting|Extra|Invalid"):
        json.loads(alone)  # so the schema is what did it


def test_one_seed_one_text(engine: ServingEngine) -> None:
    one, two = (engine.submit(request(SCHEMA, temperature=1.0, seed=5)).result()[0] for _ in "ab")
    assert one == two


def test_one_that_cannot_go_on_fails_alone(
    engine: ServingEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = engine.submit(request()).result()[0]
    made = engine._constraints.of
    hard = '{"enum": ["aaaa"]}'

    def of(schema: str) -> Any:
        constraint = made(schema)
        if schema == hard:  # as if a token had been drawn that the grammar does not know
            masked, times = constraint.masked, iter(range(9))
            monkeypatch.setattr(  # not the first, which is drawn before it joins the others
                constraint, "masked", lambda logits: masked(logits) if not next(times) else logits
            )
        return constraint

    monkeypatch.setattr(engine._constraints, "of", of)
    free = engine.submit(request())
    bound = engine.submit(request(SCHEMA))
    failing = engine.submit(replace(request(), json_schema=hard))
    with pytest.raises(InputError, match="too hard to follow"):
        failing.result()
    assert free.result()[0] == alone
    assert_follows(json.loads(bound.result()[0]))
    assert "grammar" not in "".join(capfd.readouterr())  # llguidance's log would quote the answer


@pytest.mark.parametrize(
    "schema", ['{"type": "nonsense"}', '{"$ref": "#/nowhere"}', "[", '{"a": 1' + " " * 100_001]
)
def test_what_is_no_schema_is_said(engine: ServingEngine, schema: str) -> None:
    with pytest.raises(InputError, match="schema"):
        engine.submit(GenerationRequest(prompt=im.Prompt("What?"), json_schema=schema))


def test_the_endpoint(engine: ServingEngine) -> None:
    async def ask(**more: Any) -> httpx.Response:
        app = create_app(engine.model, engine=engine)
        transport = httpx.ASGITransport(app)
        body = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 120, **more}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/chat/completions", json=body, timeout=300)

    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    answer = asyncio.run(ask(response_format=form))
    assert answer.status_code == 200, answer.text
    assert_follows(json.loads(answer.json()["choices"][0]["message"]["content"]))
    form = {"type": "json_object", "schema": SCHEMA}
    answer = asyncio.run(ask(response_format=form))
    assert answer.status_code == 200, answer.text
    assert_follows(json.loads(answer.json()["choices"][0]["message"]["content"]))
    for wrong, place in (
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": form, "reasoning": True}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ):
        answer = asyncio.run(ask(**wrong))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == place
