"""nanoVLM's own repositories, such as `lusxvr/nanoVLM-450M`: a flat `config.json` and one file.

A SigLIP behind its final norm, squares of patches as one visual token by one linear map, a Llama
(Wiedmann, Roy Gosthipaty and Marafioti 2025, huggingface.co/blog/nanovlm). The classes are
nanoVLM's; its tensors are put into those of Transformers, which compute the same. The repository
names the tokenizer's repository (`lm_tokenizer`); a tokenizer that lies beside the weights is taken
in its place. Of the three forms that were released the configuration tells which it is:

    no tokens for images      images stand before the text, "Question: ... Answer:"
    an image's token          images where the token stands, squeezed into a square
    tokens for places too     images in tiles, with the whole image in front or without
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError, loading
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.pixel_shuffle import PixelShuffle
from isthmus.model.media.placed_tiles import PlacedTiles, StretchedImages, unsplit
from isthmus.model.media.tiles import Unsplit
from isthmus.released.nanovlm_tensors import renamed

NAME = "nanovlm"
WEIGHTS = "model.safetensors"
KEYS = ("vit_hidden_dim", "lm_hidden_dim", "mp_pixel_shuffle_factor")
"""Entries of `config.json` that no other project's have."""
SIZES = (
    *("vit_hidden_dim", "vit_inter_dim", "vit_patch_size", "vit_img_size", "vit_n_heads"),
    *("vit_n_blocks", "lm_hidden_dim", "lm_inter_dim", "lm_max_position_embeddings"),
    *("lm_vocab_size", "lm_n_heads", "lm_n_kv_heads", "lm_n_blocks", "mp_pixel_shuffle_factor"),
)
"""Entries that are whole numbers of 1 or more."""
NUMBERS = ("vit_ln_eps", "lm_rms_eps", "lm_re_base")
PLAIN = {"vit_cls_flag": False, "lm_attn_scaling": 1.0}
"""Options that our parts have at one value alone, which is the released one."""
MOST_PLACES = 8
"""Most rows and columns of tiles that nanoVLM has tokens for."""


@dataclass(frozen=True)
class NanoConfig:
    """What a `config.json` of nanoVLM says.

    Attributes:
        sizes: Numbers by their names there.
        tied: Whether the head is the embedding's own table.
        tokenizer: Repository of the tokenizer.
        tokens: Tokens that are added to it, by their names there.
        template: The chat template; None in the first form.
        longest: Longest side of an image in tiles; None where images are one square.
        fill: Whether every image is made as large as that.
    """

    sizes: Mapping[str, Any]
    tied: bool
    tokenizer: str
    tokens: Mapping[str, str]
    template: str | None
    longest: int | None
    fill: bool

    @property
    def images(self) -> StretchedImages:
        """The image processor."""
        tile = self.sizes["vit_img_size"]
        numbers = range(MOST_PLACES)
        named = {(r, c): f"r{r + 1}c{c + 1}" for r in numbers for c in numbers}
        return StretchedImages(
            tile=tile,
            longest=self.longest or tile,
            fill=self.fill,
            whole=self.tokens.get("global_image_token"),
            places={p: self.tokens[name] for p, name in named.items() if name in self.tokens},
        )


@dataclass(frozen=True)
class NanoProcessor:
    """The processor that such a repository would have in Transformers.

    Attributes:
        image_processor: Images to pixels.
        tokenizer: The tokenizer with the model's own tokens.
        chat_template: How conversations are written; None if not at all.
        image_id: Id of the token that stands for an image.
    """

    image_processor: StretchedImages
    tokenizer: Any
    chat_template: str | None
    image_id: int


class NanoModules(nn.Module):
    """A nanoVLM as modules of Transformers.

    Args:
        config: Its configuration.
        end: Id of the token that ends a text; None if the tokenizer has none.
    """

    def __init__(self, config: NanoConfig, end: int | None) -> None:
        from transformers import (
            LlamaConfig,
            LlamaForCausalLM,
            SiglipVisionConfig,
            SiglipVisionModel,
        )

        super().__init__()
        s = config.sizes
        self.tower: Any = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=s["vit_hidden_dim"],
                intermediate_size=s["vit_inter_dim"],
                num_hidden_layers=s["vit_n_blocks"],
                num_attention_heads=s["vit_n_heads"],
                image_size=s["vit_img_size"],
                patch_size=s["vit_patch_size"],
                layer_norm_eps=s["vit_ln_eps"],
                hidden_act="gelu_pytorch_tanh",
                vision_use_head=False,
            )
        )
        self.language: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=s["lm_vocab_size"],
                hidden_size=s["lm_hidden_dim"],
                intermediate_size=s["lm_inter_dim"],
                num_hidden_layers=s["lm_n_blocks"],
                num_attention_heads=s["lm_n_heads"],
                num_key_value_heads=s["lm_n_kv_heads"],
                max_position_embeddings=s["lm_max_position_embeddings"],
                rms_norm_eps=s["lm_rms_eps"],
                rope_parameters={"rope_type": "default", "rope_theta": float(s["lm_re_base"])},
                tie_word_embeddings=config.tied,
                bos_token_id=None,
                eos_token_id=end,
            )
        )
        width = s["vit_hidden_dim"] * s["mp_pixel_shuffle_factor"] ** 2
        self.projector = nn.Linear(width, s["lm_hidden_dim"], bias=False)


