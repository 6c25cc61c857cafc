"""What is wrong with a request's body, said with its place and what could stand there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isthmus.errors import IsthmusError
from isthmus.serving.bodies import parsed
from isthmus.serving.refusals import Refusal
from isthmus.serving.schemas import ChatRequest, ClassifyRequest, EmbeddingRequest, ImagePart

HI = {"role": "user", "content": "Hi"}


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def refused(schema: Any, body: Any) -> Refusal:
    with pytest.raises(IsthmusError) as caught:
        parsed(schema, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(caught.value, Refusal)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("body", "place", "told"),
    [
        (said(5), "messages.0.content", "expected a string or a list, got a number"),
        (said(["x"]), "messages.0.content.0", "expected an object, got a string"),
        (said([{"type": "text", "text": 3}]), "messages.0.content.0.text", "expected a string"),
        (said([{"type": "image"}]), "messages.0.content.0", "'text', 'image_url'"),
        (said([{"type": "image_url"}]), "messages.0.content.0.image_url", "required"),
        (
            said([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]),
            "messages.0.content.1.image_url.url",
            "required",
        ),
        ({"messages": [HI], "stop": 5}, "stop", "expected a string or a list, got a number"),
        ({"messages": [HI], "stop": ["a", 5]}, "stop.1", "expected a string, got a number"),
        ({"messages": [HI], "stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"messages": [HI], "reasoning": "x"}, "reasoning", "'least-to-most' or 'auto'"),
        (
            {"messages": [HI], "reasoning": {"way": "x"}},
            "reasoning.way",
            "'least-to-most' or 'auto'",
        ),
        ({"messages": [HI], "reasoning": {"wya": 1}}, "reasoning.wya", "not permitted"),
        ({"messages": [HI], "temperature": 3}, "temperature", "expected less than or equal to 2"),
        ({}, "messages", "required"),
        ([], None, "the body: expected an object, got a list"),
    ],
)
def test_the_place_that_is_wrong_and_all_that_could_stand_there(
    body: Any, place: str | None, told: str
) -> None:
    refusal = refused(ChatRequest, body)
    assert refusal.param == place
    assert told in refusal.message
    assert "constrained" not in refusal.message


@pytest.mark.parametrize(
    ("given", "place", "told"),
    [
        ([1, 2, 3], "input", "got token ids"),
        ([[1, 2], [3]], "input", "got token ids"),
        (["a", 3], "input.1", "expected a string, got a number"),
        ({"a": 1}, "input", "expected a string or a list, got an object"),
        ([], "input", "at least 1 item"),
        (["a", ""], "input.1", "at least 1 character"),
    ],
)
def test_what_cannot_be_embedded(given: Any, place: str, told: str) -> None:
    refusal = refused(EmbeddingRequest, {"input": given})
    assert refusal.param == place
    assert told in refusal.message


def test_templates_of_three_kinds() -> None:
    body = {"images": ["x"], "labels": ["a"]}
    assert refused(ClassifyRequest, {**body, "templates": {"a": [1]}}).param == "templates.a.0"
    assert refused(ClassifyRequest, {**body, "templates": [1]}).param == "templates.0"


def test_an_address_alone_is_an_image_url() -> None:
    asked = parsed(
        ChatRequest, json.dumps(said([{"type": "image_url", "image_url": "data:x"}])).encode()
    )
    (part,) = asked.messages[0].content  # type: ignore[misc]
    assert isinstance(part, ImagePart)
    assert part.image_url.url == "data:x"


@pytest.mark.parametrize(
    ("body", "code", "place", "told"),
    [
        (
            b'{"messages": [{"role": "user", "content": "a \\ud83d"}]}',
            "invalid_unicode",
            "messages.0.content",
            "half of a surrogate pair",
        ),
        (b'{"messages": [], "\\ud83d": 1}', "invalid_unicode", None, "half of a surrogate pair"),
        (b'{"messages": [}', "invalid_json", None, "line 1, column 15"),
        (b'{"messages": "\xff"}', "invalid_json", None, "byte 15 is not valid UTF-8"),
        (b"[" * 100_000, "invalid_json", None, "too deep"),
        (b"9" * 10_000, "invalid_json", None, "no JSON"),
    ],
)
def test_what_is_no_json_says_where(body: bytes, code: str, place: str | None, told: str) -> None:
    refusal = refused(ChatRequest, body)
    assert (refusal.code, refusal.param) == (code, place)
    assert told in refusal.message


# --- Forms of an answer --------------------------------------------------------------------------

S = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object", "schema": S}, S),
        ({"type": "json_schema", "schema": S}, S),
        ({"type": "json_schema", "json_schema": {"name": "s", "schema": S}}, S),
        ({"type": "json_object", "json_schema": {"name": "s", "schema": S}}, S),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": {}}, {"type": "object"}),
        ({"type": "text"}, None),
    ],
)
def test_a_schema_is_followed_wherever_it_stands(form: Any, schema: Any) -> None:
    body = json.dumps({"messages": [HI], "response_format": form}).encode()
    asked = parsed(ChatRequest, body)
    assert asked.response_format is not None
    assert asked.response_format.followed == schema


def test_a_schema_that_would_be_dropped_is_refused() -> None:
    for form in (
        {"type": "text", "schema": S},
        {"type": "json_schema", "schema": S, "json_schema": {}},
    ):
        refusal = refused(ChatRequest, {"messages": [HI], "response_format": form})
        assert refusal.param == "response_format"
