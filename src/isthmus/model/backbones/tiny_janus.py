"""A tiny Janus in a folder, as its repositories are: for tests, and for trying things offline.

It is Transformers' own class with random weights, a processor, a byte tokenizer that has the tokens
around an image, and a chat template of Janus' kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_config
from isthmus.model.backbones.tiny_repository import write_repository

IMAGE, BEGIN, STOP, ROWS, PATCHES = 259, 260, 261, 264, 16
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + '\n\n' }}{% else %}"
    "{{ '<|' + message['role'].capitalize() + '|>: ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image_placeholder>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'user' %}{{ '\n\n' }}{% else %}{{ '</s>' }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)


def write_tiny_janus(
    folder: str | Path, *, system: bool = True, depth: int = 2, **vision: Any
) -> Path:
    """Writes a Janus with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        system: Whether its processor puts words of its own before every text.
        depth: Layers of its aligner.
        **vision: Options of `transformers.JanusVisionConfig`.

    Returns:
        The folder.

    Example:
        >>> import isthmus as im, tempfile
        >>> im.load(write_tiny_janus(tempfile.mkdtemp())).layout.holes
        16
    """
    import transformers

    config = transformers.JanusConfig(
        vision_config=transformers.JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=64,
            num_image_tokens=PATCHES,
            depth=depth,
            **vision,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            base_channels=32,
            channel_multiplier=[1],
            latent_channels=32,
            num_embeddings=8,
            num_res_blocks=1,
            projection_dim=64,
            image_token_embed_dim=64,
        ),
        text_config=tiny_language_config("llama", vocab=ROWS),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    tokens = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens.values())})
    tokenizer.save_pretrained(folder)
    tokenizer = type(tokenizer).from_pretrained(folder, extra_special_tokens=tokens)
    processor = transformers.JanusProcessor(
        transformers.JanusImageProcessor(size={"height": 32, "width": 32}, min_size=8),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        use_default_system_prompt=system,
        num_image_tokens=PATCHES,
    )
    kind = transformers.JanusForConditionalGeneration
    return write_repository(folder, kind, config, processor, image_id=IMAGE)
