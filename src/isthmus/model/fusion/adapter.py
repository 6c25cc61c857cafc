"""Low-rank adapters of the language model that act only where an image is in sight.

    y = W x + (alpha / rank) B A x        where an image is in sight (Hu et al. 2021, LoRA)
    y = W x                               everywhere else

So text stays bit for bit what the bare language model makes of it. Phi-4-multimodal chooses a LoRA
by what the input holds (Abouelenin et al. 2025, arXiv 2503.01743), InternLM-XComposer2 adapts image
tokens alone (Dong et al. 2024, arXiv 2401.16420); CogVLM does so with full matrices (Wang et al.
2023, arXiv 2311.03079). `Adapter.when` says which.

Forward hooks on linear maps add the second term. They last for one forward pass, and there are none
in a pass in which nothing is in sight. Where all of a pass is in sight a map computes what PEFT's
LoRA does, under PEFT's names: `peft_tensors` and `peft_config` are what PEFT saves.

Letters as in `sight`: B rows, L tokens.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from isthmus.config.base import Config, Count, NotNegative, Positive
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.backbones.int8_layers import Adapters, Int8Linear
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.fusion.sight import image_of_token, pass_of, samples_with_images

PEFT_PREFIX = "base_model.model."
"""Begins the names of tensors in PEFT's files."""


@dataclass(frozen=True, kw_only=True)
class Adapter(Config):
    """Low-rank adapters on linear maps of the language model's layers (Hu et al. 2021)."""

    rank: Count = 16
    """Rank of each adapter."""
    alpha: Positive | None = None
    """The second term is multiplied by alpha / rank; None is twice the rank."""
    start: NotNegative = 0
    """The first layer that has adapters; a later start shortens the backward pass."""
    maps: tuple[str, ...] = ()
    """Endings of the names of maps, such as "q_proj"; empty for all linear maps of a layer but
    those of routed experts, which see only some tokens."""
    when: Literal["image", "after", "sample"] = "after"
    """Where they act: on the tokens of images alone; from the first image of a sample on; or on
    the whole of each sample that has an image."""

    def build(self, language: LanguageModel) -> SightAdapter:
        """The module for a language model."""
        return SightAdapter(self, language)

    def toy(self) -> Adapter:
        """The same, small, for "tiny-lm"."""
        return Adapter(rank=2, start=min(self.start, 2), maps=(), when=self.when)


