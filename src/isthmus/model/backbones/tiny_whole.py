"""Tiny released models of classes that are not taken apart, in folders as their repositories are.

For tests, and for trying things out offline: Transformers' own classes with random weights, their
processors, and a byte tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isthmus.errors import ConfigError, suggestion
from isthmus.model.backbones.tiny import END, PAD, START, VOCABULARY, byte_tokenizer

IMAGE = VOCABULARY
"""Id of the token of an image, in classes that have one."""
ROWS = VOCABULARY + 5
"""Rows of the embedding."""


def tokenizer_with(**named: str) -> Any:
    """A byte tokenizer with more special tokens, by the names that processors ask for them.

    Example:
        >>> tokenizer_with(image_token="<image>").image_token_id
        259
    """
    import transformers

    core = byte_tokenizer()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )


def shaken(make: Callable[[], Any], seed: int = 0) -> Any:
    """A model with random weights, norms and biases among them, which would hide mix-ups.

    Args:
        make: Makes the model.
        seed: Seed of the weights; the global generator is left alone.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = make()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def _mllama(folder: Path) -> None:
    """Cross-attention to tiles, a chat template, several images."""
    import transformers

    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 64,
        "vision_output_dim": 64,
        "image_size": 32,
        "patch_size": 8,
        "max_num_tiles": 2,
        "intermediate_layers_indices": [1],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    text = {
        "vocab_size": ROWS,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "cross_attention_layers": [1],
        "max_position_embeddings": 512,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = transformers.MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE
    )
    model = shaken(lambda: transformers.MllamaForConditionalGeneration(config))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    tokenizer = tokenizer_with(image_token="<|image|>", python_token="<|python_tag|>")
    images = transformers.MllamaImageProcessor(size={"height": 32, "width": 32}, max_image_tiles=2)
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{% if m['content'] is string %}"
        "{{ m['content'] }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<|image|>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
        "{% endif %}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    processor = transformers.MllamaProcessor(images, tokenizer, chat_template=template)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _git(folder: Path) -> None:
    """No token for an image, and a tokenizer that ends every text."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    config = transformers.GitConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        vocab_size=ROWS,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=256,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = shaken(lambda: transformers.GitForCausalLM(config))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    square = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    model.save_pretrained(folder)
    transformers.GitProcessor(images, tokenizer).save_pretrained(folder)


def _florence2(folder: Path) -> None:
    """An encoder that reads image and prompt, and a decoder that writes."""
    import transformers

    config = transformers.Florence2Config(
        vision_config={
            "depths": [1, 1, 1, 1],
            "embed_dim": [16, 16, 16, 32],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "projection_dim": 64,
            "window_size": 4,
            "max_position_embeddings": 10,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": ROWS,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 256,
            "bos_token_id": START,
            "eos_token_id": END,
            "pad_token_id": PAD,
            "decoder_start_token_id": END,
        },
        image_token_id=IMAGE,
    )
    model = shaken(lambda: transformers.Florence2ForConditionalGeneration(config))
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.bos_token_id = END, PAD, START
    settings.decoder_start_token_id, settings.forced_bos_token_id = END, START
    settings.num_beams = 3
    tokenizer = tokenizer_with(image_token="<image>")
    square = {"height": 64, "width": 64}
    images = transformers.CLIPImageProcessor(size=square, do_center_crop=False)
    images.image_seq_length = 5
    model.save_pretrained(folder)
    transformers.Florence2Processor(images, tokenizer).save_pretrained(folder)


KINDS: dict[str, Callable[[Path], None]] = {
    "mllama": _mllama,
    "git": _git,
    "florence2": _florence2,
}
"""Classes by their model types."""


def write_tiny_whole(folder: str | Path, kind: str = "git") -> Path:
    """Writes a model with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        kind: Its model type, one of `KINDS`.

    Returns:
        The folder.

    Raises:
        ConfigError: If the kind is unknown.

    Example:
        >>> import isthmus as im, tempfile
        >>> im.load(write_tiny_whole(tempfile.mkdtemp())).summary().architecture
        'GitForCausalLM'
    """
    if kind not in KINDS:
        raise ConfigError(f'unknown kind "{kind}": {suggestion(kind, KINDS)}')
    KINDS[kind](Path(folder))
    return Path(folder)
