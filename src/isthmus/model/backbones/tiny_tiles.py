"""Tiny released models whose images are cut into tiles, in a folder, as their repositories are.

They are Transformers' own classes with random weights, their processors, a byte tokenizer with
their tokens, and a chat template that takes messages as lists of parts, as theirs do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.errors import ConfigError, suggestion
from isthmus.model.backbones.tiny import VOCABULARY, byte_tokenizer, tiny_language_config
from isthmus.model.backbones.tiny_repository import write_repository

ROWS = VOCABULARY + 61
"""Rows of the embedding: more than there are tokens."""
SIZE, PATCH = 32, 8
"""Sides of a tile and of a patch, in pixels."""
PINPOINTS = [
    [SIZE * rows, SIZE * columns]
    for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (2, 3), (3, 2))
]
"""Height and width of grids of tiles."""
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
_IN_PARTS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}{{ ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ 'IMAGE' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ 'TURN\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write_tiny_tiles(
    folder: str | Path, family: str, *, language: str = "llama", seed: int = 0, **changes: Any
) -> Path:
    """Writes a model of a family with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        family: Its model type: "idefics3", "smolvlm", "llava_next", "llava_onevision", "internvl".
        language: A family of language models, one of `tiny.FAMILIES`.
        seed: Seed of the weights; the global generator is left alone.
        **changes: Options of its configuration, such as `scale_factor`.

    Returns:
        The folder.

    Raises:
        ConfigError: If a family is unknown.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.load(write_tiny_tiles(tempfile.mkdtemp(), "idefics3"))
        >>> model.config.media
        (GridTiles(max_tiles=None),)
    """
    if family not in FAMILIES:
        raise ConfigError(f'unknown family "{family}": {suggestion(family, FAMILIES)}')
    return FAMILIES[family](Path(folder), language, seed, changes)


def _tokenizer(*names: str) -> Any:
    """The byte tokenizer with tokens of its own."""
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(names)})
    return made


def _template(image: str, turn: str) -> str:
    return _IN_PARTS.replace("IMAGE", image).replace("TURN", turn)


def _grid(family: str) -> Callable[[Path, str, int, dict[str, Any]], Path]:
    """Idefics3 or SmolVLM."""

    def write(folder: Path, language: str, seed: int, changes: dict[str, Any]) -> Path:
        import transformers

        name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
        places = [f"<row_{r + 1}_col_{c + 1}>" for r in range(3) for c in range(4)]
        border, turn = "<fake_token_around_image>", "<end_of_utterance>"
        words = _tokenizer("<image>", border, turn, "<global-img>", *places)
        image_id = words.convert_tokens_to_ids("<image>")
        config = getattr(transformers, f"{name}Config")(
            vision_config=_TOWER,
            text_config=tiny_language_config(language, vocab=ROWS).to_dict(),
            image_token_id=image_id,
            **{"scale_factor": 2, "tie_word_embeddings": False, **changes},
        )
        images = getattr(transformers, f"{name}ImageProcessor")(
            size={"longest_edge": 3 * SIZE}, max_image_size={"longest_edge": SIZE}
        )
        tokens = (SIZE // PATCH // config.scale_factor) ** 2
        processor = transformers.Idefics3Processor(
            images, words, image_seq_len=tokens, chat_template=_template("<image>", turn)
        )
        kind = getattr(transformers, f"{name}ForConditionalGeneration")
        write_repository(folder, kind, config, processor, image_id=image_id, seed=seed)
        if family == "smolvlm":  # whose own processor needs a package for its videos
            told = folder / "processor_config.json"
            values = json.loads(told.read_text(encoding="utf-8"))
            values["processor_class"] = "SmolVLMProcessor"
            told.write_text(json.dumps(values), encoding="utf-8")
            transformers.SmolVLMVideoProcessor().save_pretrained(folder)
        return folder

    return write


def _newline(family: str) -> Callable[[Path, str, int, dict[str, Any]], Path]:
    """LLaVA-NeXT with CLIP, or LLaVA-OneVision with SigLIP."""

    def write(folder: Path, language: str, seed: int, changes: dict[str, Any]) -> Path:
        import transformers

        onevision = family == "llava_onevision"
        name = "LlavaOnevision" if onevision else "LlavaNext"
        tower, strategy = ("Siglip", "full") if onevision else ("CLIP", "default")
        words = _tokenizer("<image>", "<video>", "<end>")
        image_id = words.convert_tokens_to_ids("<image>")
        own = {"video_token_id": image_id + 1, "vision_aspect_ratio": "anyres_max_3"}
        options = {
            "vision_feature_layer": -1 if onevision else -2,
            "vision_feature_select_strategy": strategy,
            "image_grid_pinpoints": PINPOINTS,
            **(own if onevision else {}),
            **changes,
        }
        config = getattr(transformers, f"{name}Config")(
            vision_config=getattr(transformers, f"{tower}VisionConfig")(**_TOWER),
            text_config=tiny_language_config(language, vocab=ROWS),
            image_token_id=image_id,
            **options,
        )
        square = {"height": SIZE, "width": SIZE}
        size = {"size": square} if onevision else {"size": {"shortest_edge": SIZE}}
        images = getattr(transformers, f"{name}ImageProcessor")(
            image_grid_pinpoints=PINPOINTS, **size, **({} if onevision else {"crop_size": square})
        )
        told: dict[str, Any] = {
            "image_processor": images,
            "tokenizer": words,
            "vision_feature_select_strategy": strategy,
            "chat_template": _template("<image>\n", "<end>"),
        }
        if onevision:
            told["num_image_tokens"] = (SIZE // PATCH) ** 2
            told["vision_aspect_ratio"] = config.vision_aspect_ratio
            told["video_processor"] = transformers.LlavaOnevisionVideoProcessor()
        else:
            told |= {"patch_size": PATCH, "num_additional_image_tokens": 1}
        processor = getattr(transformers, f"{name}Processor")(**told)
        kind = getattr(transformers, f"{name}ForConditionalGeneration")
        return write_repository(folder, kind, config, processor, image_id=image_id, seed=seed)

    return write


def _internvl(folder: Path, language: str, seed: int, changes: dict[str, Any]) -> Path:
    """InternVL."""
    import transformers

    names = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    words = _tokenizer(*names.values(), "<end>")
    words.init_kwargs["extra_special_tokens"] = names
    words._set_model_specific_special_tokens(special_tokens=names)
    image_id = words.convert_tokens_to_ids("<IMG_CONTEXT>")
    options = {"use_absolute_position_embeddings": True, "use_mean_pooling": False}
    if "vision" in changes:
        options |= changes.pop("vision")
    tower = {**_TOWER, "image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH], **options}
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**tower),
        text_config=tiny_language_config(language, vocab=ROWS),
        image_token_id=image_id,
        image_seq_length=4,
        **changes,
    )
    images = transformers.GotOcr2ImageProcessor(size={"height": SIZE, "width": SIZE}, max_patches=6)
    processor = transformers.InternVLProcessor(
        image_processor=images,
        tokenizer=words,
        video_processor=transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=_template("<IMG_CONTEXT>\n", "<end>"),
    )
    kind = transformers.InternVLForConditionalGeneration
    return write_repository(folder, kind, config, processor, image_id=image_id, seed=seed)


FAMILIES: dict[str, Callable[[Path, str, int, dict[str, Any]], Path]] = {
    "idefics3": _grid("idefics3"),
    "smolvlm": _grid("smolvlm"),
    "llava_next": _newline("llava_next"),
    "llava_onevision": _newline("llava_onevision"),
    "internvl": _internvl,
}
"""How a model of each family is written, by its model type."""
