"""From a request's body to what it says, and from what is wrong with it to one clear sentence.

Where a value may be of several kinds, pydantic tries each and reports every one that did not fit,
under names of its own for them. What is told here is the place in the body that is wrong, as the
client wrote it, and everything that could stand there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from isthmus.data.json_lines import surrogate_in
from isthmus.serving.refusals import Refusal

M = TypeVar("M", bound=BaseModel)
_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_SHOULD = "Input should be "
_OURS = {
    "string": "a string",
    "array": "a list",
    "list": "a list",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "a boolean",
    "object": "an object",
    "dictionary": "an object",
    "dictionary or object to extract fields from": "an object",
}
_HALF = "holds half of a surrogate pair: expected whole characters, an emoji as both of its halves"
MOST_TOLD = 300
"""Characters of what is told; pydantic quotes what clients send."""


class _Mistake(NamedTuple):
    """Something that does not fit.

    Attributes:
        place: Where it stands in the body.
        kind: pydantic's name of the error.
        told: What it says of it.
        branches: Whether it is one of several kinds that were tried.
    """

    place: tuple[str | int, ...]
    kind: str
    told: str
    branches: bool


def parsed(schema: type[M], body: bytes) -> M:
    """A body as its schema has it.

    Args:
        schema: The schema.
        body: JSON.

    Raises:
        Refusal: 400 if it is no JSON, no Unicode, or does not fit; `param` says which part.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        raise _no_json(body)
    raise _refused(found, from_json(body))


def _no_json(body: bytes) -> Refusal:
    """Why a body cannot be read as JSON; nothing of it is quoted but its place."""
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        why = f"{error.msg} at line {error.lineno}, column {error.colno}"
        return Refusal(400, f"the body is no JSON: {why}", "invalid_json")
    except UnicodeDecodeError as error:
        why = f"byte {error.start + 1} is not valid UTF-8"
        return Refusal(400, f"the body is no JSON: {why}", "invalid_json")
    except (RecursionError, ValueError):  # of a number with thousands of digits
        return Refusal(400, "the body is no JSON, or too deep", "invalid_json")
    try:
        place, wrong = surrogate_in(value)
    except RecursionError:
        place, wrong = (), ""
    if wrong:
        where = _written(place) or "the body"
        return Refusal(400, f"{where} {_HALF}", "invalid_unicode", _written(place) or None)
    return Refusal(400, "the body is no JSON, or too deep", "invalid_json")


def _refused(found: Sequence[ErrorDetails], body: Any) -> Refusal:
    """The refusal for what does not fit: the deepest place of what was tried for the first."""
    mistakes = [_mistake(error, body) for error in found]
    chosen = [mistakes[0]]
    if mistakes[0].branches:
        root = mistakes[0].place
        tried = [m for m in mistakes if m.branches and m.place[: len(root)] == root]
        deepest = next((m for m in tried if len(m.place) > len(root)), mistakes[0])
        here = [m for m in tried if m.place == deepest.place]
        # What is of the right kind and does not fit otherwise says more than the other kinds do
        chosen = [m for m in here if not m.kind.endswith("_type")] or here
    first = chosen[0]
    place = _written(first.place)
    where = place or "the body"
    if first.kind == "missing":
        return Refusal(400, f"{where}: {first.told}", "missing_parameter", place or None)
    told = " or ".join(dict.fromkeys(_expected(m.told) for m in chosen))[:MOST_TOLD]
    if first.told.startswith(_SHOULD):
        told = f"expected {told}"
    if first.kind.endswith("_type"):
        told += f", got {_KINDS[type(_value(body, first.place))]}"
    return Refusal(400, f"{where}: {told}", "invalid_value", place or None)


def _mistake(error: ErrorDetails, body: Any) -> _Mistake:
    """An error with its place as the client wrote it: steps that are not in the body fall away."""
    place: list[str | int] = []
    value, branches = body, False
    steps = error["loc"]
    for number, step in enumerate(steps):
        inside = (isinstance(value, dict) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        if inside:
            place.append(step)
            value = value[step]
        elif error["type"] == "missing" and number == len(steps) - 1:
            place.append(step)
        else:
            branches = True
    return _Mistake(tuple(place), error["type"], error["msg"], branches)


def _value(body: Any, place: Sequence[str | int]) -> Any:
    """What stands at a place of a body."""
    for step in place:
        body = body[step]
    return body


def _expected(told: str) -> str:
    """What may stand there, in our words where pydantic's are only that."""
    short = told.removeprefix(_SHOULD).removeprefix("a valid ").removeprefix("an ")
    return _OURS.get(short.removeprefix("a "), short)


def _written(place: Sequence[str | int]) -> str:
    return ".".join(str(step) for step in place)
