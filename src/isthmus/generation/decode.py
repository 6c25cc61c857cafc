"""Decoding on Transformers' own machinery: greedy, beams, sampling, stop strings, streaming.

The language model's `generate` runs as it is; the images reach it through the hooks that
`special_tokens` and `fusion` have placed. What the model keeps while it decodes is the language
model's own cache and, with cross-attention, the K and V of the one image in sight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from isthmus.errors import PromptError
from isthmus.generation.text_stream import read
from isthmus.model.batch import Batch
from isthmus.model.vlm import VisionLanguageModel


class _Stopped(StoppingCriteria):
    """Ends a row of Transformers' generation where `text_stream.read` meets a stop string.

    Transformers' own criterion reads a table with one row per token of the tokenizer, and so
    cannot meet our two ids.
    """

    def __init__(self, model: VisionLanguageModel, stop: Sequence[str]) -> None:
        self.decode, self.stop = model.special_tokens.decode, stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        done = [read(self.decode, row, self.stop)[1] for row in input_ids.tolist()]
        return torch.tensor(done, device=input_ids.device)


class _OwnTokensOnly(BaseStreamer):
    """Hands a streamer only the ids that its tokenizer knows."""

    def __init__(self, streamer: BaseStreamer, vocab_rows: int) -> None:
        self.streamer = streamer
        self.vocab_rows = vocab_rows

    def put(self, value: Tensor) -> None:
        kept = value[value < self.vocab_rows]
        if kept.numel() or value.numel() == 0:
            self.streamer.put(kept)

    def end(self) -> None:
        self.streamer.end()


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    batch: Batch,
    *,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> Tensor:
    """Generates a continuation of each prompt.

    A row ends at `<|endofchunk|>`, at the language model's own end of text, or at a stop string.
    A row without images is decoded exactly as the bare language model would.

    Args:
        model: The model.
        batch: Prompts, padded on the left.
        max_new_tokens: Most tokens to add to each prompt; 0 adds none.
        stop: Strings that end a row; they stay in the ids, `text_of` cuts them off.
        streamer: A Transformers streamer, for one row.
        **options: Anything else that `transformers.GenerationMixin.generate` takes: `num_beams`,
            `do_sample`, `temperature`, `top_p`, `num_return_sequences`, ...

    Returns:
        (B * num_return_sequences, L_new) ids of the new tokens alone.

    Raises:
        PromptError: If tags and images do not match, or a stop string is empty.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> generate(model, model.prepare(["Hello"]), max_new_tokens=3).shape[1] <= 3
        True
    """
    if "" in stop:
        raise PromptError('an empty stop string would end every answer at once: leave "" out')
    if max_new_tokens < 1:
        rows = len(batch.input_ids) * int(options.get("num_return_sequences") or 1)
        return batch.input_ids.new_empty(rows, 0)
    criteria = StoppingCriteriaList(options.pop("stopping_criteria", []))
    if stop:
        criteria.append(_Stopped(model, stop))
    if streamer is not None:
        streamer = _OwnTokensOnly(streamer, model.language.vocab_rows)
    ends = [*model.language.end_ids(), model.special_tokens.end_id]
    language = model.language.model
    if never := model.special_tokens.never:
        own = getattr(language.generation_config, "suppress_tokens", None)
        options["suppress_tokens"] = [*(options.get("suppress_tokens") or own or ()), *never]
    positions = model.positions(batch)
    if positions.lag is not None:  # the language model counts tokens by itself, and from 0
        options["position_ids"] = positions.tokens
    with (
        model.in_sight(batch, decoding=True) as embeddings,
        _two_more_words(model, batch),
        _first_mask(model, batch),
    ):
        ids: Tensor = language.generate(
            inputs_embeds=embeddings,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=model.pad_id,
            stopping_criteria=criteria,
            streamer=streamer,
            **options,
        )
    return ids


@contextmanager
def _first_mask(model: VisionLanguageModel, batch: Batch) -> Iterator[None]:
    """Lets tokens of prompts see what stands behind them, where the model was trained so."""
    mask = model.mask(batch)
    if mask is batch.attention_mask:
        yield
        return
    length = batch.input_ids.shape[1]

    def give(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        shown = named.get("inputs_embeds")
        if shown is None or shown.shape[1] != length:
            return None
        times = len(shown) // len(batch.input_ids)  # beams, or several texts of one prompt
        masks = {None: mask} if isinstance(mask, Tensor) else mask
        repeated = {kind: own.repeat_interleave(times, dim=0) for kind, own in masks.items()}
        return args, {**named, "attention_mask": repeated.get(None, repeated)}

    handle = model.language.model.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _two_more_words(model: VisionLanguageModel, batch: Batch) -> Iterator[None]:
    """Says that logits have more columns than the language model has words, where they have.

    Up to Transformers 5.17 at least, beam search reads their number from the configuration.
    """
    config = model.language.model.config.get_text_config()
    words = config.vocab_size
    added = len(model.special_tokens.names)
    if added and any(t is not None for t in (batch.pixels, batch.features, batch.visual)):
        config.vocab_size = model.language.vocab_rows + added
    try:
        yield
    finally:
        config.vocab_size = words


def text_of(model: VisionLanguageModel, ids: Tensor, stop: Sequence[str] = ()) -> str:
    """The text of one row of generated ids, cut before the first stop string and stripped."""
    ends = (ids == model.special_tokens.end_id).nonzero().flatten().tolist()
    if ends:
        ids = ids[: ends[0]]
    return read(model.special_tokens.decode, ids.tolist(), stop)[0].strip()
