"""The two special tokens as a tokenizer has them, and their rows in the tables.

Joined, the two have ids above the table that no tokenizer knows (see `backbones.added_tokens`).
Written out, they are added tokens behind the tokenizer's last one. Tables are often padded to a
round number of rows, and then the two ids lie inside of it: the table grows only where they do not.

A released model has both in its vocabulary (`backbones.vocabulary_tokens`). Its tokenizer and its
tables are written as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import ExportError
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG


@dataclass(frozen=True)
class WrittenTokens:
    """A copy of the language model's tokenizer that knows the two tokens.

    Attributes:
        tokenizer: The copy.
        image_id: Id of `<image>` in it.
        end_id: Id of `<|endofchunk|>` in it, or of the end of text that stands for it.
        shared: Ids below this number mean the same as in the model.
        rows: Rows that the tables need.
        tied: Whether the head is the embedding's own table, as it was.
        renamed: Ids of other tokens that stand beside images, by the model's own; a negative one
            stands for a token that the model has not.
    """

    tokenizer: Any
    image_id: int
    end_id: int
    shared: int
    rows: int
    tied: bool = False
    renamed: Mapping[int, int] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """How the tokenizer writes an image."""
        return str(self.tokenizer.convert_ids_to_tokens(self.image_id))

    @property
    def end(self) -> str:
        """How the tokenizer writes the end of an answer."""
        return str(self.tokenizer.convert_ids_to_tokens(self.end_id))

    def written(self, text: str) -> str:
        """A prompt's text with the tags as the tokenizer writes them."""
        return text.replace(IMAGE_TAG, self.image).replace(END_TAG, self.end)

    def translated(self, ids: Tensor, model: VisionLanguageModel) -> Tensor:
        """Token ids of the model as ids of the copy."""
        own = model.special_tokens
        found = ids.masked_fill(ids == own.image_id, self.image_id)
        found = found.masked_fill(ids == own.end_id, self.end_id)
        for mine, written in self.renamed.items():
            found = found.masked_fill(ids == mine, written)
        return found


def add_tokens(model: VisionLanguageModel) -> WrittenTokens:
    """Adds the two tokens to a copy of a model's tokenizer; a released model's has them.

    Raises:
        ExportError: If the model was joined here, and its tokenizer has such a token already; or if
            it is a released one, and its tokenizer has none for images.

    Example:
        >>> import isthmus as im
        >>> added = add_tokens(im.compose("tiny-vit", "tiny-lm", im.MLP()))
        >>> added.image_id, added.end_id, added.rows
        (259, 260, 261)
    """
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(model.language.tokenizer)
    if model.config.tokens is not None:
        return _own_tokens(model, tokenizer)
    known = tokenizer.get_vocab()
    for tag in (IMAGE_TAG, END_TAG):
        if tag in known:
            raise ExportError(
                f"the tokenizer of {model.config.language.name} has a token {tag} of its own: "
                "expected none, since the model's stands beside it; take another language model, "
                "or serve this one with `isthmus serve`"
            )
    shared = max(known.values()) + 1
    tokenizer.add_tokens(
        [AddedToken(tag, normalized=False, special=True) for tag in (IMAGE_TAG, END_TAG)],
        special_tokens=True,
    )
    pad_left(tokenizer, model)
    image_id, end_id = tokenizer.convert_tokens_to_ids([IMAGE_TAG, END_TAG])
    rows = max(model.language.vocab_rows, image_id + 1, end_id + 1)
    return WrittenTokens(tokenizer, image_id, end_id, min(shared, image_id), rows)


def _own_tokens(model: VisionLanguageModel, tokenizer: Any) -> WrittenTokens:
    """The tokens of a released model, which stay what they are."""
    own, language = model.special_tokens, model.language
    if tokenizer.convert_ids_to_tokens(own.image_id) is None:
        raise ExportError(
            f"the tokenizer of {model.config.language.name} has no token {own.image_id}, which "
            "stands for an image: expected a tokenizer that knows it; add it with "
            'tokenizer.add_tokens("<image>", special_tokens=True)'
        )
    pad_left(tokenizer, model)
    tied = language.output_embedding.weight is language.input_embedding.weight
    rows = max(language.vocab_rows, own.image_id + 1)
    return WrittenTokens(tokenizer, own.image_id, own.end_id, rows, rows, tied)


def pad_left(tokenizer: Any, model: VisionLanguageModel) -> None:
    """Makes a tokenizer pad as generation needs it."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.pad_id)
    tokenizer.padding_side = "left"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]


def input_table(model: VisionLanguageModel, added: WrittenTokens) -> Tensor:
    """The embedding (rows, D) with the two tokens' input rows."""
    embedding = model.language.input_embedding
    table = _grown(embedding.weight, added.rows)
    if model.config.tokens is not None:
        return table
    scale = getattr(embedding, "embed_scale", 1.0)  # Gemma 3 multiplies inside of its embedding
    own: Any = model.special_tokens
    special = own.input_rows / torch.as_tensor(scale).to(model.device)
    table[added.image_id], table[added.end_id] = special.to(table).unbind()
    return table


def output_table(model: VisionLanguageModel, added: WrittenTokens) -> Tensor:
    """The head (rows, D) with the output row of `<|endofchunk|>`.

    `<image>` is never produced by the model. A head has no row for that: its row is that of a token
    which nothing produces either, one of a padded table or the padding token, and otherwise the
    mean of all. `suppress_tokens` says it to those who read it. A released model's head is as it
    was.
    """
    own: Any = model.special_tokens
    head = model.language.output_embedding.weight
    table = _grown(head, added.rows)
    if model.config.tokens is not None:
        return table
    table[added.end_id] = own.output_rows[0].to(table)
    if added.image_id < len(head):  # a row that no token has
        return table
    if (pad := added.tokenizer.pad_token_id) not in (None, *model.language.end_ids()):
        table[added.image_id] = head[pad]
    else:
        table[added.image_id] = head.float().mean(dim=0).to(table)
    return table


def _grown(table: Tensor, rows: int) -> Tensor:
    """A copy of a table, with rows of zeros behind it where it has too few."""
    grown = table.new_zeros(rows, table.shape[1])
    grown[: len(table)] = table.detach()
    return grown
