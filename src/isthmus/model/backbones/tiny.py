"""Tiny parts that need no download: for tests, for the documentation, for trying things out.

They are real: a timm vision transformer, Transformers causal LMs of many families, a Transformers
tokenizer over bytes. Only their sizes are tiny and their weights random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from isthmus.errors import ConfigError, suggestion

VOCABULARY = 259
"""256 bytes, then `<pad>`, `<s>` and `</s>`."""
PAD, START, END = 256, 257, 258


def tiny_vit_model(
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    size: int = 32,
    patch: int = 8,
    seed: int = 0,
) -> Any:
    """A timm vision transformer with random weights, 4 x 4 patches by default.

    Args:
        width: Width of the features.
        depth: Number of blocks.
        heads: Attention heads.
        size: Side of the image in pixels.
        patch: Side of a patch in pixels.
        seed: Seed of the weights; the global generator is left alone.
    """
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=size,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=0,
        ).eval()


def tiny_cnn_model(*, classes: int = 10, size: int = 64, seed: int = 0) -> Any:
    """A timm residual network with random weights and a classifier, for what needs stages.

    Args:
        classes: Classes of its classifier.
        size: Side of the image in pixels; the last map is a thirty-second of it.
        seed: Seed of the weights; the global generator is left alone.
    """
    from timm.models.resnet import BasicBlock, ResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(
            BasicBlock,
            (1, 1, 1, 1),
            num_classes=classes,
            channels=(8, 8, 16, 32),
            stem_width=4,
            stem_type="deep",
        )
    model.pretrained_cfg = {
        "input_size": (3, size, size),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    return model.eval()


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a language model, under the names that configurations give them."""

    width: int
    layers: int
    heads: int
    vocab: int

    @property
    def ids(self) -> dict[str, int]:
        return {
            "vocab_size": self.vocab,
            "pad_token_id": PAD,
            "bos_token_id": START,
            "eos_token_id": END,
        }

    @property
    def plain(self) -> dict[str, int]:
        return {
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": 1024,
            **self.ids,
        }

    @property
    def grouped(self) -> dict[str, int]:
        """With two query heads to a key head."""
        return {**self.plain, "num_key_value_heads": max(1, self.heads // 2)}

    @property
    def headed(self) -> dict[str, int]:
        """With the width of a head told, which some families do not derive."""
        return {**self.grouped, "head_dim": self.width // self.heads}

    @property
    def experts(self) -> dict[str, int]:
        """Four narrow experts of which a token meets two."""
        return {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": self.width // 2,
        }


def _deepseek(sizes: _Sizes) -> dict[str, Any]:
    half = sizes.width // sizes.heads // 2
    return {
        **sizes.plain,
        **sizes.experts,
        "num_key_value_heads": sizes.heads,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": sizes.width // 2,
        "kv_lora_rank": sizes.width // 4,
        "qk_rope_head_dim": half,
        "qk_nope_head_dim": half,
        "v_head_dim": 2 * half,
    }


def _gpt2(sizes: _Sizes) -> dict[str, int]:
    return {
        "n_embd": sizes.width,
        "n_layer": sizes.layers,
        "n_head": sizes.heads,
        "n_positions": 256,
        **sizes.ids,
    }


def _opt(sizes: _Sizes) -> dict[str, int]:
    return {
        "hidden_size": sizes.width,
        "word_embed_proj_dim": sizes.width,
        "ffn_dim": 2 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": 256,
        **sizes.ids,
    }


def _family(name: str, options: Callable[[_Sizes], dict[str, Any]]) -> Callable[[_Sizes], Any]:
    """Makes a configuration by the name of its class, which is only then imported."""

    def make(sizes: _Sizes) -> Any:
        import transformers

        return getattr(transformers, name)(**options(sizes))

    return make


# A window of 16 tokens is shorter than test prompts, so that sliding attention does slide
FAMILIES: dict[str, Callable[[_Sizes], Any]] = {
    "llama": _family("LlamaConfig", lambda s: s.grouped),
    "mistral": _family("MistralConfig", lambda s: {**s.grouped, "sliding_window": None}),
    "qwen2": _family("Qwen2Config", lambda s: s.grouped),
    "qwen3": _family("Qwen3Config", lambda s: s.headed),
    "gemma": _family("GemmaConfig", lambda s: s.headed),
    "gemma2": _family("Gemma2Config", lambda s: {**s.headed, "sliding_window": 16}),
    "gemma3": _family("Gemma3TextConfig", lambda s: {**s.headed, "sliding_window": 16}),
    "phi": _family("PhiConfig", lambda s: s.grouped),
    "phi3": _family("Phi3Config", lambda s: s.grouped),
    "gpt_neox": _family("GPTNeoXConfig", lambda s: s.plain),
    "olmo2": _family("Olmo2Config", lambda s: s.grouped),
    "smollm3": _family("SmolLM3Config", lambda s: s.grouped),
    "gpt2": _family("GPT2Config", _gpt2),
    "opt": _family("OPTConfig", _opt),
}
"""Language-model families by name: sizes to a Transformers configuration."""

MIXTURES: dict[str, Callable[[_Sizes], Any]] = {
    "qwen3_moe": _family("Qwen3MoeConfig", lambda s: {**s.headed, **s.experts}),
    "glm4_moe": _family(
        "Glm4MoeConfig",
        lambda s: {
            **s.headed,
            **s.experts,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
        },
    ),
    "deepseek_v3": _family("DeepseekV3Config", _deepseek),
}
"""Likewise, families of mixtures of experts."""


def tiny_language_config(
    family: str = "llama",
    *,
    width: int = 64,
    layers: int = 4,
    heads: int = 4,
    vocab: int = VOCABULARY,
) -> Any:
    """The Transformers configuration of a tiny causal LM.

    Args:
        family: One of `FAMILIES` or `MIXTURES`.
        width: Hidden width.
        layers: Number of decoder layers.
        heads: Attention heads.
        vocab: Rows of the embedding.

    Raises:
        ConfigError: If the family is unknown, or the vocabulary lacks the special tokens.

    Example:
        >>> tiny_language_config("qwen3", layers=2).num_hidden_layers
        2
    """
    known = {**FAMILIES, **MIXTURES}
    if family not in known:
        raise ConfigError(f'unknown family "{family}": {suggestion(family, known)}')
    if vocab < VOCABULARY:
        raise ConfigError(f"vocab is {vocab}: expected at least {VOCABULARY}, all bytes and tokens")
    return known[family](_Sizes(width, layers, heads, vocab))


def tiny_language_model(
    family: str = "llama",
    *,
    width: int = 64,
    layers: int = 4,
    heads: int = 4,
    vocab: int = VOCABULARY,
    seed: int = 0,
) -> Any:
    """A Transformers causal LM with random weights, by default over the byte vocabulary.

    Args:
        family: One of `FAMILIES` or `MIXTURES`.
        width: Hidden width.
        layers: Number of decoder layers.
        heads: Attention heads.
        vocab: Rows of the embedding; more than `VOCABULARY` are rows that no byte has.
        seed: Seed of the weights; the global generator is left alone.

    Raises:
        ConfigError: If the family is unknown, or the vocabulary lacks the special tokens.

    Example:
        >>> tiny_language_model("qwen3").config.model_type
        'qwen3'
    """
    from transformers import AutoModelForCausalLM

    config = tiny_language_config(family, width=width, layers=layers, heads=heads, vocab=vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the usual 0.02 would make every token's logits alike
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = PAD
    return model.eval()


def byte_tokenizer() -> Any:
    """A Transformers tokenizer whose tokens are the 256 bytes: any text, no download.

    A byte's token id is the byte.

    Example:
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer.decode(tokenizer.encode("점 ok"))
        '점 ok'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    vocabulary |= {"<pad>": PAD, "<s>": START, "</s>": END}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,  # decoded text is the text, spaces before dots and all
    )


def tiny_text_model(*, width: int = 32, layers: int = 2, heads: int = 2, seed: int = 0) -> Any:
    """A BERT with random weights over the byte vocabulary; it goes with `byte_tokenizer`.

    Args:
        width: Hidden width.
        layers: Number of layers.
        heads: Attention heads.
        seed: Seed of the weights; the global generator is left alone.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=128,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the usual 0.02 would make every text alike
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()