@RELEASED.register(NAME)
class NanoVLM:
    """nanoVLM: SigLIP, pixel shuffle, a Llama; see `OwnForm`."""

    architecture = "VisionLanguageModel"

    @staticmethod
    def has_form(told: Mapping[str, Any]) -> bool:
        """See `OwnForm`.

        Example:
            >>> NanoVLM.has_form({"vit_hidden_dim": 768})
            False
        """
        return all(key in told for key in KEYS)

    @staticmethod
    def config(place: str, told: Mapping[str, Any]) -> NanoConfig:
        """See `OwnForm.config`."""
        sizes = {name: _number(place, told, name, whole=True) for name in SIZES}
        sizes |= {name: _number(place, told, name, whole=False) for name in NUMBERS}
        for name, value in PLAIN.items():
            if told.get(name, value) != value:
                raise ConfigError(
                    f'"{place}" has {name} = {told[name]!r}: expected {value!r}, as all that '
                    "were released"
                )
        tile, factor = sizes["vit_img_size"], sizes["mp_pixel_shuffle_factor"]
        side = tile // sizes["vit_patch_size"]
        tokens = told.get("mp_image_token_length", (side // factor) ** 2)
        if side % factor or tokens != (side // factor) ** 2:
            raise ConfigError(
                f'"{place}" makes {side} x {side} patches to {tokens!r} visual tokens '
                f"(mp_image_token_length) by squares of {factor} x {factor} "
                "(mp_pixel_shuffle_factor): expected one token of each square"
            )
        tokenizer, extra = told.get("lm_tokenizer"), told.get("vlm_extra_tokens", {})
        if not isinstance(tokenizer, str):
            raise ConfigError(
                f'"{place}" has lm_tokenizer = {tokenizer!r}: expected a repository of a tokenizer'
            )
        if not isinstance(extra, dict) or not all(isinstance(t, str) for t in extra.values()):
            raise ConfigError(
                f'"{place}" has vlm_extra_tokens = {str(extra)[:60]}: expected tokens by name'
            )
        longest = told.get("max_img_size") if "r1c1" in extra else None
        if longest is not None and (not isinstance(longest, int) or longest % tile or longest <= 0):
            raise ConfigError(
                f'"{place}" has max_img_size = {longest!r}: expected a multiple of a tile, of '
                f"{tile} pixels (vit_img_size)"
            )
        return NanoConfig(
            sizes=sizes,
            tied=bool(told.get("lm_tie_weights", True)),
            tokenizer=tokenizer,
            tokens=dict(extra),
            template=told.get("lm_chat_template") if "image_token" in extra else None,
            longest=longest,
            fill=bool(told.get("resize_to_max_side_len", False)),
        )

    @staticmethod
    def plan(config: NanoConfig) -> Plan:
        """See `Family.plan`. The id of an image's token is the tokenizer's, once it is read."""
        return Plan(
            feature_layer=-1,
            final_norm=True,
            keep_cls=False,
            prefix=None,
            connector=PixelShuffle(factor=config.sizes["mp_pixel_shuffle_factor"]),
            image_id=config.sizes["lm_vocab_size"],
            media=() if config.longest is None else (PlacedTiles(),),
            preprocess=None if config.longest is None else partial(Unsplit, shown=unsplit),
            processed=lambda plan, processor: replace(plan, image_id=processor.image_id),
        )

    @staticmethod
    def processor(place: str, config: NanoConfig) -> NanoProcessor:
        """See `OwnForm`.

        Raises:
            ConfigError: If the model has no rows for all tokens.
        """
        from tokenizers import AddedToken
        from transformers import AutoTokenizer

        beside = (Path(place) / "tokenizer_config.json").is_file()
        source = place if beside else config.tokenizer
        with loading(f"{source}, the tokenizer of {place}", "a folder with its files too"):
            tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokens = [AddedToken(t, normalized=False, special=True) for t in config.tokens.values()]
        tokenizer.add_tokens(tokens, special_tokens=True)  # their ids follow in this order
        rows, image = config.sizes["lm_vocab_size"], config.tokens.get("image_token")
        if len(tokenizer) > rows:
            raise ConfigError(
                f'"{place}" has rows for {rows} tokens (lm_vocab_size), and the tokenizer '
                f"{source} has {len(tokenizer)} with those of nanoVLM: expected the one that it "
                "was trained with"
            )
        tokenizer.chat_template = None  # the model was trained with its own or with none
        image_id = rows if image is None else int(tokenizer.convert_tokens_to_ids(image))
        return NanoProcessor(config.images, tokenizer, config.template, image_id)

    @staticmethod
    def model(place: str, config: NanoConfig, tokenizer: Any, pretrained: bool) -> NanoModules:
        """See `OwnForm.model`."""
        if not pretrained:
            return NanoModules(config, tokenizer.eos_token_id).eval()
        from safetensors.torch import load_file
        from transformers.utils import cached_file

        state = load_file(str(cached_file(place, WEIGHTS)))
        with torch.device("meta"):
            own = NanoModules(config, tokenizer.eos_token_id).state_dict()
        found = renamed(state, own, tied=config.tied, place=place)
        modules = NanoModules(config, tokenizer.eos_token_id)
        modules.load_state_dict(found)
        return modules.eval()

    @staticmethod
    def parts(model: NanoModules) -> Modules:
        """See `Family.parts`."""
        return Modules(
            tower=model.tower,
            decoder=model.language.model,
            head=model.language.lm_head,
            connector={"projection.weight": model.projector.weight.detach()},
            generation_config=model.language.generation_config,
        )


def _number(place: str, told: Mapping[str, Any], name: str, *, whole: bool) -> Any:
    """A number of `config.json`, greater than nothing.

    Raises:
        ConfigError: If it is none.
    """
    value: Any = told.get(name)
    is_number = isinstance(value, int) or (isinstance(value, float) and not whole)
    if isinstance(value, bool) or not is_number or not 0 < value < inf:
        kind = "a whole number" if whole else "a number"
        got = "no" if name not in told else f"{value!r} as"
        raise ConfigError(f'"{place}" has {got} {name}: expected {kind} greater than 0')
    return value