@dataclass
class Adapted:
    """Where adapters act in the passes over one batch: its prompt, and what is decoded after it.

    Attributes:
        prompt: (B, L) bool, the tokens of the prompt in sight of an image.
        then: (B,) bool, the rows whose decoded tokens are.
        some: Whether any token of the pass under way is.
        elsewhere: (B' * L', 1) bool, the tokens of that pass that are not; None where all or none
            of them are.
        tokens: B' * L', how many tokens that pass has.
    """

    prompt: Tensor
    then: Tensor
    some: bool = False
    elsewhere: Tensor | None = None
    tokens: int = 0

    def select(self, rows: Tensor) -> Adapted:
        """Some rows, or repeated ones: (B',) row numbers."""
        return Adapted(self.prompt[rows], self.then[rows])

    def advance(self, rows: int, length: int, past: int) -> None:
        """Looks at the tokens of the coming forward pass.

        Args:
            rows: Rows B' of the pass, a multiple of B (each row repeated, as beams are).
            length: Tokens L' of the pass.
            past: Tokens already in the language model's cache.
        """
        here = self.prompt[:, past : past + length]
        if (decoded := length - here.shape[1]) > 0:
            here = torch.cat([here, self.then[:, None].expand(-1, decoded)], dim=1)
        here = here.repeat_interleave(rows // here.shape[0], dim=0)
        count = int(here.sum())
        self.tokens = here.numel()
        self.some = count > 0
        self.elsewhere = ~here.reshape(-1, 1) if 0 < count < self.tokens else None


class LowRank(nn.Module):
    """The second term of one map, `scale * B A x`.

    Args:
        in_width: Width of x.
        out_width: Width of y.
        rank: Of both matrices.
        scale: alpha / rank.
    """

    def __init__(self, in_width: int, out_width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.lora_A = nn.Linear(in_width, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_width, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, states: Tensor, output: Tensor, elsewhere: Tensor | None = None) -> Tensor:
        """What a map makes of tokens, with the second term added where an image is in sight.

        Elsewhere zero is added, which leaves every value of `output` as it is.

        Args:
            states: (..., in_width), the map's input x.
            output: (..., out_width), what the bare map makes of it.
            elsewhere: (tokens, 1) as in `Adapted`; None for nowhere.
        """
        first, second = self.lora_A.weight, self.lora_B.weight
        low = F.linear(states.flatten(0, -2).to(first.dtype), first)  # a call of its own costs more
        if elsewhere is not None:
            low = low.masked_fill(elsewhere, 0)  # not times zero: what overflowed would stay
        bare = output.flatten(0, -2)
        if bare.dtype != low.dtype:
            added = bare + (F.linear(low, second) * self.scale).to(bare.dtype)
        elif torch.is_grad_enabled():
            added = torch.addmm(bare, low, second.T.to(low.dtype), alpha=self.scale)
        else:  # what a map has made is nobody else's
            added = bare.addmm_(low, second.T.to(low.dtype), alpha=self.scale)
        return added.view_as(output)


class SightAdapter(nn.Module):
    """The adapters of a language model's layers.

    Args:
        config: Size, maps and where they act.
        language: The language model that they are for; it is not changed, and not kept.

    Attributes:
        maps: A `LowRank` for each map, by layer and path in it: "8/self_attn/q_proj".

    Raises:
        ConfigError: If no map has one of the names, a layer has no linear map, or the language
            model has LoRA adapters of its own.
    """

    def __init__(self, config: Adapter, language: LanguageModel) -> None:
        super().__init__()
        if language.config.lora_rank:
            raise ConfigError(
                f"got language.lora_rank = {language.config.lora_rank} beside fusion.adapter: "
                "expected one of them, since adapters would be put on adapters"
            )
        self.config = config
        scale = (2 * config.rank if config.alpha is None else config.alpha) / config.rank
        self.maps = nn.ModuleDict()
        known: dict[str, None] = {}
        for number, layer in enumerate(language.layers):
            for path, sizes in linear_maps(layer).items():
                known.setdefault(path)
                if number < config.start or not _is_chosen(path, config.maps):
                    continue
                key = f"{number}/{path.replace('.', '/')}"
                self.maps[key] = LowRank(*sizes, config.rank, scale)
        if not self.maps:
            raise ConfigError(
                f"adapter: no map from layer {config.start} on of {len(language.layers)} layers is "
                f"called {', '.join(config.maps) or 'anything'}: a layer has {', '.join(known)}"
            )

    def see(
        self,
        is_image: Tensor,
        mask: Tensor,
        positions: Tensor | None = None,
        *,
        before: Tensor | None = None,
        ever: Tensor | None = None,
    ) -> Adapted:
        """Where the adapters act in a batch.

        Args:
            is_image: (B, L) bool, the places of all images in the tokens to come.
            mask: (B, L), 0 at padding.
            positions: (B, L) as for `image_of_token`.
            before: (B,) bool, the rows with an image among the tokens before these.
            ever: (B,) bool, the rows with an image anywhere; None to look for it in `is_image`.
        """
        none = torch.zeros_like(is_image[:, 0])
        before = none if before is None else before
        ever = before | is_image.any(dim=1) if ever is None else ever
        if self.config.when == "image":
            return Adapted(is_image, none)
        if self.config.when == "after":
            seen = (image_of_token(is_image, mask, positions) >= 0) | before[:, None]
            return Adapted(seen & (mask != 0), before | is_image.any(dim=1))
        whole = ever[:, None].expand_as(is_image)
        if positions is not None:
            whole = samples_with_images(is_image, positions)
        return Adapted(whole & (mask != 0), ever)

    def decoding(self, has_image: Tensor) -> Adapted:
        """Where they act in tokens that are decoded behind rows; has_image (B,) bool."""
        then = has_image if self.config.when != "image" else torch.zeros_like(has_image)
        return Adapted(then[:, None][:, :0], then)

    def hook(self, language: LanguageModel, adapted: Adapted) -> list[RemovableHandle]:
        """Lets the adapters act in a language model until the hooks are removed.

        Args:
            language: The language model that they were built for, or a copy of it.
            adapted: Where they act.
        """
        if not bool(adapted.prompt.any()) and not bool(adapted.then.any()):
            return []
        first = partial(_follow, adapted)
        handles: list[Any] = [language.model.register_forward_pre_hook(first, with_kwargs=True)]
        placed = _PLACED.get(self)
        if placed is None or not placed.holds(language):
            placed = _PLACED[self] = _Placed(self.maps, language)
        for owner, low in placed.outside:
            handles.append(owner.register_forward_hook(partial(_add, low, adapted)))
        for layers, terms in placed.within:
            handles.append(layers.act(terms, adapted))
        return handles

    # --- PEFT -----------------------------------------------------------------------------------

    def _peft_name(self, key: str, layers_path: str) -> str:
        return f"{layers_path}.{key.replace('/', '.')}"

    def peft_config(self, language: LanguageModel) -> dict[str, Any]:
        """What PEFT's `adapter_config.json` says of these adapters.

        PEFT has them act always: what it computes is the same where all is in sight.
        """
        first = next(iter(self.maps.values()))
        assert isinstance(first, LowRank)
        conv1d = any(_is_conv1d(m) for m in language.layers.modules())
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.config.rank,
            "lora_alpha": first.scale * self.config.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": conv1d,
            "target_modules": [self._peft_name(k, language.layers_path) for k in self.maps],
        }

    def peft_tensors(self, language: LanguageModel) -> dict[str, Tensor]:
        """The matrices under the names of PEFT's `adapter_model.safetensors`."""
        found = {}
        for key, low in self.maps.items():
            assert isinstance(low, LowRank)
            name = PEFT_PREFIX + self._peft_name(key, language.layers_path)
            found[f"{name}.lora_A.weight"] = low.lora_A.weight.detach()
            found[f"{name}.lora_B.weight"] = low.lora_B.weight.detach()
        return found

    def load_peft(self, tensors: Mapping[str, Tensor], language: LanguageModel) -> None:
        """Takes the matrices of a file that PEFT saved.

        Args:
            tensors: By their names in that file.
            language: The language model that they are for.

        Raises:
            CheckpointError: If maps or sizes differ.
        """
        own = self.peft_tensors(language)
        wrong = sorted(own.keys() ^ tensors.keys())
        wrong += [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
        if wrong:
            raise CheckpointError(
                f"the adapter does not fit: {wrong[0]} differs (and {len(wrong) - 1} more); "
                "expected the maps and the rank that fusion.adapter names"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])


class _Placed:
    """Which modules of a language model the terms belong to: to find out takes 1 ms in each pass.

    Attributes:
        within: Terms that layers in int8 add by themselves.
        outside: Modules whose outputs they are added to by hooks.
    """

    def __init__(self, maps: nn.ModuleDict, language: LanguageModel) -> None:
        self.layers = language.layers
        self._maps, self._terms = maps, list(maps.values())
        self.outside: list[tuple[nn.Module, LowRank]] = []
        places: dict[tuple[int, str], tuple[dict[str, nn.Module | None], str, nn.Module]] = {}
        terms: dict[nn.Module, Any] = {}
        adapters: dict[int, Adapters] = {}
        for key, low in maps.items():
            assert isinstance(low, LowRank)
            owner: nn.Module = self.layers
            for part in key.split("/"):
                parent = owner._modules
                owner = parent[part]  # type: ignore[assignment]
                places[id(parent), part] = parent, part, owner
            if isinstance(owner, Int8Linear):
                terms[owner] = low
                adapters[id(owner.together.adapters)] = owner.together.adapters
            else:
                self.outside.append((owner, low))
        self.within = [(each, terms) for each in adapters.values()]
        self._places = list(places.values())  # layers and what holds the maps, too

    def holds(self, language: LanguageModel) -> bool:
        """Whether nothing was put in a place of theirs since."""
        return (
            language.layers is self.layers
            and list(self._maps.values()) == self._terms  # modules are equal to themselves alone
            and all(parent.get(part) is owner for parent, part, owner in self._places)
            and not any(isinstance(owner, Int8Linear) for owner, _ in self.outside)
        )


_PLACED: weakref.WeakKeyDictionary[SightAdapter, _Placed] = weakref.WeakKeyDictionary()


def linear_maps(layer: nn.Module) -> dict[str, tuple[int, int]]:
    """The linear maps of a decoder layer that see every token: path to widths in and out.

    Those inside of a list of modules are experts, to which a router sends some tokens.

    Example:
        >>> linear_maps(nn.ModuleDict({"up": nn.Linear(2, 3), "experts": nn.ModuleList()}))
        {'up': (2, 3)}
    """
    lists = [n for n, m in layer.named_modules() if isinstance(m, nn.ModuleList)]
    found = {}
    for path, module in layer.named_modules():
        if any(path.startswith(f"{name}.") for name in lists):
            continue
        if isinstance(module, nn.Linear):
            found[path] = (module.in_features, module.out_features)
        elif _is_conv1d(module):
            rows, columns = module.weight.shape
            found[path] = (int(rows), int(columns))
    return found


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is Transformers' linear map of GPT-2, whose weight lies the other way."""
    return type(module).__name__ == "Conv1D" and getattr(module, "weight", None) is not None


def _is_chosen(path: str, endings: tuple[str, ...]) -> bool:
    return not endings or any(re.search(rf"(^|\.){re.escape(e)}$", path) for e in endings)


def _follow(adapted: Adapted, module: nn.Module, args: Any, kwargs: Any) -> None:
    """A forward pre-hook of a language model: tells `adapted` which tokens a pass is about."""
    adapted.advance(*pass_of(args, kwargs))


def _add(low: nn.Module, adapted: Adapted, module: nn.Module, args: Any, output: Tensor) -> Any:
    """A forward hook of a map: adds the second term where an image is in sight."""
    if not adapted.some:
        return None
    states: Tensor = args[0]
    if (count := output.shape[:-1].numel()) != adapted.tokens:
        raise ConfigError(
            f"adapter: a map sees {count} of {adapted.tokens} tokens, expected all; leave it out "
            "of fusion.adapter.maps"
        )
    return low(states, output, adapted.elsewhere)
