"""Tiny parts that need no download: for tests, for the documentation, for trying things out.

They are real: a timm vision transformer, Transformers causal LMs of many families, a Transformers
tokenizer over bytes. Only their sizes are tiny and their weights random.
"""

from __future__ import annotations

from typing import Any

import torch

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
        size: Side of the picture in pixels.
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


def _sizes(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 256,
    }


def _config(family: str, width: int, layers: int, heads: int) -> Any:
    """A Transformers configuration of a family."""
    import transformers as t

    ids = {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
    }
    sizes = _sizes(width, layers, heads)
    grouped = {**sizes, "num_key_value_heads": max(1, heads // 2), **ids}
    gemma = {**grouped, "head_dim": width // heads}
    makers: dict[str, Any] = {
        "llama": lambda: t.LlamaConfig(**grouped),
        "mistral": lambda: t.MistralConfig(**grouped, sliding_window=None),
        "qwen2": lambda: t.Qwen2Config(**grouped),
        "qwen3": lambda: t.Qwen3Config(**gemma),
        "gemma": lambda: t.GemmaConfig(**gemma),
        "gemma2": lambda: t.Gemma2Config(**gemma, sliding_window=16),
        "gemma3": lambda: t.Gemma3TextConfig(**gemma, sliding_window=16),
        "phi": lambda: t.PhiConfig(**grouped),
        "phi3": lambda: t.Phi3Config(**grouped),
        "gpt_neox": lambda: t.GPTNeoXConfig(**sizes, **ids),
        "olmo2": lambda: t.Olmo2Config(**grouped),
        "smollm3": lambda: t.SmolLM3Config(**grouped),
        "gpt2": lambda: t.GPT2Config(
            n_embd=width, n_layer=layers, n_head=heads, n_positions=256, **ids
        ),
        "opt": lambda: t.OPTConfig(
            hidden_size=width,
            word_embed_proj_dim=width,
            ffn_dim=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=256,
            **ids,
        ),
    }
    from isthmus.errors import ConfigError, suggestion

    if family not in makers:
        raise ConfigError(f'unknown family "{family}": {suggestion(family, makers)}')
    return makers[family]()


FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "gpt_neox",
    "olmo2",
    "smollm3",
    "gpt2",
    "opt",
)


def tiny_language_model(
    family: str = "llama", *, width: int = 64, layers: int = 4, heads: int = 4, seed: int = 0
) -> Any:
    """A Transformers causal LM with random weights over the byte vocabulary.

    Args:
        family: One of `FAMILIES`.
        width: Hidden width.
        layers: Number of decoder layers.
        heads: Attention heads.
        seed: Seed of the weights; the global generator is left alone.

    Raises:
        ConfigError: If the family is unknown.

    Example:
        >>> tiny_language_model("qwen3").config.model_type
        'qwen3'
    """
    from transformers import AutoModelForCausalLM

    config = _config(family, width, layers, heads)
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
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
