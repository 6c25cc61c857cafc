"""`Idefics3ForConditionalGeneration`: a SigLIP behind its final norm, pixel shuffle, a decoder.

Idefics3's processor writes three tokens around each image, by fixed names (Laurençon et al. 2024,
arXiv 2408.12637). So a model is written whose images stand between such tokens: two before an image
(`TokensConfig.before`), of which the first stands behind it again (`after`). They may have other
names in the language model's tokenizer: the names that the processor writes are added to it, with
the same rows. Images are left whole.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from isthmus.config.model import ModelConfig
from isthmus.errors import ExportError
from isthmus.exporting.language import (
    INSTEAD,
    dtype_name,
    language_tensors,
    refuse_other_heads,
    text_config,
)
from isthmus.exporting.tokens import WrittenTokens, pad_left
from isthmus.exporting.towers import tower_of
from isthmus.model.connectors.pixel_shuffle import PixelShuffle
from isthmus.model.vlm import VisionLanguageModel

ARCHITECTURE = "Idefics3ForConditionalGeneration"
BORDER, WHOLE, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
END_OF_TURN = "<end_of_utterance>"
"""What Idefics3's processor writes, and adds to every tokenizer that it is given."""
TOWER = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps"),
)
AROUND = (
    "tokens = {image_id = ..., before = [A, B], after = [A]} in its configuration, A and B two "
    "special tokens of the language model"
)


def why_not(config: ModelConfig) -> str:
    """Why a model of a configuration has no form as Idefics3; empty if it has one."""
    vision, tokens = config.vision, config.tokens
    if vision.name.partition(":")[0] not in ("hf", "object"):
        return (
            f"its vision encoder is {vision.name} and {ARCHITECTURE}, the class for PixelShuffle, "
            f'holds SigLIP alone: expected one of Transformers ("hf:..."); {INSTEAD}'
        )
    if not vision.final_norm or vision.feature_layer != -1 or vision.resize == "pad":
        return (
            f"{ARCHITECTURE} reads its encoder behind the final norm and squeezes images into a "
            f"square: expected final_norm = true, feature_layer = -1 and resize = "
            f'"squash" or "own", got {vision.final_norm}, {vision.feature_layer} and '
            f'"{vision.resize}"; {INSTEAD}'
        )
    before, after = ((), ()) if tokens is None else (tokens.before, tokens.after)
    if len(before) != 2 or before[0] == before[1] or after != before[:1]:
        return (
            "its connector is PixelShuffle, and the processor of Transformers' class with one, "
            "Idefics3, writes three tokens around each image, which the model has never seen: "
            f"expected a model that was trained with {AROUND}; {INSTEAD}"
        )
    return ""


def refuse_others(model: VisionLanguageModel) -> None:
    """Refuses what only the loaded parts tell.

    Raises:
        ExportError: If the tower, its preprocessing, its tokens or the language model has no place
            in Idefics3.
    """
    vision, name = model.vision, model.vision.config.name
    tower = tower_of(vision)
    crops = vision.config.resize == "own" and getattr(tower.processor, "do_center_crop", False)
    if tower.config["model_type"] != "siglip_vision_model" or crops:
        raise ExportError(
            f"{name} is a {type(vision.model).__name__} whose images are "
            f"{'cropped' if crops else 'squeezed'}, and {ARCHITECTURE} holds a SigLIP whose images "
            f"are squeezed into a square: expected one; {INSTEAD}"
        )
    side = tower.config["image_size"] // tower.config["patch_size"]
    if not exact_places(side):
        raise ExportError(
            f"{name} has {side} x {side} patches, of which {ARCHITECTURE} takes some for their "
            f"neighbours, since it rounds their places: expected another number, such as 14, 16, "
            f"24, 27 or 32; {INSTEAD}"
        )
    known = model.language.tokenizer.added_tokens_decoder
    assert model.config.tokens is not None  # `why_not` has seen them
    for own in model.config.tokens.before:
        if own not in known or not known[own].special:
            raise ExportError(
                f"token {own} stands before an image and is no special token of "
                f"{model.config.language.name}, so that texts may have it too: expected {AROUND}"
            )
    refuse_other_heads(model.language, ARCHITECTURE)


