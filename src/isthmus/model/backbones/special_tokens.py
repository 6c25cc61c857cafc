"""The token of an image and the token that ends an answer: what every model has of them.

Who joins two parts that know nothing of images adds both tokens and trains them: `added_tokens`. A
released vision-language model has a token for an image in its own vocabulary, and ends an answer as
it ends any text: `vocabulary_tokens`. `ModelConfig.tokens` says which of the two a model has.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor

from isthmus.model.backbones.span_tokens import SpanTokenizer
from isthmus.prompts.prompt import Span


@runtime_checkable
class SpecialTokens(Protocol):
    """A module (`nn.Module`) that knows the two tokens.

    Attributes:
        image_id: Id of `<image>`.
        end_id: Id of what `<|endofchunk|>` stands for, the end of an answer.
        names: Names of the ids above the last row of the embedding, from that row on; () where
            there are none. Logits have as many columns more where images are in sight.
        never: Ids of the language model's own that must not be generated, whatever their logits
            are: an image that nobody sent would change what later tokens see.
        spans: Makes token ids of text.
    """

    image_id: int
    end_id: int
    names: tuple[str, ...]
    never: tuple[int, ...]
    spans: SpanTokenizer

    def encode(self, text: str | Sequence[Span]) -> list[int]:
        """Token ids of spans, or of a text in which the two tags stand for the two tokens.

        Raises:
            PromptError: If a text is no Unicode.
        """
        ...

    def decode(self, ids: Tensor | list[int]) -> str:
        """Text of generated ids, without the two tokens and the model's special tokens."""
        ...

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of ids (B, L) in the language model's precision."""
        ...

    def used(
        self, may_end: Tensor | None, chosen: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """Puts the tokens to use in the language model's calls while the context lasts.

        Args:
            may_end: (B,) or (B, L) bool or None; which rows, or tokens, of the batch have images.
            chosen: (B, L) bool or None; positions that logits are wanted of. They come out as one
                row. None computes what the language model is asked for.
        """
        ...


def at_chosen(hidden: Tensor, chosen: Tensor | None) -> Tensor:
    """Hidden states (B, L, D) as the head is handed them: only those that are wanted, in one piece.

    Most tokens of a training batch cost nothing, and the head is the largest matrix there is.
    The last positions of each row, on the other hand, are a view with gaps, for which a CPU's
    matrix product copies the head's whole weight once per row: half of a training step.

    Example:
        >>> import torch
        >>> at_chosen(torch.zeros(2, 3, 4), torch.tensor([[True, False, False]] * 2)).shape
        torch.Size([1, 2, 4])
    """
    if chosen is not None:
        hidden = hidden[chosen.to(hidden.device)][None]
    return hidden.contiguous()
