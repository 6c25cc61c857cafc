"""Prompts as the language model reads them: tokens, and images by the hashes of their content."""

from __future__ import annotations

from threading import Lock
from typing import Any

from isthmus.errors import PromptError
from isthmus.generation.pictures import content_of
from isthmus.generation.prefix import boundary, common
from isthmus.generation.rows import Encoded, symbols_of
from isthmus.model import VisionLanguageModel
from isthmus.prompt import IMAGE_TAG, Prompt

_NO_LIMIT = 10**6
"""Tokenizers without a limit say some enormous number."""


class PromptEncoder:
    """Turns prompts into tokens, and refuses those that the model's context has no room for.

    Safe to call from several threads.

    Args:
        model: The model.

    Attributes:
        context_length: Most tokens of a prompt and its continuation.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> PromptEncoder(model)(Prompt("Hi"))[0].ids
        (72, 105)
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model
        self.context_length = context_length(model)
        self._tokenizing = Lock()  # a fast tokenizer does not bear two threads

    def tokens(self, text: str, pictures: int) -> list[int]:
        """Token ids of a text, visual tokens included.

        Raises:
            PromptError: If tags and images do not match, or the model sees none.
        """
        with self._tokenizing:
            return self.model.encode_text(text, pictures)

    def __call__(
        self, prompt: Prompt, known: dict[int, tuple[str, Any]] | None = None, *, answer: int = 1
    ) -> tuple[Encoded, dict[str, Any]]:
        """A prompt's tokens, and its images by their hashes.

        Args:
            prompt: The prompt.
            known: Contents by the identity of what a prompt gives as image, filled by this call:
                demonstrations are hashed once, not once for each prompt.
            answer: Tokens that must have room behind the prompt.

        Raises:
            PromptError: If the prompt is empty, too long, or does not fit its images.
            PictureError: If an image cannot be read.
        """
        ids = tuple(self.tokens(prompt.text, len(prompt.pictures)))
        if not ids:
            raise PromptError("the prompt is empty: expected a text or a picture")
        if len(ids) + answer > self.context_length:
            raise PromptError(
                f"the prompt has {len(ids)} tokens and the model's context "
                f"{self.context_length}: shorten it, so that an answer has room"
            )
        known = {} if known is None else known
        for picture in prompt.pictures:
            if id(picture) not in known:
                known[id(picture)] = content_of(picture)
        contents = [known[id(p)] for p in prompt.pictures]
        hashes = tuple(key for key, _ in contents)
        symbols = symbols_of(self.model, ids, hashes)
        shared = 0
        if prompt.shared:
            start = prompt.text[: prompt.shared]
            own = tuple(self.tokens(start, start.count(IMAGE_TAG)))
            # the text's last token may look different when it goes on
            last = min(common(symbols_of(self.model, own, hashes), symbols), len(ids) - 1)
            shared = boundary(symbols, last, self.model.fusion.tokens_in_text)
        return Encoded(ids, symbols, hashes, shared), dict(contents)


def context_length(model: VisionLanguageModel) -> int:
    """Most tokens that a language model reads."""
    config = model.language.model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return min(int(length or model.language.tokenizer.model_max_length), _NO_LIMIT)
