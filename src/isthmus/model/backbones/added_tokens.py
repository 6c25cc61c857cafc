"""`<image>` and `<|endofchunk|>`: trainable rows beside a frozen embedding.

The language model's embedding is never resized. The two tokens get the ids just above its last
row, so they can collide with nothing that its tokenizer makes. During a forward pass of the whole
model, hooks on the embedding and on the head add their rows on the way in and their columns on the
way out. Where no id lies above the last row and no image is in sight, both hooks leave every value
as it is. Between passes the language model carries no hook.

Flamingo learns the end-of-chunk embedding anew too (Alayrac et al. 2022, appendix A.3.1).
`<image>` is never produced: a model that draws it while decoding would change what every later
token may see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.errors import ConfigError
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.placement import in_memory
from isthmus.model.backbones.span_tokens import SpanTokenizer
from isthmus.model.backbones.special_tokens import at_chosen
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Span


class AddedTokens(nn.Module):
    """Input rows and output rows of the two tokens, and the hooks that put them to use.

    It fits `special_tokens.SpecialTokens`.

    Args:
        language: The language model; its own parameters are not touched.

    Attributes:
        image_id: Id of `<image>`, the number of rows of the frozen embedding.
        end_id: Id of `<|endofchunk|>`, one above.
        names, never, spans: As in `SpecialTokens`.
        input_rows: (2, D), what the tokens look like to the language model.
        output_rows: (1, D), the head's row of `<|endofchunk|>`.
        may_end: (B,) or (B, L) bool or None; which rows, or tokens, of the current batch may end a
            chunk: those of samples with images. None, the state at rest, leaves the head's
            logits alone.
        chosen: (B, L) bool or None; positions of the current batch that logits are wanted of. They
            come out as one row. None computes what the language model is asked for.
    """

    names: tuple[str, ...] = (IMAGE_TAG, END_TAG)
    never: tuple[int, ...] = ()  # its logits are -inf already

    def __init__(self, language: LanguageModel) -> None:
        super().__init__()
        head_rows = getattr(language.output_embedding, "weight", torch.empty(0)).shape[0]
        if head_rows != language.vocab_rows:
            raise ConfigError(
                f"the language model's head has {head_rows} rows and its embedding "
                f"{language.vocab_rows}: expected the same number, so that ids agree"
            )
        self.image_id = language.vocab_rows
        self.end_id = language.vocab_rows + 1
        ends: list[int] = language.end_ids()
        last = ends[0] if ends else 0
        # From the mean of all words and from the model's own end of text: in distribution
        # from the first step.
        with in_memory(language.input_embedding):
            table = language.input_embedding.weight.detach().float()
            rows = torch.stack([table.mean(dim=0), table[last]])
        with in_memory(language.output_embedding):
            head = language.output_embedding.weight.detach()[last][None].float().clone()
        self.input_rows = nn.Parameter(_on(rows, language.device))
        self.output_rows = nn.Parameter(_on(head, language.device))
        self.may_end: Tensor | None = None
        self.chosen: Tensor | None = None
        self._widened: Tensor | None = None
        self.spans = SpanTokenizer(language.tokenizer, self.image_id, self.end_id)
        self._language = [language]  # in a list: not a submodule of ours

    def no_weight_decay(self) -> set[str]:
        """Both: they are embeddings."""
        return {"input_rows", "output_rows"}

    def encode(self, text: str | Sequence[Span]) -> list[int]:
        """Token ids of spans, or of a text in which the two tags stand for the two tokens.

        Raises:
            PromptError: If a text is no Unicode.
        """
        return self.spans.encode([Span(text)] if isinstance(text, str) else text)

    @contextmanager
    def used(self, may_end: Tensor | None, chosen: Tensor | None = None) -> Iterator[None]:
        """Puts the tokens to use in the language model's calls while the context lasts.

        Args:
            may_end: As the attribute.
            chosen: As the attribute.
        """
        self.may_end, self.chosen = may_end, chosen
        try:
            with self._language[0].hooked(self._hook):
                yield
        finally:
            self.may_end = self.chosen = self._widened = None

    def _hook(self) -> list[RemovableHandle]:
        language = self._language[0]
        return [
            language.input_embedding.register_forward_pre_hook(self._hide_ids),
            language.output_embedding.register_forward_pre_hook(self._choose),
            language.output_embedding.register_forward_hook(self._add_columns),
            language.model.register_forward_hook(self._forbid_again),
        ]

    def decode(self, ids: Tensor | list[int]) -> str:
        """Text of generated ids, without the two tokens and the model's special tokens."""
        kept = [int(i) for i in ids if int(i) < self.image_id]
        return str(self._language[0].tokenizer.decode(kept, skip_special_tokens=True))

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of ids (B, L) in the language model's precision."""
        special = input_ids >= self.image_id
        known = input_ids.masked_fill(special, 0)
        embeddings: Tensor = self._language[0].input_embedding(known)
        rows = self.input_rows.to(embeddings.dtype)
        chosen = rows[(input_ids - self.image_id).clamp(0, 1)]
        return torch.where(special[..., None], chosen, embeddings)

    def _hide_ids(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Keeps the two ids from reading past the table's end.

        While a batch decodes, the row that has just ended feeds `<|endofchunk|>` back once.
        """
        ids, *rest = args
        return (ids.masked_fill(ids >= self.image_id, 0), *rest)

    def _choose(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Hands the head only the positions that are wanted, in one piece."""
        hidden, *rest = args
        return (at_chosen(hidden, self.chosen), *rest)

    def _add_columns(self, module: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        """Appends the columns of the two ids to logits (B, L, V), if images are in sight."""
        if self.may_end is None:
            return logits
        hidden = args[0].to(logits.device)  # the last layer may lie on another one than the head
        end = hidden @ self.output_rows.to(hidden).T
        end = end.masked_fill(~self._may_end(logits).to(end.device)[..., None], float("-inf"))
        image = torch.full_like(end, float("-inf"))
        self._widened = torch.cat([logits, image, end.to(logits.dtype)], -1)
        return self._widened

    def _may_end(self, logits: Tensor) -> Tensor:
        """`may_end` for the positions of logits (B, K, V), rows repeated as beams are."""
        may_end = self.may_end
        assert may_end is not None
        if self.chosen is not None:
            return may_end.view(len(may_end), -1).expand_as(self.chosen)[self.chosen][None]
        may_end = may_end.repeat_interleave(logits.shape[0] // may_end.shape[0], dim=0)
        return may_end.view(len(may_end), -1)[:, -logits.shape[1] :].expand(logits.shape[:2])

    def _forbid_again(self, module: nn.Module, args: Any, output: Any) -> None:
        """Puts back every -inf that a soft cap behind the head has lifted, as Gemma 2's does.

        Only where there is one: writing into logits costs their gradient a copy.
        """
        widened, self._widened = self._widened, None
        logits: Tensor = output.logits
        if self.may_end is None or logits is widened:
            return
        logits[..., self.image_id] = float("-inf")
        may_not = ~self._may_end(logits).to(logits.device)
        logits[..., self.end_id].masked_fill_(may_not, float("-inf"))


def _on(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on a device; of a model without weights they are zeros."""
    return torch.zeros_like(rows, device=device) if rows.is_meta else rows.to(device)
