"""The official client, and the requests of evaluation suites as their code sends them, against a
real server."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

import isthmus as im
from isthmus.generation.engine import Engine
from isthmus.prompts.prompt import Prompt
from isthmus.serving.app import create_app
from isthmus.serving.settings import ServerSettings


def _shared() -> Any:
    """The helpers of the unit tests."""
    path = Path(__file__).parent.parent / "unit" / "serving" / "conftest.py"
    spec = importlib.util.spec_from_file_location("serving_helpers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving_helpers"] = module
    spec.loader.exec_module(module)
    return module


shared = _shared()
image_uri, image_of = shared.image_uri, shared.image_of


@pytest.fixture(scope="module", params=["inline", "cross-attention"])
def model(request: pytest.FixtureRequest) -> Any:
    fusion = im.Inline() if request.param == "inline" else im.CrossAttention(every=2)
    return shared.tiny_model(fusion=fusion)


@pytest.fixture(scope="module")
def running(model: Any) -> Iterator[Any]:
    settings = ServerSettings(port=0, model_name="tiny", dual_encoder_name="clip", api_key="key")
    app = create_app(model, dual_encoder=shared.tiny_dual(), settings=settings)
    with shared.serving(app, settings) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="key", max_retries=0) as made:
        yield made


def said(text: str, *images: str, role: str = "user") -> dict[str, Any]:
    """A message: images, then a text."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": p, "detail": "auto"}} for p in images
    ]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def ask(client: openai.OpenAI, *messages: Any, **options: Any) -> Any:
    options = {"model": "tiny", "max_tokens": 12, **options}
    return client.chat.completions.create(messages=list(messages), **options)


def test_an_answer_is_what_ask_gives(client: openai.OpenAI, model: Any) -> None:
    uris = [image_uri(1), image_uri(2)]
    for shown in ([], uris[:1], uris):
        served = ask(client, said("What is it?", *shown), extra_body={"return_prompt": True})
        own = im.ask(model, [image_of(u) for u in shown], "What is it?", max_new_tokens=12)
        [choice] = served.choices
        assert choice.message.content.strip() == own.text
        assert choice.model_extra["prompts"] == [own.prompt]
        assert served.usage.prompt_tokens == own.prompt_tokens
        assert served.object == "chat.completion"
        assert served.usage.total_tokens == own.prompt_tokens + served.usage.completion_tokens


def test_a_image_changes_the_answer(client: openai.OpenAI) -> None:
    texts = {ask(client, said("What?", image_uri(n))).choices[0].message.content for n in (1, 2)}
    assert len(texts) == 2


