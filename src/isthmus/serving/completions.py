"""From a request of `/v1/chat/completions` to the choices that answer it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from isthmus.errors import PromptError
from isthmus.generation.requests import SEEDS
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.media.fetch import Fetcher
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example, Prompt
from isthmus.prompts.template import shown_answer
from isthmus.reasoning.live import AnswerStream
from isthmus.reasoning.method import Reasoning, reasoning_for
from isthmus.reasoning.question import Question
from isthmus.reasoning.vote import program_for
from isthmus.serving.conversation import Conversations, Turn
from isthmus.serving.media import ImageReader, opened
from isthmus.serving.metrics import Metrics
from isthmus.serving.refusals import Refusal
from isthmus.serving.schemas import OTHER_FORMS, UNSERVED, ChatRequest, ReasoningOptions
from isthmus.serving.settings import ServerSettings

_DRAWN_SEEDS = 1 << 32
_BETWEEN_CHOICES = 998_244_353
"""Far from the steps between the chains of a vote, so that no two draw alike."""
_CHARACTERS = 64
"""More characters to a token than any prompt has."""


@dataclass
class Service:
    """What answers are made with.

    Attributes:
        engine: Generates.
        talk: Makes prompts of conversations.
        images: Reads images.
        sees: Whether the model sees any.
        settings: Limits.
        metrics: Counts answers.
        markers: Strings that nothing a model wrote may bring into a prompt.
    """

    engine: ServingEngine
    talk: Conversations
    images: ImageReader
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
            options = asked.reasoning
            way = options.way if isinstance(options, ReasoningOptions) else options
            votes = isinstance(options, ReasoningOptions) and options.samples > 1
            if votes or (options and way != "none"):
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

    async def choices(self, asked: ChatRequest) -> list[AnswerStream]:
        """The choices of a request, all in line.

        Raises:
            Refusal, InputError, QueueFull: If it cannot be answered.
        """
        self.check(asked)
        turns, shots = await self._read(asked)
        question, reasoning = self._question(asked, turns, shots)
        plain = await asyncio.to_thread(question.prompt)
        if len(plain.text) > _CHARACTERS * self.engine.context_length:
            raise self._too_long("a prompt")  # reading megabytes into tokens would take a while
        choices = [
            AnswerStream(
                self.engine,
                program_for(question, replace(reasoning, seed=seed)),
                adapt=partial(_adapted, asked),
                timeout_s=self.settings.timeout,
                finished=self._finished,
            )
            for seed in self._seeds(asked)
        ]
        try:
            for choice in choices:
                await choice.start()
        except PromptError as error:
            for choice in choices:
                choice.cancel()
            prompt = choices[0].prompt or plain
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
        """Turns and demonstrations, their images read."""
        places: list[tuple[str, str]] = []
        details: list[str | None] = []
        for i, shot in enumerate(asked.shots):
            places += [(f"shots.{i}.images.{j}", url) for j, url in enumerate(shot.images)]
            details += [None] * len(shot.images)
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
                            400, "images go into the user's messages", "invalid_value", place
                        )
                    places.append((place, part.image_url.url))
                    details.append(part.image_url.detail)
        images = iter(await self._images(places, details))
        shots = [
            Example(tuple(next(images) for _ in s.images), s.question, s.answer, s.rationale)
            for s in asked.shots
        ]
        turns = []
        for message in asked.messages:
            content = message.content
            parts: tuple[Any, ...] = (content or "",)
            if isinstance(content, list):
                parts = tuple(p.text if p.type == "text" else next(images) for p in content)
            role = "system" if message.role == "developer" else message.role
            turns.append(Turn(role, parts))
        return turns, shots

    async def _images(
        self, places: Sequence[tuple[str, str]], details: Sequence[str | None]
    ) -> list[Any]:
        if not places:
            return []
        if not self.sees:
            raise Refusal(
                400,
                f"{self.settings.model_name} is only a language model and sees no images",
                "unsupported_value",
                places[0][0],
            )
        model = self.engine.model
        return await self.images.read(places, [partial(opened, model, own) for own in details])

    def _question(
        self, asked: ChatRequest, turns: Sequence[Turn], shots: Sequence[Example]
    ) -> tuple[Question, Reasoning]:
        """The conversation as a question, and how its answer is reached."""
        form = self.talk.form(turns, shots)
        given = asked.reasoning
        options = given if isinstance(given, ReasoningOptions) else ReasoningOptions()
        way = options.way or ("auto" if given else None)
        if isinstance(given, str):
            way = given
        if way == "cot" and not any(s.rationale for s in shots):
            raise Refusal(
                400,
                'the way "cot" needs a demonstration with a rationale: give one in shots, or take '
                '"zero-cot"',
                "invalid_value",
                "reasoning.way" if isinstance(given, ReasoningOptions) else "reasoning",
            )
        closed = options.kind in ("choice", "label")
        if closed != bool(options.choices):
            raise Refusal(
                400,
                "choices go with the kinds choice and label, and those need them",
                "invalid_value",
                "reasoning.choices",
            )
        if options.samples > 1 and asked.temperature == 0:
            raise Refusal(
                400,
                f"{options.samples} samples at temperature 0 would all be the same: expected a "
                "temperature above 0, or none",
                "invalid_value",
                "temperature",
            )

        def render(lead: str, conclusion: str) -> Prompt:
            own = list(shots)
            if conclusion:
                own = [replace(s, answer=shown_answer(s, conclusion), rationale=None) for s in own]
            return form.prompt(turns, own, lead=lead)

        question = Question(
            text=next((t.text for t in reversed(turns) if t.role == "user"), ""),
            render=render,
            shots=tuple(shots),
            kind=options.kind,
            choices=tuple(options.choices),
            stop=() if _schema(asked) else form.stop,  # what follows a schema ends by itself
            markers=self.markers,
        )
        most = asked.max_completion_tokens or asked.max_tokens or self.settings.max_new_tokens
        # As `ask`: the likeliest text; several of it would all be the same
        drawn = 1.0 if (asked.n or 1) > 1 and options.samples == 1 else None
        reasoning = reasoning_for(way, shots)
        # As `ask`: an answer after its steps is short, one at once may be long
        usual = most if reasoning.way == "none" else reasoning.max_new_tokens
        reasoning = replace(
            reasoning,
            trigger=options.trigger,
            samples=options.samples,
            temperature=drawn if asked.temperature is None else asked.temperature,
            top_p=max(1e-6, 1.0 if asked.top_p is None else asked.top_p),
            top_k=max(0, asked.top_k or 0),
            max_rationale_tokens=min(options.max_rationale_tokens, most),
            max_new_tokens=min(options.max_new_tokens or usual, most),
            max_chain_tokens=most,
        )
        if reasoning.way != "none":
            reasoning.trigger_of(question.text)  # an unknown one is said before anything is asked
        return question, reasoning

    def _seeds(self, asked: ChatRequest) -> list[int]:
        """The seed of each choice."""
        first = secrets.randbelow(_DRAWN_SEEDS) if asked.seed is None else asked.seed
        return [(first + number * _BETWEEN_CHOICES) % SEEDS for number in range(asked.n or 1)]


def _adapted(asked: ChatRequest, request: GenerationRequest) -> GenerationRequest:
    """A program's request with what the client asked for besides."""
    given = asked.stop or ()
    return replace(
        request,
        stop=(*request.stop, *([given] if isinstance(given, str) else given)),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        json_schema=_schema(asked),
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
        fetcher: Fetches images by address, in place of what the settings say.

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
    prepare: Any = partial(opened, model, None) if sees else lambda image: image
    reader = ImageReader(
        prepare, fetcher, max_images=settings.max_images, max_pixels=settings.max_pixels
    )
    markers = tuple(model.language.tokenizer.all_special_tokens)
    return Service(engine, talk, reader, settings, Metrics(), sees, markers)
