"""If what handles failures fails itself: nobody waits for ever, and /health says so."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import torch

import isthmus as im
from isthmus.errors import EngineClosed
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.serving.app import create_app


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    engine = ServingEngine(model, max_batch=1)

    async def health() -> httpx.Response:
        app = create_app(model, engine=engine)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/health")

    assert asyncio.run(health()).status_code == 200

    def fails(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(engine._batch, "step", fails)
    monkeypatch.setattr(engine._batch, "fail_running", fails)
    tickets = []
    for _ in range(3):  # one runs, the others wait
        try:
            request = GenerationRequest(prompt=im.Prompt("Hi"), max_new_tokens=9)
            tickets.append(engine.submit(request))
        except EngineClosed:
            break
    assert tickets
    for ticket in tickets:
        with pytest.raises(EngineClosed, match="has stopped"):
            ticket.result()
    engine._thread.join(10)
    assert not engine.is_alive
    answer = asyncio.run(health())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_stopped"
    with pytest.raises(EngineClosed):
        engine.submit(GenerationRequest(prompt=im.Prompt("Hi")))
