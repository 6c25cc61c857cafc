"""One person's conversation: what was said, what is shown before it, and the next answer.

Every answer goes through the server's own `Service`, so that the page, the shell and the endpoint
say the same to the same.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from isthmus.media.data_uri import data_uri
from isthmus.prompts.prompt import Example
from isthmus.reasoning.live import Piece
from isthmus.serving.completions import Service
from isthmus.serving.schemas import ChatRequest


@dataclass(frozen=True)
class Reply:
    """An answer so far.

    Attributes:
        answer: Its text.
        rationale: The steps to it, where it is reached in steps.
        done: Whether it is whole.
    """

    answer: str = ""
    rationale: str = ""
    done: bool = False


@dataclass
class Session:
    """A conversation.

    Attributes:
        messages: The turns so far, as OpenAI's API has them.
        shots: Worked examples, their images as bytes of files, shown before them.
        last: Images and text of the user's last turn that had an image.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    shots: list[Example] = field(default_factory=list)
    last: tuple[tuple[bytes, ...], str] | None = None

    def request(
        self, text: str, images: Sequence[bytes] = (), *, steps: bool = False
    ) -> ChatRequest:
        """What the model is asked, with a further turn of the user's."""
        return ChatRequest.model_validate(
            {
                "messages": [*self.messages, self._turn(text, images)],
                "shots": [
                    {
                        "images": [data_uri(image) for image in shot.images],
                        "question": shot.question,
                        "answer": shot.answer,
                        "rationale": shot.rationale,
                    }
                    for shot in self.shots
                ],
                "reasoning": steps,
            }
        )

    async def ask(
        self, service: Service, text: str, images: Sequence[bytes] = (), *, steps: bool = False
    ) -> AsyncGenerator[Reply, None]:
        """The answer as it grows; closing the iterator stops it in the engine.

        What was said is part of the conversation afterwards, of a stopped answer as far as it
        came.

        Raises:
            Refusal, IsthmusError: If it cannot be answered; the conversation is as before.
        """
        (choice,) = await service.choices(self.request(text, images, steps=steps))
        answer = rationale = ""
        try:
            async with aclosing(choice.events()) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        if event.part == "rationale":
                            rationale += event.text
                        else:
                            answer += event.text
                        yield Reply(answer, rationale)
        finally:
            choice.cancel()
            if answer or rationale:
                self.messages.append(self._turn(text, images))
                self.messages.append({"role": "assistant", "content": answer.strip() or rationale})
                if images:
                    self.last = (tuple(images), text)
        yield Reply(answer.strip(), rationale.strip(), done=True)

    def add_shot(self, answer: str, rationale: str = "") -> bool:
        """Makes a worked example of the last image and question; false if there is none."""
        if self.last is None or not answer.strip():
            return False
        images, question = self.last
        self.shots.append(Example(images, question, answer.strip(), rationale.strip() or None))
        return True

    def start_anew(self) -> None:
        """Forgets what was said; worked examples stay."""
        self.messages.clear()

    @staticmethod
    def _turn(text: str, images: Sequence[bytes]) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images
        ]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
