"""Choices as OpenAI's objects: `chat.completion`, and `chat.completion.chunk` as events."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import isthmus
from isthmus.generation.requests import TokenLogprob
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.live import AnswerStream, Piece
from isthmus.serving.refusals import Refusal, refusal_of
from isthmus.serving.schemas import ChatRequest, ReasoningOptions

log = logging.getLogger("isthmus.serving")


def new_id() -> str:
    """The name of a completion."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def _head(name: str, kind: str, model: str, created: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": kind,
        "created": created,
        "model": model,
        "system_fingerprint": f"isthmus-{isthmus.__version__}",
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            "token": t.text,
            "logprob": max(t.logprob, -9999.0),
            "bytes": list(t.bytes),
            "top_logprobs": [
                {
                    "token": text,
                    "logprob": max(logprob, -9999.0),
                    "bytes": list(text.encode("utf-8", "replace")),
                }
                for _, text, logprob in t.top
            ],
        }
        for t in tokens
    ]
    return {"content": content, "refusal": None}


def usage_of(choices: Sequence[AnswerStream], answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of all choices; the first prompt, which they share, counts once."""
    first = choices[0].first
    assert first is not None
    completion = sum(a.new_tokens for a in answers)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": sum(a.rationale_tokens for a in answers)},
    }


async def whole(asked: ChatRequest, choices: Sequence[AnswerStream], model: str) -> dict[str, Any]:
    """All choices as one `chat.completion`."""
    told: list[dict[str, Any]] = []
    answers: list[Answer] = []
    for number, (tokens, answer) in enumerate(await asyncio.gather(*map(_collected, choices))):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if asked.reasoning:
            message["reasoning_content"] = answer.rationale
        told.append(
            {
                "index": number,
                "message": message,
                "logprobs": _logprobs(tokens) if asked.logprobs else None,
                "finish_reason": answer.finish_reason,
                **_besides(asked, answer),
            }
        )
        answers.append(answer)
    head = _head(new_id(), "chat.completion", model, int(time.time()))
    return {**head, "choices": told, "usage": usage_of(choices, answers)}


def _besides(asked: ChatRequest, answer: Answer) -> dict[str, Any]:
    """What is told of an answer beside OpenAI's fields: prompts, and the outcome of a vote."""
    told: dict[str, Any] = {}
    if isinstance(asked.reasoning, ReasoningOptions) and asked.reasoning.samples > 1:
        told["vote"] = {
            "votes": answer.votes,
            "agreement": answer.agreement,
            "unparsed": answer.unparsed,
        }
    if asked.return_prompt:
        told["prompts"] = list(answer.prompts)
    return told


async def _collected(choice: AnswerStream) -> tuple[list[TokenLogprob], Answer]:
    tokens: list[TokenLogprob] = []
    async for event in choice.events():
        if isinstance(event, Answer):
            return tokens, event
        if event.part == "answer":
            tokens.extend(event.tokens)
    raise AssertionError("an answer ended without its end")


async def streamed(
    asked: ChatRequest, choices: Sequence[AnswerStream], model: str
) -> AsyncIterator[bytes]:
    """All choices as server-sent events: roles, pieces, ends, usage if wanted, `[DONE]`.

    Nothing is yielded before a first piece is there, so that what fails at once has a status.
    """
    head = _head(new_id(), "chat.completion.chunk", model, int(time.time()))
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)

    def chunk(listed: list[dict[str, Any]], usage: Any = None) -> bytes:
        told = {**head, "choices": listed}
        if with_usage:
            told["usage"] = usage
        return _event(told)

    def choice(number: int, delta: dict[str, Any], **rest: Any) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **rest}

    pieces: asyncio.Queue[tuple[int, Piece | Answer | BaseException]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(n, c, pieces)) for n, c in enumerate(choices)]
    ends: dict[int, Answer] = {}
    try:
        number, event = await pieces.get()
        if isinstance(event, BaseException):
            raise event
        for n in range(len(choices)):
            yield chunk([choice(n, {"role": "assistant", "content": "", "refusal": None})])
        while True:
            if isinstance(event, BaseException):
                if not isinstance(event, Refusal):
                    log.error("an answer broke off: %s", type(event).__name__)
                yield _event(refusal_of(event).body)
                return
            if isinstance(event, Answer):
                ends[number] = event
                more = _besides(asked, event)
                yield chunk([choice(number, {}, finish_reason=event.finish_reason, **more)])
                if len(ends) == len(choices):
                    break
            else:
                name = "content" if event.part == "answer" else "reasoning_content"
                known = asked.logprobs and event.part == "answer"
                logprobs = _logprobs(event.tokens) if known else None
                yield chunk([choice(number, {name: event.text}, logprobs=logprobs)])
            number, event = await pieces.get()
        if with_usage:
            yield chunk([], usage_of(choices, [ends[n] for n in sorted(ends)]))
        yield b"data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        for one in choices:
            one.cancel()


async def _pump(
    number: int,
    choice: AnswerStream,
    pieces: asyncio.Queue[tuple[int, Piece | Answer | BaseException]],
) -> None:
    try:
        async for event in choice.events():
            await pieces.put((number, event))
    except Exception as error:  # told by the one who reads
        await pieces.put((number, error))


def _event(told: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(told, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(
        "utf-8", "replace"
    )
