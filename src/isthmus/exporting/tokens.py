"""Our two tokens as added tokens of a tokenizer, and their rows in the tables.

Joined, the two have ids above the table that no tokenizer knows (see `backbones.special_tokens`).
Written out, they are added tokens behind the tokenizer's last one. Tables are often padded to a
round number of rows, and then the two ids lie inside of it: the table grows only where they do not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import ExportError
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG


@dataclass(frozen=True)
class WrittenTokens:
    """A copy of the language model's tokenizer that knows our two tokens.

    Attributes:
        tokenizer: The copy.
        image_id: Id of `<image>` in it.
        end_id: Id of `<|endofchunk|>` in it.
        shared: Ids below this number mean the same as in the model.
        rows: Rows that the tables need.
    """

    tokenizer: Any
    image_id: int
    end_id: int
    shared: int
    rows: int

    def translated(self, ids: Tensor, model: VisionLanguageModel) -> Tensor:
        """Token ids of the model as ids of the copy."""
        own = model.special_tokens
        found = ids.masked_fill(ids == own.image_id, self.image_id)
        return found.masked_fill(ids == own.end_id, self.end_id)


def add_tokens(model: VisionLanguageModel) -> WrittenTokens:
    """Adds the two tokens to a copy of a model's tokenizer.

    Raises:
        ExportError: If the model or its tokenizer has such tokens already.

    Example:
        >>> import isthmus as im
        >>> added = add_tokens(im.compose("tiny-vit", "tiny-lm", im.MLP()))
        >>> added.image_id, added.end_id, added.rows
        (259, 260, 261)
    """
    from tokenizers import AddedToken

    if getattr(model.special_tokens, "input_rows", None) is None:
        raise ExportError(
            f"{model.config.language.name} has a token for images of its own: expected a model "
            "that was joined here; Transformers loads a released one as it is"
        )
    tokenizer = copy.deepcopy(model.language.tokenizer)
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
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.pad_id)
    tokenizer.padding_side = "left"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    image_id, end_id = tokenizer.convert_tokens_to_ids([IMAGE_TAG, END_TAG])
    rows = max(model.language.vocab_rows, image_id + 1, end_id + 1)
    return WrittenTokens(tokenizer, image_id, end_id, min(shared, image_id), rows)


def input_table(model: VisionLanguageModel, added: WrittenTokens) -> Tensor:
    """The embedding (rows, D) with the two tokens' input rows."""
    embedding = model.language.input_embedding
    scale = getattr(embedding, "embed_scale", 1.0)  # Gemma 3 multiplies inside of its embedding
    own: Any = model.special_tokens
    special = own.input_rows / torch.as_tensor(scale).to(model.device)
    table = _grown(embedding.weight, added.rows)
    table[added.image_id], table[added.end_id] = special.to(table).unbind()
    return table


def output_table(model: VisionLanguageModel, added: WrittenTokens) -> Tensor:
    """The head (rows, D) with the output row of `<|endofchunk|>`.

    `<image>` is never produced by the model. A head has no row for that: its row is that of a token
    which nothing produces either, one of a padded table or the padding token, and otherwise the
    mean of all. `suppress_tokens` says it to those who read it.
    """
    own: Any = model.special_tokens
    head = model.language.output_embedding.weight
    table = _grown(head, added.rows)
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
