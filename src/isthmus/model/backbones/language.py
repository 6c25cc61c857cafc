"""Language models: any Transformers causal LM, its decoder layers found by structure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.config.model import LanguageConfig
from isthmus.errors import ConfigError, MissingExtraError
from isthmus.model.backbones.decoder_layers import find_decoder_layers
from isthmus.model.backbones.fetch_language import fetch_language
from isthmus.model.backbones.hooks import Again, Hooks
from isthmus.model.backbones.int8_layers import Int8Linear
from isthmus.model.backbones.placement import computing_device, is_dispatched, without_placement
from isthmus.model.backbones.rotary import converted, exact_frequencies
from isthmus.model.positions import counted
from isthmus.model.reading import CAUSAL, Reading, block_mask, mask_of


def _silence_dropout(model: nn.Module) -> None:
    """Sets every dropout rate of a model to zero: modules, and rates kept as plain numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


class LanguageModel(nn.Module):
    """A frozen causal language model and its tokenizer.

    The tokenizer and the embedding are used as they are: tokens are never added to the one,
    nor rows to the other (see `special_tokens`).

    Args:
        model: A Transformers causal LM.
        tokenizer: Its tokenizer.
        config: What it was loaded from; written into checkpoints.
        reading: Who sees what comes later, where it was trained to; None for nobody.

    Attributes:
        layers: The decoder layers, in order.
        layers_path: Where they are in the model: "model.layers".
        width: Width D of the hidden states.
        vocab_rows: Rows of the input embedding, at least the tokenizer's size.
        axes: How many numbers a token's position has: 3 with M-RoPE (see `positions`), 1 otherwise.
        placed: Whether a map says where its layers are (see `placement`). Moving and converting the
            model then leaves it as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        config: LanguageConfig,
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self.reading = reading or CAUSAL
        self.model: Any = model
        self.tokenizer = tokenizer
        self.placed: bool = config.device_map is not None or is_dispatched(model)
        self.config = without_placement(config)
        found = find_decoder_layers(model, config.layers)
        self.layers_path = next(n for n, m in model.named_modules() if m is found)
        self.vocab_rows: int = self.input_embedding.weight.shape[0]
        self.width: int = self.input_embedding.weight.shape[1]
        model.requires_grad_(False)
        if config.lora_rank:
            self._add_lora(config.lora_rank)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        rotary = any(hasattr(module, "mrope_section") for module in model.modules())
        self.axes: int = 3 if rotary and self._takes_positions else 1
        self._packs_by: str | None = None
        self._hooks: tuple[Hooks, ...] = ()
        self.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        if self.placed:
            return self
        with exact_frequencies(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        found: nn.ModuleList = self.model.get_submodule(self.layers_path)
        return found

    @property
    def input_embedding(self) -> nn.Embedding:
        """The token embedding, `weight` of shape (vocab_rows, D)."""
        return self.model.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        """Where its inputs go: the device that computes the input embedding."""
        return computing_device(self.input_embedding)

    @property
    def computes_in(self) -> str:
        """The data type that it computes in, by its name; "int8" if its linear layers do."""
        if any(isinstance(layer, Int8Linear) for layer in self.model.modules()):
            return "int8"
        return str(self.input_embedding.weight.dtype).removeprefix("torch.")

    @property
    def output_embedding(self) -> nn.Linear:
        """The head that turns hidden states into logits."""
        return self.model.get_output_embeddings()

    @property
    def takes_positions(self) -> bool:
        """Whether its `forward` takes positions.

        Where it does not, distances are those in the row, padding counted (ALiBi in MPT).
        """
        return self._takes_positions

    def _add_lora(self, rank: int) -> None:
        """Puts LoRA adapters into the attention and MLP projections (Hu et al. 2021)."""
        try:
            import peft
        except ImportError as error:
            raise MissingExtraError("LoRA (language.lora_rank)", "train") from error
        lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        peft.inject_adapter_in_model(lora, self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def train(self, mode: bool = True) -> LanguageModel:
        """Frozen parts never leave evaluation mode, so no dropout comes alive.

        The exceptions are LoRA and activation checkpointing, which Transformers only does in
        training mode: then the mode changes, and all dropout inside is set to zero.
        """
        checkpointing = any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        )
        mode = mode and (checkpointing or self.config.lora_rank > 0)
        if mode:
            _silence_dropout(self.model)
        super().train(mode)
        return self

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recomputes activations in the backward pass instead of keeping them, or stops doing so.

        Transformers renamed the method between the versions that we support. Version 5.24
        recomputes a layer's `forward`; version 5.17 recomputes its `__call__`, and with it the
        layer's hooks. `hooked` serves both: it lends its hooks to the recomputation.
        """
        verb = "enable" if on else "disable"
        name = f"activation_checkpointing_{verb}"
        if not hasattr(self.model, name):
            name = f"gradient_checkpointing_{verb}"
        options = {"use_reentrant": False, "context_fn": self._recomputed}
        if self.placed:  # a module that recomputing leaves half-way would keep its weights in place
            options["early_stop"] = False
        getattr(self.model, name)(*([options] if on else []))
        # Its hook on the embedding is for the reentrant kind, and can be neither copied nor pickled
        if on and hasattr(self.model, "_require_grads_hook"):
            self.model.disable_input_require_grads()

    def _recomputed(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """The contexts that a checkpointed layer runs in: at first, and in the backward pass."""
        return nullcontext(), Again(self._hooks)

    @contextmanager
    def hooked(self, *hooks: Hooks) -> Iterator[None]:
        """Registers forward hooks while the context lasts.

        Outside of it the language model carries no hook of ours. So it can be copied, pickled and
        shared by several models, and whoever calls it finds it as it was. A layer that gradient
        checkpointing recomputes later sees the hooks of its own forward pass again.

        Args:
            *hooks: Functions that register hooks and return their handles.

        Example:
            >>> language = load_language("tiny-lm")
            >>> def first() -> list[RemovableHandle]:
            ...     return [language.layers[0].register_forward_pre_hook(lambda module, args: None)]
            >>> with language.hooked(first):
            ...     len(language.layers[0]._forward_pre_hooks)
            1
            >>> len(language.layers[0]._forward_pre_hooks)
            0
        """
        outer = self._hooks
        with ExitStack() as stack:
            stack.callback(setattr, self, "_hooks", outer)
            self._hooks = (*outer, *hooks)
            for register in hooks:
                for handle in register():
                    stack.callback(handle.remove)
            yield

    def mask(
        self,
        attention_mask: Tensor,
        is_image: Tensor,
        *,
        states: Any = None,
        samples: Tensor | None = None,
        learned: Tensor | None = None,
    ) -> Any:
        """The mask of a prompt, or of the piece of it that comes next.

        Args:
            attention_mask: (B, K + L) int64, 0 at padding.
            is_image: (B, L) bool, the places of images.
            states: What is kept of the K tokens that came before.
            samples: As for `places`.
            learned: (B, L) bool, the tokens of answers; None where there are none.

        Returns:
            The attention mask itself where every token sees what stands before it; otherwise as
            `reading.mask_of` says.
        """
        blocks = self.reading.blocks(is_image, learned)
        if blocks is None:
            return attention_mask
        told = self.model.config.get_text_config(decoder=True)
        kind = self.input_embedding.weight.dtype
        more = {"states": states, "samples": samples, "far": self.reading.far}
        return mask_of(blocks, attention_mask, told, kind, **more)

    def places(
        self, attention_mask: Any, samples: Tensor | None, positions: Tensor | None = None
    ) -> dict[str, Any]:
        """Mask and positions as the model's `forward` takes them.

        Args:
            attention_mask: (B, L) int64, 0 at padding; with `positions` also what `mask` gives.
            samples: (B, L) int64, starting at 0 again with each sample, where rows hold several;
                None where a row is one sample.
            positions: (B, L) or (axes, B, L) int64, as `positions_of` says; None to count tokens.

        Raises:
            ConfigError: If rows hold several samples and the model cannot keep them apart.
        """
        if samples is None:
            if not self._takes_positions:
                return {"attention_mask": attention_mask}
            own = counted(attention_mask) if positions is None else positions
            return {"attention_mask": attention_mask, "position_ids": own}
        if self._packs_by is None:
            self._packs_by = self._find_packing()
        mask, own = None, samples if positions is None else positions
        if self._packs_by == "mask":
            mask = block_mask(samples, self.input_embedding.weight.dtype)
        elif own.ndim == 3:  # a fourth number in front tells samples apart
            own = torch.cat([samples[None], own])
        return {"attention_mask": mask, "position_ids": own}

    @torch.no_grad()
    def _find_packing(self) -> str:
        """How samples of one row are kept apart: "positions" or "mask".

        Most families of Transformers read it off positions that start anew, which also keeps
        sliding windows; OPT does not, and would let samples see each other without a word. So it
        is tried: the second sample's logits must not depend on the first, bit for bit.
        """
        device = self.device
        positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
        if self._takes_positions:
            for way, mask in (
                ("positions", None),
                ("mask", block_mask(positions, self.input_embedding.weight.dtype)),
            ):
                second = [
                    self.model(
                        input_ids=torch.tensor([[*first, 4, 5, 6]], device=device),
                        attention_mask=mask,
                        position_ids=positions,
                        use_cache=False,
                    ).logits[:, 3:]
                    for first in ([1, 2, 3], [3, 0, 1])
                ]
                if torch.equal(*second):
                    return way
        raise ConfigError(
            f"{type(self.model).__name__} cannot keep samples of one row apart: set train.pack = 0"
        )

    @cached_property
    def start_ids(self) -> list[int]:
        """What the tokenizer puts before a text: the begin-of-sequence token, or nothing.

        Nothing where prompts are read at once: there the template writes it.
        """
        if self.reading.sees == "prompt":
            return []
        bare, whole = self.encode("a"), list(self.tokenizer.encode("a"))
        if len(whole) > len(bare) and bare:
            for i in range(len(whole) - len(bare) + 1):
                if whole[i : i + len(bare)] == bare:
                    return whole[:i]
        return []

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens at its ends."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def end_ids(self) -> list[int]:
        """The model's own end-of-sequence tokens."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return []
        return [int(i) for i in ids] if isinstance(ids, (list, tuple)) else [int(ids)]


def load_language(
    source: str | LanguageConfig | nn.Module | LanguageModel,
    *,
    tokenizer: Any = None,
    layers: str | None = None,
    lora_rank: int = 0,
    dtype: torch.dtype | None = None,
    device_map: Any = None,
) -> LanguageModel:
    """Loads a language model by name, or wraps one.

    Args:
        source: "hf:REPO" (a hub name or a folder), "asset:NAME", "tiny-lm", "tiny-moe", a
            `LanguageConfig`, or a Transformers causal LM (then `tokenizer` is needed). Of a
            released vision-language model it is the decoder with its head.
        tokenizer: The tokenizer of a model that is handed in as an object.
        layers: Dotted path of the decoder layers, where the search fails.
        lora_rank: Rank of LoRA adapters; 0 keeps the model frozen.
        dtype: Precision of the weights; None keeps fp32, or with a device_map that of the file.
        device_map: Where a named model's layers are put, as in `LanguageConfig`. An object is used
            as it was dispatched by whoever made it.

    Raises:
        ConfigError: If the name has an unknown form, a tokenizer is missing, or a device_map does
            not fit.
        CheckpointError: If the weights cannot be fetched.

    Example:
        >>> load_language("tiny-lm").width
        64
    """
    if device_map is not None:
        if isinstance(source, nn.Module):
            raise ConfigError(
                f"device_map came with a {type(source).__name__} that is loaded already: pass "
                "device_map to its from_pretrained, or its name in place of it"
            )
        known = LanguageConfig(name=source) if isinstance(source, str) else source
        source = replace(known, device_map=device_map)
    if isinstance(source, LanguageModel):
        return source
    if isinstance(source, nn.Module):
        if tokenizer is None:
            raise ConfigError("a language model handed in as an object needs tokenizer=")
        name = getattr(getattr(source, "config", None), "name_or_path", "") or "object"
        config = LanguageConfig(name=f"hf:{name}", layers=layers, lora_rank=lora_rank)
        return LanguageModel(converted(source, dtype), tokenizer, config)
    if isinstance(source, str):
        source = LanguageConfig(name=source, layers=layers, lora_rank=lora_rank)
    model, tokenizer, reading = fetch_language(source, dtype)
    if source.device_map is None:
        model = converted(model, dtype)
    return LanguageModel(model, tokenizer, source, reading)
