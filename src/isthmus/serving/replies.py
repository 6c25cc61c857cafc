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
from isthmus.generation.server import TokenLogprob
from isthmus.serving.answering import Choice, Ended, Said
from isthmus.serving.refusals import Refusal, refusal_of
from isthmus.serving.schemas import ChatRequest

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


def usage_of(ends: Sequence[Ended]) -> dict[str, Any]:
    """Tokens of all choices; the prompt, which they share, counts once."""
    prompt, completion = ends[0].prompt_tokens, sum(e.completion_tokens for e in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": ends[0].cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": sum(e.thought_tokens for e in ends)},
    }


async def whole(asked: ChatRequest, choices: Sequence[Choice], model: str) -> dict[str, Any]:
    """All choices as one `chat.completion`."""
    told: list[dict[str, Any]] = []
    ends: list[Ended] = []
    for number, found in enumerate(await asyncio.gather(*map(_collected, choices))):
        said, end = found
        text = "".join(s.text for s in said if not s.thought)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if asked.reasoning:
            steps = "".join(s.text for s in said if s.thought).strip()
            message["reasoning_content"] = steps or None
        tokens = [t for s in said if not s.thought for t in s.tokens]
        choice = {
            "index": number,
            "message": message,
            "logprobs": _logprobs(tokens) if asked.logprobs else None,
            "finish_reason": end.reason,
        }
        if asked.return_prompt:
            choice["prompts"] = list(end.prompts)
        told.append(choice)
        ends.append(end)
    head = _head(new_id(), "chat.completion", model, int(time.time()))
    return {**head, "choices": told, "usage": usage_of(ends)}


async def _collected(choice: Choice) -> tuple[list[Said], Ended]:
    said: list[Said] = []
    async for event in choice.events():
        if isinstance(event, Ended):
            return said, event
        said.append(event)
    raise AssertionError("a choice ended without its end")


async def streamed(
    asked: ChatRequest, choices: Sequence[Choice], model: str
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

    pieces: asyncio.Queue[tuple[int, Said | Ended | BaseException]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(n, c, pieces)) for n, c in enumerate(choices)]
    ends: dict[int, Ended] = {}
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
            if isinstance(event, Ended):
                ends[number] = event
                more = {"prompts": list(event.prompts)} if asked.return_prompt else {}
                yield chunk([choice(number, {}, finish_reason=event.reason, **more)])
                if len(ends) == len(choices):
                    break
            else:
                name = "reasoning_content" if event.thought else "content"
                known = asked.logprobs and not event.thought
                logprobs = _logprobs(event.tokens) if known else None
                yield chunk([choice(number, {name: event.text}, logprobs=logprobs)])
            number, event = await pieces.get()
        if with_usage:
            yield chunk([], usage_of([ends[n] for n in sorted(ends)]))
        yield b"data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        for one in choices:
            one.cancel()


async def _pump(
    number: int, choice: Choice, pieces: asyncio.Queue[tuple[int, Said | Ended | BaseException]]
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