def test_a_stream_is_openai_s(running: Any) -> None:
    body = {
        "messages": [said("Hi", image_uri())],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = httpx.post(
        f"{running.url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer key"}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len({(c["id"], c["created"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks[:-2])
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert chunks[-1]["choices"] == []
    assert [c["usage"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
    plain = {k: v for k, v in body.items() if not k.startswith("stream")}
    whole = httpx.post(
        f"{running.url}/v1/chat/completions", json=plain, headers={"Authorization": "Bearer key"}
    ).json()
    assert text == whole["choices"][0]["message"]["content"]
    told = chunks[-1]["usage"]
    assert {k: told[k] for k in ("prompt_tokens", "completion_tokens")} == {
        k: whole["usage"][k] for k in ("prompt_tokens", "completion_tokens")
    }


def test_the_client_reads_the_stream(client: openai.OpenAI) -> None:
    message = said("Hi", image_uri(3))
    pieces = list(ask(client, message, stream=True))
    assert all(p.usage is None for p in pieces)
    text = "".join(c.delta.content or "" for p in pieces for c in p.choices)
    assert text == ask(client, message).choices[0].message.content


def test_a_later_turn_begins_with_the_earlier_one(client: openai.OpenAI) -> None:
    talk = [{"role": "system", "content": "Be brief."}, said("What?", image_uri(1))]
    shown = {"return_prompt": True}
    first = ask(client, *talk, extra_body=shown)
    answer = first.choices[0].message.content
    later = [*talk, {"role": "assistant", "content": answer}, said("And now?", image_uri(2))]
    second = ask(client, *later, extra_body=shown)
    [before], [after] = (r.choices[0].model_extra["prompts"] for r in (first, second))
    assert after.startswith(before)
    assert after.removeprefix(before).lstrip().startswith(answer)
    assert after.count("<image>") == 2


def test_developer_is_system(client: openai.OpenAI) -> None:
    texts = [
        ask(
            client,
            {"role": role, "content": "Be brief."},
            said("Why?"),
            extra_body={"return_prompt": True},
        )
        for role in ("system", "developer")
    ]
    assert len({t.choices[0].model_extra["prompts"][0] for t in texts}) == 1


def test_logprobs_are_the_models(client: openai.OpenAI, model: Any) -> None:
    uri = image_uri(4)
    found = ask(client, said("What?", uri), logprobs=True, top_logprobs=3, max_tokens=6)
    choice = found.choices[0]
    tokens = choice.logprobs.content
    prompt = Prompt("<image>Question: What? Answer:", (model.vision.preprocess(image_of(uri)),))
    [own] = Engine(model).generate([prompt], max_new_tokens=6)
    total = sum(t.logprob for t in tokens)
    assert len(tokens) in (len(own.completions[0].ids), len(own.completions[0].ids) - 1)
    if not own.completions[0].finished:
        assert total == pytest.approx(own.completions[0].logprob, abs=1e-3)
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # greedy
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    read = b"".join(bytes(t.bytes) for t in tokens).decode("utf-8", "replace")
    assert read.lstrip().startswith(choice.message.content[:3])
    streamed = ask(
        client, said("What?", uri), logprobs=True, top_logprobs=3, max_tokens=6, stream=True
    )
    again = [
        t.logprob for p in streamed for c in p.choices if c.logprobs for t in c.logprobs.content
    ]
    assert again == pytest.approx([t.logprob for t in tokens], abs=1e-5)
    assert ask(client, said("What?", uri)).choices[0].logprobs is None


def test_stop_cuts_and_is_told(client: openai.OpenAI) -> None:
    whole = ask(client, said("Tell me", image_uri(1)), max_tokens=20).choices[0].message.content
    stop = whole[4:6]
    for given in (stop, ["nowhere", stop]):
        cut = ask(client, said("Tell me", image_uri(1)), max_tokens=20, stop=given).choices[0]
        assert cut.message.content == whole[: whole.index(stop)]
        assert cut.finish_reason == "stop"
    assert ask(client, said("Tell me"), max_tokens=2).choices[0].finish_reason == "length"


def test_a_seed_gives_one_text(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str:
        made = ask(client, said("Go on", image_uri(1)), temperature=1.0, seed=seed)
        return made.choices[0].message.content

    assert drawn(7) == drawn(7)
    assert len({drawn(n) for n in range(4)}) > 1


def test_several_choices(client: openai.OpenAI) -> None:
    made = ask(client, said("Go on"), n=3, temperature=1.0, seed=7)
    texts = [c.message.content for c in made.choices]
    assert [c.index for c in made.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    one = ask(client, said("Go on"), temperature=1.0, seed=7)
    assert one.choices[0].message.content == texts[0]
    assert made.usage.prompt_tokens == one.usage.prompt_tokens
    assert made.usage.completion_tokens > one.usage.completion_tokens
    pieces = list(ask(client, said("Go on"), n=3, temperature=1.0, seed=7, stream=True))
    for index, text in enumerate(texts):
        own = [c for p in pieces for c in p.choices if c.index == index]
        assert "".join(c.delta.content or "" for c in own) == text
        assert [c.finish_reason for c in own if c.finish_reason] == [
            made.choices[index].finish_reason
        ]


def test_shots_and_steps_are_the_library_s(client: openai.OpenAI, model: Any) -> None:
    shots = [
        {"images": [image_uri(5)], "question": "How many?", "answer": "2", "rationale": "1+1."}
    ]
    examples = [im.Example(image_of(image_uri(5)), "How many?", "2", "1+1.")]
    asked = said("How many?", image_uri(6))
    image = image_of(image_uri(6))
    body: dict[str, Any] = {"shots": shots, "return_prompt": True}
    plain = ask(client, asked, extra_body=body).choices[0]
    own = im.ask(model, image, "How many?", shots=examples, max_new_tokens=12)
    assert plain.model_extra["prompts"] == [own.prompt]
    assert plain.message.content.strip() == own.text
    assert "reasoning_content" not in plain.message.model_extra
    for way, given in (("cot", examples), ("zero-cot", [])):
        how = im.Reasoning(way, max_rationale_tokens=10, max_new_tokens=6)  # type: ignore[arg-type]
        own = im.ask(model, image, "How many?", shots=given, reasoning=how)
        body = {
            "shots": shots if given else [],
            "reasoning": {"max_rationale_tokens": 10, "max_new_tokens": 6},
            "return_prompt": True,
        }
        made = ask(client, asked, extra_body=body, max_tokens=99)
        choice = made.choices[0]
        assert tuple(choice.model_extra["prompts"]) == own.prompts
        assert choice.message.content == own.text
        assert choice.message.model_extra["reasoning_content"] == own.rationale
        assert made.usage.completion_tokens_details.reasoning_tokens > 0
        pieces = list(ask(client, asked, extra_body=body, max_tokens=99, stream=True))
        deltas = [c.delta for p in pieces for c in p.choices]
        steps = "".join((d.model_extra or {}).get("reasoning_content") or "" for d in deltas)
        assert steps.strip() == own.rationale
        assert "".join(d.content or "" for d in deltas) == own.text


def test_a_trigger_of_one_s_own_and_one_in_the_question_s_language(client: openai.OpenAI) -> None:
    def lead(text: str, reasoning: Any) -> str:
        body = {"reasoning": reasoning, "return_prompt": True}
        made = ask(client, said(text), extra_body=body, max_tokens=4)
        return made.choices[0].model_extra["prompts"][0]

    assert lead("왜?", {}).endswith("차근차근 생각해봐.")
    assert lead("Why?", True).endswith("Let's think step by step.")
    assert lead("Why?", {"trigger": "Count them."}).endswith("Count them.")


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny", "clip"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_embeddings_are_the_dual_encoder_s(client: openai.OpenAI) -> None:
    dual = shared.tiny_dual()
    uri = image_uri(1)
    with torch.no_grad():
        cat, dog = dual.encode_texts(["a cat", "a dog"])
        own = [cat, dual.encode_images([image_of(uri)])[0], dog]
    for form in ("float", "base64", None):
        options = {"encoding_format": form} if form else {}  # the client's own default is base64
        made = client.embeddings.create(model="clip", input=["a cat", uri, "a dog"], **options)
        for one, vector in zip(made.data, own, strict=True):
            given = one.embedding
            if isinstance(given, str):
                given = np.frombuffer(base64.b64decode(given), "<f4").tolist()
            np.testing.assert_allclose(given, vector.numpy(), atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="one width"):
        client.embeddings.create(model="clip", input="a cat", dimensions=2)


def test_classify_is_the_classifier_s(client: openai.OpenAI) -> None:
    uris, labels = [image_uri(n) for n in range(3)], ["cat", "dog", "ice cream"]
    dual = shared.tiny_dual()
    images = [image_of(u) for u in uris]
    for options in ({}, {"threshold": 0.99}, {"multi_label": True}):
        own = im.ZeroShotClassifier(dual, labels, "one", cache=False, **options)
        body = {"images": uris, "labels": labels, "templates": "one", "top": 2, **options}
        made = client.post("/classify", body=body, cast_to=object)
        assert isinstance(made, dict)
        for i, found in enumerate(made["data"]):
            best = own.top(images, 2)[i]
            assert [s["label"] for s in found["scores"]] == [name for name, _ in best]
            assert [s["probability"] for s in found["scores"]] == pytest.approx(
                [p for _, p in best], abs=1e-5
            )
            held = own.predict(images)[i]
            if "multi_label" in options:
                expected = [n for n, h in zip(labels, held, strict=True) if h]
                assert found["labels"] == (expected or ["none of these"])
            else:
                assert found["label"] == held


# --- Evaluation suites -----------------------------------------------------------------------


def test_lmms_eval_s_request(client: openai.OpenAI) -> None:
    """Text first, then PNG data URIs; system-less; max_tokens and temperature."""
    content = [
        {"type": "text", "text": "What is shown?\nAnswer with one word."},
        {"type": "image_url", "image_url": {"url": image_uri(1)}},
        {"type": "image_url", "image_url": {"url": image_uri(2)}},
    ]
    payload: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
        "temperature": 0,
    }
    made = client.chat.completions.create(**payload, extra_body={"return_prompt": True})
    assert made.choices[0].message.content
    prompt = made.choices[0].model_extra["prompts"][0]
    # the model learned images before the question
    assert prompt.startswith("<image><image>Question: What is shown?")


def test_vlmevalkit_s_request(running: Any) -> None:
    """32,768 tokens are clamped to the context; n=1; sampling keys of other servers; key in header;
    the system's message, and an interleaved conversation."""
    payload = {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "You are helpful."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "First:"},
                    {
                        "type": "image_url",
                        "image_url": {"url": image_uri(1, kind="JPEG"), "detail": "low"},
                    },
                    {"type": "text", "text": "What?"},
                ],
            },
        ],
        "n": 1,
        "temperature": 0.0,
        "max_tokens": 32768,
        "top_k": 1,
        "top_p": 0.001,
        "repetition_penalty": 1.05,
        "presence_penalty": 1.5,
        "stop": ["\n"],
        "timeout": 300,
    }
    made = httpx.post(
        f"{running.url}/v1/chat/completions",
        headers={"Content-Type": "application/json", "Authorization": "Bearer key"},
        content=json.dumps(payload),
        timeout=300,
    )
    assert made.status_code == 200
    answer = made.json()
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["total_tokens"] <= running.app.state.engine.context_length


# --- Refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "code", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"temperature": 3}, 400, "invalid_value", "temperature"),
        ({"n": 9}, 400, "invalid_value", "n"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "invalid_value", None),
        ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
        (
            {"response_format": {"type": "json_schema"}},
            400,
            "missing_parameter",
            "response_format.json_schema",
        ),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"messages": [said("x", role="tool")]}, 400, "invalid_value", "messages.0.role"),
        ({"messages": [said("an <image> tag")]}, 400, "invalid_value", None),
        ({"messages": [said("long " * 400)]}, 400, "context_length_exceeded", "messages"),
        ({"messages": [said("long " * 40000)]}, 400, "context_length_exceeded", "messages"),
        (
            {"messages": [said("x", "data:image/png;base64,AAAA")]},
            422,
            "invalid_image",
            "messages.0.content.0.image_url.url",
        ),
        (
            {"messages": [said("x", "https://example.org/cat.png")]},
            400,
            "invalid_image_url",
            "messages.0.content.0.image_url.url",
        ),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_value", None),
    ],
)
def test_errors_are_openai_s(
    client: openai.OpenAI, options: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    for stream in (False, True):
        body = {"messages": [said("x")], "stream": stream, "model": "tiny", **options}
        with pytest.raises(openai.APIStatusError) as caught:
            client.post("/chat/completions", body=body, cast_to=object)
        error = caught.value
        assert (error.status_code, error.code) == (status, code)
        assert param is None or error.param == param
        assert isinstance(error.body, dict)
        assert set(error.body) == {"message", "type", "param", "code"}
        assert error.body["message"]


def test_a_wrong_key(running: Any) -> None:
    with (
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"
