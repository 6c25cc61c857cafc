"""Prompts as the language model reads them: tokens, and images by the hashes of their content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

from isthmus.errors import PromptError
from isthmus.generation.images import known_as
from isthmus.generation.prefix import boundary, common
from isthmus.generation.rows import Encoded, symbols_of
from isthmus.model.layout import Layout
from isthmus.model.media.base import layouts_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Prompt

LAYOUTS = 4096
"""Images whose layouts are kept."""
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
        self._layouts: OrderedDict[str, Layout] = OrderedDict()
        self._keeping = Lock()
        self._tokenizing = Lock()  # a fast tokenizer does not bear two threads

    def tokens(self, prompt: Prompt, layouts: Sequence[Layout] | None = None) -> tuple[int, ...]:
        """Token ids of a prompt, the layout of each image among them.

        Args:
            prompt: The prompt.
            layouts: The layouts of its images, where they are known.

        Raises:
            ImageError: If an image has to be opened for its layout and cannot be.
            PromptError: If tags and images do not match, or the model sees none.
        """
        if layouts is None:
            layouts = layouts_of(self.model, prompt.images)
        with self._tokenizing:
            return tuple(self.model.encode_text(prompt.spans, layouts))

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
            ImageError: If an image cannot be read.
        """
        known = {} if known is None else known
        for image in prompt.images:
            if id(image) not in known:
                known[id(image)] = known_as(self.model, image)
        contents = [known[id(p)] for p in prompt.images]
        hashes = tuple(key for key, _ in contents)
        layouts = tuple(self._layout(key, source) for key, source in contents)
        ids = self.tokens(prompt, layouts)
        if not ids:
            raise PromptError("the prompt is empty: expected a text or an image")
        if len(ids) + answer > self.context_length:
            raise PromptError(
                f"the prompt has {len(ids)} tokens and the model's context "
                f"{self.context_length}: shorten it, so that an answer has room"
            )
        adapter = self.model.fusion.adapter
        adapted = adapter is not None and adapter.config.when == "sample" and bool(hashes)
        symbols = symbols_of(self.model, ids, hashes, layouts, adapted=adapted)
        shared = 0
        if prompt.shared:
            start = prompt.beginning(prompt.shared)
            shown = layouts[: len(start.images)]
            own = symbols_of(self.model, self.tokens(start, shown), hashes, shown, adapted=adapted)
            # the text's last token may look different when it goes on
            shared = boundary(symbols, min(common(own, symbols), len(ids) - 1), layouts)
        return Encoded(ids, symbols, hashes, layouts, shared, adapted), dict(contents)

    def _layout(self, key: str, source: Any) -> Layout:
        """The layout of an image, by its hash.

        One that varies is opened for it once, not anew for each prompt that shows the image.
        """
        known = self._layouts.get(key)
        if known is None:
            [known] = layouts_of(self.model, [source])
            with self._keeping:
                self._layouts[key] = known
                while len(self._layouts) > LAYOUTS:
                    self._layouts.popitem(last=False)
        return known


def context_length(model: VisionLanguageModel) -> int:
    """Most tokens that a language model reads."""
    config = model.language.model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return min(int(length or model.language.tokenizer.model_max_length), _NO_LIMIT)
