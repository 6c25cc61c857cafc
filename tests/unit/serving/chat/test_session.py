"""A conversation on the page and in the shell says what the endpoint says."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.media.data_uri import data_uri
from isthmus.serving.app import create_app
from isthmus.serving.chat.session import Reply, Session
from isthmus.serving.chat.terminal import Terminal
from isthmus.serving.completions import Service, make_service
from isthmus.serving.refusals import Refusal
from isthmus.serving.settings import ServerSettings


def photo(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    made = make_service(model, ServerSettings(max_new_tokens=12))
    yield made
    made.engine.close(drain=False)


async def whole(session: Session, service: Service, text: str, *shown: bytes, **how: bool) -> Reply:
    last = Reply()
    async for reply in session.ask(service, text, shown, **how):
        last = reply
    assert last.done
    return last


async def endpoint(service: Service, body: dict[str, object]) -> dict[str, str]:
    app = create_app(service.engine.model, settings=service.settings, engine=service.engine)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.post("/v1/chat/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    message: dict[str, str] = answer.json()["choices"][0]["message"]
    return message


def test_the_page_and_the_endpoint_say_the_same(service: Service) -> None:
    async def run() -> None:
        session = Session()
        first = await whole(session, service, "What is it?", photo("red"))
        image = {"type": "image_url", "image_url": {"url": data_uri(photo("red"))}}
        asked = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
        told = await endpoint(service, {"messages": asked})
        assert first.answer == told["content"].strip() != ""
        assert session.add_shot("a red square", "It is red all over.")
        session.start_anew()
        second = await whole(session, service, "And this?", photo("blue"), steps=True)
        shot = {"images": [data_uri(photo("red"))], "question": "What is it?"}
        shot |= {"answer": "a red square", "rationale": "It is red all over."}
        image = {"type": "image_url", "image_url": {"url": data_uri(photo("blue"))}}
        asked = [{"role": "user", "content": [image, {"type": "text", "text": "And this?"}]}]
        told = await endpoint(
            service, {"messages": asked, "shots": [shot], "reasoning": True, "max_tokens": 12}
        )
        assert second.answer == told["content"].strip()
        assert second.rationale == told["reasoning_content"].strip() != ""

    asyncio.run(run())


def test_a_further_question_knows_what_was_said(service: Service) -> None:
    async def run() -> None:
        session = Session()
        first = await whole(session, service, "One?")
        await whole(session, service, "Two?")
        roles = [message["role"] for message in session.messages]
        assert roles == ["user", "assistant", "user", "assistant"]
        assert session.messages[1]["content"] == first.answer
        asked = session.request("Three?").messages
        assert [m.role for m in asked] == [*roles, "user"]

    asyncio.run(run())


def test_a_stopped_answer_stays_as_far_as_it_came(service: Service) -> None:
    async def run() -> None:
        session = Session()
        answers = session.ask(service, "Why?")
        first = await anext(answers)
        await answers.aclose()
        assert session.messages[-1] == {"role": "assistant", "content": first.answer.strip()}

    before = service.engine.statistics().cancelled
    asyncio.run(run())
    for _ in range(200):
        if service.engine.statistics().running == 0:
            break
        asyncio.run(asyncio.sleep(0.01))
    assert service.engine.statistics().cancelled == before + 1


def test_steps_that_fill_the_context_end_without_an_answer(service: Service) -> None:
    long = replace(service, settings=ServerSettings(max_new_tokens=2048))
    question = "And why? " * 90  # steps of up to 256 tokens behind it, in a context of 1024
    reply = asyncio.run(whole(Session(), long, question, photo("red"), steps=True))
    assert reply.rationale
    assert reply.answer == ""


def test_what_is_no_image_leaves_the_conversation_as_it_was(service: Service) -> None:
    session = Session()
    with pytest.raises((Refusal, im.ImageError)):
        asyncio.run(whole(session, service, "What?", b"no image"))
    assert session.messages == []
    assert not session.add_shot("nothing")


def test_the_shell(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "red.png").write_bytes(photo("red"))
    lines = [
        "/help",
        "/image nowhere.png",
        f"/image {tmp_path / 'red.png'}",
        "What is it?",
        "/shot a red square",
        "/steps maybe",
        "/steps on",
        "/new",
        "/nonsense",
        "",
        "And now?",
        "/quit",
        "never read",
    ]
    out = io.StringIO()
    terminal = Terminal(service, io.StringIO("\n".join(lines)), out)
    terminal.run()
    told = capsys.readouterr().err
    assert "no file at nowhere.png" in told
    assert "there is no /nonsense" in told
    assert "say /steps on" in told
    assert terminal.steps
    assert len(terminal.session.shots) == 1
    expected = asyncio.run(whole(Session(), service, "What is it?", photo("red")))
    assert out.getvalue().splitlines()[0].strip() == expected.answer.splitlines()[0].strip()
    assert len(terminal.session.messages) == 2  # the conversation was begun anew


def test_an_error_does_not_end_the_shell(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    Terminal(service, io.StringIO("<image>\nHi\n"), out).run()
    assert capsys.readouterr().err.startswith("error: ")
    assert out.getvalue().strip()


def test_a_path_with_spaces(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sp ace").mkdir()
    for name in ("my cat.jpg", "it's.png"):
        (tmp_path / "sp ace" / name).write_bytes(photo("red"))
    cat, other = tmp_path / "sp ace" / "my cat.jpg", tmp_path / "sp ace" / "it's.png"
    lines = [
        f'/image "{cat}"',
        f"/image {cat}",  # as it is
        "/image " + str(cat).replace(" ", "\\ "),  # as a terminal pastes it
        f"/image {other}",
        f'/image "{cat}" "{other}"',
        '/image "not closed',
        "/image",
    ]
    Terminal(service, io.StringIO("\n".join(lines)), io.StringIO()).run()
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["1", "2", "3", "4", "6", "error:", "error:"]
    assert "close the quote" in told[5]
    assert "no path" in told[6]
