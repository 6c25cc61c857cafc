"""What is generated from the server's own description of itself never breaks it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from isthmus.serving.app import create_app
from isthmus.serving.settings import ServerSettings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture
def schema(model: Any, dual: Any) -> Any:
    options = ServerSettings(
        allowed_hosts=("testserver",), max_new_tokens=2, timeout=0.3, dual_encoder_name="clip"
    )
    app = create_app(model, dual_encoder=dual, settings=options)
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_it(schema: Any, mode: GenerationMode) -> None:
    seen = Counter[int]()
    paths = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)
        if mode is GenerationMode.NEGATIVE and operation.method != "post":
            continue

        @settings(
            max_examples=20,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
                case.body.pop("model", None)  # a name that was made up is nobody's
            answer = case.call()
            seen[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        holds()
    assert {"/v1/chat/completions", "/v1/embeddings", "/v1/classify"} <= paths
    assert seen[400] > 0
    assert sum(seen.values()) > 50