def exact_places(side: int) -> bool:
    """Whether Idefics3 gives each of a row of patches a place of its own.

    It finds the place of a patch by its fraction of a row, in fp32.

    Example:
        >>> exact_places(32), exact_places(29)
        (True, False)
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    fractions = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor([side]))
    places = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), boundaries, right=True)
    return torch.equal(places, torch.arange(side))


def add_tokens(model: VisionLanguageModel) -> WrittenTokens:
    """A copy of the tokenizer with the tokens that Idefics3's processor writes.

    Raises:
        ExportError: If it has one of them with another meaning.
    """
    from tokenizers import AddedToken

    own, language = model.config.tokens, model.language
    assert own is not None
    tokenizer = copy.deepcopy(language.tokenizer)
    meant = {BORDER: own.before[0], WHOLE: own.before[1], IMAGE: own.image_id}
    vocabulary = tokenizer.get_vocab()
    for name, token in meant.items():
        if vocabulary.get(name, token) != token:
            raise ExportError(
                f"the tokenizer of {model.config.language.name} has a token {name}, and not token "
                f"{vocabulary[name]} but {token} is what the model was trained with: expected "
                f"{vocabulary[name]}; {INSTEAD}"
            )
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False, special=True) for name in (*meant, END_OF_TURN)],
        special_tokens=True,
    )
    pad_left(tokenizer, model)
    written = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in (*meant, END_OF_TURN)}
    renamed = {meant[n]: written[n] for n in (BORDER, WHOLE) if meant[n] != written[n]}
    if END_OF_TURN not in vocabulary:
        renamed[-1] = written[END_OF_TURN]  # which the model never writes or reads
    return WrittenTokens(
        tokenizer,
        image_id=written[IMAGE],
        end_id=model.special_tokens.end_id,
        shared=language.vocab_rows,
        rows=max(language.vocab_rows, *(i + 1 for i in written.values())),
        tied=language.output_embedding.weight is language.input_embedding.weight,
        renamed=renamed,
    )


def config_of(model: VisionLanguageModel, added: WrittenTokens) -> Any:
    """The `Idefics3Config`."""
    from transformers import Idefics3Config

    tower = tower_of(model.vision).config
    connector = model.config.connector
    assert isinstance(connector, PixelShuffle)
    config = Idefics3Config(
        vision_config={name: tower[name] for name in TOWER} | {"dtype": dtype_name(model)},
        text_config=text_config(model, added),
        image_token_id=added.image_id,
        scale_factor=connector.factor,
        tie_word_embeddings=added.tied,
        pad_token_id=added.tokenizer.pad_token_id,
        dtype=dtype_name(model),
    )
    config.architectures = [ARCHITECTURE]
    return config


def processor_of(model: VisionLanguageModel, added: WrittenTokens, template: str) -> Any:
    """The `Idefics3Processor`, whose images are squeezed into one square."""
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    vision = model.vision
    processor = tower_of(vision).processor
    edge = {"longest_edge": vision.image_size[0]}
    mean, std = (list(values or ()) for values in vision.normalisation)
    resample = getattr(processor, "resample", 3) if vision.config.resize == "own" else 3
    images = Idefics3ImageProcessor(
        do_resize=False,  # first to a longest edge, and to the square behind it
        do_image_splitting=False,
        size=edge,
        max_image_size=edge,
        resample=resample,
        image_mean=mean,
        image_std=std,
    )
    return Idefics3Processor(
        images,
        added.tokenizer,
        image_seq_len=int(model.connector.num_tokens),  # type: ignore[arg-type]
        chat_template=template,
    )


def tensors_of(
    model: VisionLanguageModel, added: WrittenTokens, *, merge: bool
) -> dict[str, Tensor]:
    """Every tensor by its name on the disk; SigLIP's pooling head is left out."""
    tower = tower_of(model.vision).tensors
    tensors = {
        f"model.vision_model.{name}": tensor
        for name, tensor in tower.items()
        if not name.startswith("head.")
    }
    projection: Any = model.connector.projection
    tensors["model.connector.modality_projection.proj.weight"] = projection.weight
    for name, tensor in language_tensors(model, added, merge=merge).items():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            tensor = _renamed_rows(tensor, model, added)
        inner = "" if name.startswith("lm_head.") else "model.text_model."
        tensors[f"{inner}{name}"] = tensor
    return tensors


def _renamed_rows(table: Tensor, model: VisionLanguageModel, added: WrittenTokens) -> Tensor:
    """A table in which tokens under another name have the rows of the model's own.

    The image's token has no row of its own in a head that it lies beyond; it is suppressed.
    """
    table = table.clone()
    image = model.special_tokens.image_id
    rows = {**added.renamed, **({image: added.image_id} if image != added.image_id else {})}
    for own, written in rows.items():
        if 0 <= own < model.language.vocab_rows:
            table[written] = table[own]
    return table


def moved_pixels(model: VisionLanguageModel) -> Tensor:
    """Nothing: they are the same, (3, 1, 1)."""
    return torch.zeros(3, 1, 1)


def notes_of(model: VisionLanguageModel) -> list[str]:
    """What whoever runs the export elsewhere should know."""
    mean, _ = model.vision.normalisation
    if all(float(value) * 255 == round(float(value) * 255) for value in mean or ()):
        return [
            "an image whose pixels are all the mean that is subtracted is taken for padding by "
            "Idefics3's class, and refused"
        ]
    return []
