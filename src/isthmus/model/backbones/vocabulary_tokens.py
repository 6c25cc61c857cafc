"""Special tokens that the language model's own vocabulary has, as in released models.

An image stands where the model's token for one does. An answer ends with the model's end of text.
No row is added, logits keep their columns, and the only hook is the one that hands the head the
positions that are wanted: logits are those of the model as it was released, with images and
without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.errors import ConfigError
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.span_tokens import SpanTokenizer
from isthmus.model.backbones.special_tokens import at_chosen
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Span


class VocabularyTokens(nn.Module):
    """The two tokens of a model that was trained with them.

    It fits `special_tokens.SpecialTokens` and has no parameter.

    Args:
        language: The language model.
        image_id: Id of its token for an image, inside its embedding or beyond the last row.
        before: What is written before that token, as part of the text around it.
        after: What is written behind it.

    Attributes:
        image_id: As given.
        end_id: Of the tokens that the model ends with, the one that is called `<|endofchunk|>`, as
            in models that were exported; else the tokenizer's end of text, else the first.
        names, never, spans: As in `SpecialTokens`.

    Raises:
        ConfigError: If the language model has no end of text, the id is that of an ordinary piece
            of text, or it is that of the end.

    Example:
        >>> from isthmus.model.backbones.language import load_language
        >>> tokens = VocabularyTokens(load_language("tiny-lm"), image_id=300)
        >>> tokens.encode("<image>Hi<|endofchunk|>"), list(tokens.parameters())
        ([300, 72, 105, 258], [])
    """

    names: tuple[str, ...] = ()

    def __init__(
        self, language: LanguageModel, image_id: int, before: str = "", after: str = ""
    ) -> None:
        super().__init__()
        tokenizer, ends = language.tokenizer, language.end_ids()
        if not ends:
            raise ConfigError(
                "the language model has no end of text, with which an answer would end: set "
                "eos_token_id in its generation_config.json"
            )
        # of several, a chat model's tokenizer names the one that ends a turn
        own = tokenizer.get_added_vocab().get(END_TAG)
        self.end_id: int = next(i for i in (own, tokenizer.eos_token_id, *ends) if i in ends)
        if image_id in ends:
            raise ConfigError(
                f"image_id = {image_id} is the language model's end of text: expected the id of "
                "its token for an image"
            )
        self.image_id = image_id
        self.never: tuple[int, ...] = (image_id,) if image_id < language.vocab_rows else ()
        written = {
            IMAGE_TAG: _written(tokenizer, image_id),
            END_TAG: _written(tokenizer, self.end_id),
        }
        if written[IMAGE_TAG] is None and image_id < len(tokenizer):
            raise ConfigError(
                f'image_id = {image_id} is "{tokenizer.convert_ids_to_tokens(image_id)}", which '
                "any text may have: expected the id of a token that was added for images"
            )
        if (before or after) and written[IMAGE_TAG] is None:
            raise ConfigError(
                f"image_id = {image_id} is not a token of the tokenizer: expected one, since "
                f"{before!r} and {after!r} are written around it"
            )
        if written[IMAGE_TAG] is not None:
            written[IMAGE_TAG] = f"{before}{written[IMAGE_TAG]}{after}"
        self.spans = SpanTokenizer(
            tokenizer, image_id, self.end_id, {tag: t for tag, t in written.items() if t}
        )
        self._language = [language]  # in a list: not a submodule of ours

    def encode(self, text: str | Sequence[Span]) -> list[int]:
        """See `SpecialTokens`."""
        return self.spans.encode([Span(text)] if isinstance(text, str) else text)

    def decode(self, ids: Tensor | list[int]) -> str:
        """See `SpecialTokens`."""
        kept = [int(i) for i in ids if int(i) != self.image_id]
        return str(self._language[0].tokenizer.decode(kept, skip_special_tokens=True))

    def embed(self, input_ids: Tensor) -> Tensor:
        """See `SpecialTokens`. An image's token beyond the table has the first row's embedding.

        A fusion puts visual tokens in its place.
        """
        language = self._language[0]
        embeddings: Tensor = language.input_embedding(
            input_ids.masked_fill(input_ids >= language.vocab_rows, 0)
        )
        return embeddings

    @contextmanager
    def used(self, may_end: Tensor | None, chosen: Tensor | None = None) -> Iterator[None]:
        """See `SpecialTokens`; `may_end` changes nothing, since any text may end."""

        def choose(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
            hidden, *rest = args
            return (at_chosen(hidden, chosen), *rest)

        def hook() -> list[RemovableHandle]:
            return [self._language[0].output_embedding.register_forward_pre_hook(choose)]

        with self._language[0].hooked(hook):
            yield


def _written(tokenizer: Any, token: int) -> str | None:
    """How a tokenizer writes a token that was added to it; None if it has no such token."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(token)
    return None if added is None else str(added.content)
