"""From a request of `/v1/chat/completions` to the choices that answer it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isthmus.errors import PromptError
from isthmus.media.fetch import Fetcher
from isthmus.model import VisionLanguageModel
from isthmus.prompt import Example, Prompt
from isthmus.prompting.chains import STEP_STOPS
from isthmus.prompting.reason import way_for
from isthmus.serving.answering import Choice, Steps
from isthmus.serving.conversation import Conversations, Form, Turn
from isthmus.serving.engine import GenerationRequest, ServingEngine
from isthmus.serving.media import PictureReader
from isthmus.serving.metrics import Metrics
from isthmus.serving.refusals import Refusal
from isthmus.serving.schemas import OTHER_FORMS, UNSERVED, ChatRequest, ReasoningOptions
from isthmus.serving.settings import ServerSettings
from isthmus.templates import shown_answer
from isthmus.triggers import trigger_named

_SEEDS = 1 << 32
_CHARACTERS = 64
"""More characters to a token than any prompt has."""


@dataclass
class Service:
    """What answers are made with.

    Attributes:
        engine: Generates.
        talk: Makes prompts of conversations.
        pictures: Reads pictures.
        sees: Whether the model sees any.
        settings: Limits.
        metrics: Counts answers.
        markers: Strings that nothing a model wrote may bring into a prompt.
    """

    engine: ServingEngine
    talk: Conversations
    pictures: PictureReader
    settings: ServerSettings
    metrics: Metrics
    sees: bool = True
    markers: tuple[str, ...] = ()

    def check(self, asked: ChatRequest) -> None:
        """Refuses what would be answered with something else.

        Raises:
            Refusal: 400 or 404.
        """
        if asked.model not in (None, self.settings.model_name):
            raise Refusal(
                404,
                f'there is no such model here: expected "{self.settings.model_name}"',
                "model_not_found",
                "model",
            )
        form = asked.response_format
        if form is not None and form.type != "text":
            if form.followed is None:
                raise Refusal(
                    400,
                    'the type json_schema needs {"json_schema": {"name": ..., "schema": ...}}',
                    "missing_parameter",
                    "response_format.json_schema",
                )
            if asked.reasoning:
                raise Refusal(
                    400,
                    "steps are free text: leave reasoning or response_format out",
                    "invalid_value",
                    "response_format",
                )
        for name in (*UNSERVED, *OTHER_FORMS):
            if getattr(asked, name):
                mend = "say the form in response_format" if name in OTHER_FORMS else "leave it out"
                raise Refusal(400, f"{name} is not served: {mend}", "unsupported_parameter", name)
        if asked.modalities is not None and asked.modalities != ["text"]:
            raise Refusal(400, 'expected modalities ["text"]', "unsupported_value", "modalities")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")

    async def choices(self, asked: ChatRequest) -> list[Choice]:
        """The choices of a request, all in line.

        Raises:
            Refusal, InputError, QueueFull: If it cannot be answered.
        """
        self.check(asked)
        turns, shots = await self._read(asked)
        form = self.talk.form(turns, shots)
        steps, lead = self._steps(asked, turns, shots)
        if steps is not None and steps.way == "cot":
            said = steps.trigger.wording.conclusion
            shots = [replace(s, answer=shown_answer(s, said), rationale=None) for s in shots]
        if steps is not None:
            steps = replace(steps, prompt=lambda begun: form.prompt(turns, shots, lead=begun))
        prompt = await asyncio.to_thread(form.prompt, turns, shots, lead=lead)
        if len(prompt.text) > _CHARACTERS * self.engine.context_length:
            raise self._too_long("a prompt")  # reading megabytes into tokens would take a while
        count = asked.n or 1
        choices = [
            Choice(
                self.engine,
                self._request(asked, form, prompt, steps, number),
                steps,
                not form.is_chat,
                self._finished,
            )
            for number in range(count)
        ]
        try:
            for choice in choices:
                await choice.start()
        except PromptError as error:
            tokens = await asyncio.to_thread(self.engine.prompt_tokens, prompt)
            if tokens >= self.engine.context_length:
                raise self._too_long(f"a prompt of {tokens} tokens") from error
            raise
        except BaseException:
            for choice in choices:
                choice.cancel()
            raise
        return choices

    def _too_long(self, got: str) -> Refusal:
        return Refusal(
            400,
            f"got {got}, expected fewer than the {self.engine.context_length} tokens of the "
            "model's context: send fewer or shorter messages",
            "context_length_exceeded",
            "messages",
        )

    def _finished(self, end: Any) -> None:
        tokens = end.usage.completion_tokens
        self.metrics.answered(end.first_token_s, end.total_s, tokens)

    async def _read(self, asked: ChatRequest) -> tuple[list[Turn], list[Example]]:
        """Turns and demonstrations, their pictures read."""
        places: list[tuple[str, str]] = []
        for i, shot in enumerate(asked.shots):
            places += [(f"shots.{i}.pictures.{j}", url) for j, url in enumerate(shot.pictures)]
        for i, message in enumerate(asked.messages):
            if isinstance(message.content, str) or message.content is None:
                if message.content is None and message.role != "assistant":
                    raise Refusal(
                        400,
                        f"a message of the {message.role}'s has no content: expected a text",
                        "invalid_value",
                        f"messages.{i}.content",
                    )
                continue
            for j, part in enumerate(message.content):
                if part.type == "image_url":
                    place = f"messages.{i}.content.{j}.image_url.url"
                    if message.role != "user":
                        raise Refusal(
                            400, "pictures go into the user's messages", "invalid_value", place
                        )
                    places.append((place, part.image_url.url))
        pictures = iter(await self._pictures(places))
        shots = [
            Example(tuple(next(pictures) for _ in s.pictures), s.question, s.answer, s.rationale)
            for s in asked.shots
        ]
        turns = []
        for message in asked.messages:
            content = message.content
            parts: tuple[Any, ...] = (content or "",)
            if isinstance(content, list):
                parts = tuple(p.text if p.type == "text" else next(pictures) for p in content)
            role = "system" if message.role == "developer" else message.role
            turns.append(Turn(role, parts))
        return turns, shots

    async def _pictures(self, places: Sequence[tuple[str, str]]) -> list[Any]:
        if not places:
            return []
        if not self.sees:
            raise Refusal(
                400,
                f"{self.settings.model_name} is a language model alone and sees no pictures",
                "unsupported_value",
                places[0][0],
            )
        return await self.pictures.read(places)

    def _steps(
        self, asked: ChatRequest, turns: Sequence[Turn], shots: Sequence[Example]
    ) -> tuple[Steps | None, str]:
        """How the answer is reached in steps, if it is, and what the first prompt ends with."""
        if not asked.reasoning:
            return None, ""
        given = ReasoningOptions() if asked.reasoning is True else asked.reasoning
        question = next((t.text for t in reversed(turns) if t.role == "user"), "")
        usual = way_for(question, shots)
        way = given.way or usual.way
        if way == "cot" and not any(s.rationale for s in shots):
            raise Refusal(
                400,
                'the way "cot" needs a demonstration with a rationale: give one in shots, or take '
                '"zero-cot"',
                "invalid_value",
                "reasoning.way",
            )
        closed = given.kind in ("choice", "label")
        if closed != bool(given.choices):
            raise Refusal(
                400,
                "choices go with the kinds choice and label, and those need them",
                "invalid_value",
                "reasoning.choices",
            )
        trigger = trigger_named(usual.trigger if given.trigger is True else given.trigger)
        most = self._most(asked)
        steps = Steps(
            way=way,
            trigger=trigger,
            kind=given.kind,
            choices=tuple(given.choices),
            budget=most,
            max_step_tokens=min(given.max_step_tokens, most),
            max_new_tokens=min(given.max_new_tokens or most, most),
            prompt=lambda lead: Prompt(lead),
            markers=self.markers,
        )
        return steps, "" if way == "cot" else trigger.text

    def _most(self, asked: ChatRequest) -> int:
        return asked.max_completion_tokens or asked.max_tokens or self.settings.max_tokens

    def _request(
        self, asked: ChatRequest, form: Form, prompt: Prompt, steps: Steps | None, number: int
    ) -> GenerationRequest:
        """What the engine is asked for; each of several choices draws from a seed of its own."""
        count = asked.n or 1
        given = asked.stop or ()
        stop = tuple([given] if isinstance(given, str) else given)
        schema = _schema(asked)
        if schema is None:  # what follows a schema ends by itself
            stop = (*form.stop, *stop) if steps is None else (*STEP_STOPS, *stop)
        temperature = asked.temperature
        if temperature is None:
            # As `ask`: the likeliest text; several of it would all be the same
            temperature = 0.0 if count == 1 else 1.0
        seed = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed
        most = self._most(asked) if steps is None else steps.max_step_tokens
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=most,
            temperature=temperature,
            top_p=max(1e-6, 1.0 if asked.top_p is None else asked.top_p),
            top_k=max(0, asked.top_k or 0),
            seed=(seed + number * 1_000_003) % _SEEDS,
            stop=stop,
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            deadline_s=self.settings.timeout,
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            json_schema=schema,
        )


def _schema(asked: ChatRequest) -> str | None:
    """The schema that an answer is to follow, as JSON."""
    schema = None if asked.response_format is None else asked.response_format.followed
    return None if schema is None else json.dumps(schema)


def make_service(
    model: VisionLanguageModel,
    settings: ServerSettings,
    *,
    engine: ServingEngine | None = None,
    fetcher: Fetcher | None = None,
) -> Service:
    """What answers conversations with a model, whoever asks: the endpoint, the page, the shell.

    Args:
        model: The model.
        settings: Limits.
        engine: Of the model, where there is one already; None makes one.
        fetcher: Fetches pictures by address, in place of what the settings say.

    Raises:
        ConfigError: If the settings' template is unknown, or needs what the tokenizer lacks.
    """
    talk = Conversations(model, settings.template)
    if engine is None:
        engine = ServingEngine(
            model,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            memory=settings.memory,
        )
    fetcher = fetcher or Fetcher(settings.media_domains, settings.media_timeout, settings.max_media)
    sees = not model.text_only
    prepare: Any = model.vision.preprocess if sees else lambda picture: picture
    reader = PictureReader(
        prepare, fetcher, max_pictures=settings.max_pictures, max_pixels=settings.max_pixels
    )
    markers = tuple(model.language.tokenizer.all_special_tokens)
    return Service(engine, talk, reader, settings, Metrics(), sees, markers)
