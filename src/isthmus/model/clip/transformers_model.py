"""CLIP, MetaCLIP 2, SigLIP and SigLIP 2 of Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from isthmus.errors import ConfigError, loading
from isthmus.model.backbones.text import no_bar_for_files
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.towers import ImageTower, TextTower, Tokens

FAMILIES = {"clip": "softmax", "metaclip_2": "softmax", "siglip": "sigmoid"}
"""Model types that are known to be read right, and their loss."""


class TransformersImageTower(ImageTower):
    """The vision tower of a Transformers dual encoder.

    Args:
        model: The model.
        processor: Its image processor, a function from an image to pixels, or None if only
            pixels will be given.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        size = model.config.vision_config.image_size
        self.image_size = (size, size)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels (3, H, W) by the image processor.

        Raises:
            ConfigError: If the model was handed in without it.
        """
        if self.processor is None:
            raise ConfigError(
                f"{type(self.model).__name__} was handed in without its preprocessing: pass "
                "preprocess=, its image processor"
            )
        if not hasattr(self.processor, "image_mean"):
            own: Tensor = self.processor(image)
            return own
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D)."""
        return _vectors(self.model.get_image_features(pixel_values=pixels.to(self.model.dtype)))


class TransformersTextTower(TextTower):
    """The text tower of a Transformers dual encoder.

    CLIP's attention is causal and a text is read off its end token, so padding is trimmed and no
    mask is needed. SigLIP reads the last place, padding or not, without a mask: texts are padded
    to all of its places, as in training.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.sigmoid = FAMILIES[model.config.model_type] == "sigmoid"
        self.fixed_length = self.sigmoid
        self.context_length = int(model.config.text_config.max_position_embeddings)
        self.pad_id = tokenizer.pad_token_id or 0
        self.pads_left = tokenizer.padding_side == "left" and self.sigmoid
        whole = self.token_ids(["a"])[0]
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        self.prefix = whole.index(bare[0])

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's token ids.

        SigLIP's canonical text has a space for an underscore (big_vision), which Transformers
        deletes, and is in lower case, which a plain Gemma tokenizer (SigLIP 2) leaves to others.
        """
        if self.sigmoid:
            texts = [text.replace("_", " ") for text in texts]
            if not hasattr(self.tokenizer, "do_lower_case"):
                texts = [text.lower() for text in texts]
        rows: list[list[int]] = self.tokenizer(
            list(texts), padding=False, truncation=False, verbose=False
        )["input_ids"]
        return rows

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors (K, D)."""
        return _vectors(self.model.get_text_features(**tokens))

    def token_embedding(self) -> nn.Module:
        """The word embedding."""
        found: nn.Module = self.model.text_model.get_input_embeddings()
        return found


def _vectors(output: Any) -> Tensor:
    """Features, which newer versions wrap."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


def wrap_transformers(
    model: Any, tokenizer: Any, processor: Any = None, name: str = "object"
) -> DualEncoder:
    """A Transformers model as a dual encoder; its parameters are shared, not copied.

    Args:
        model: A CLIP, MetaCLIP 2, SigLIP or SigLIP 2 model.
        tokenizer: Its tokenizer.
        processor: Its image processor.
        name: What it was loaded from.

    Raises:
        ConfigError: If it is of another family, or its tokenizer is missing.
    """
    family = model.config.model_type
    if family == "siglip2":
        raise ConfigError(
            "Siglip2Model reads patches of images of any shape (NaFlex), not pixels: take a "
            "SigLIP 2 of a fixed resolution, such as hf:google/siglip2-base-patch16-224"
        )
    if family not in FAMILIES:
        raise ConfigError(
            f'{type(model).__name__} is of the family "{family}": expected one of '
            f"{', '.join(sorted(FAMILIES))}; other encoders can be joined by DualEncoder.join"
        )
    if tokenizer is None:
        raise ConfigError(
            f"{type(model).__name__} was handed in without its tokenizer: pass tokenizer="
        )
    return DualEncoder(
        TransformersImageTower(model, processor),
        TransformersTextTower(model, tokenizer),
        logit_scale=model.logit_scale,
        logit_bias=getattr(model, "logit_bias", None),
        name=name,
    ).eval()


def load_transformers(place: str, name: str, *, pretrained: bool = True) -> DualEncoder:
    """The dual encoder of a hub repository or a folder.

    Args:
        place: The repository or folder.
        name: What it was loaded from.
        pretrained: Whether to fetch weights; without, they are random.

    Raises:
        ConfigError: If it is of an unknown family.
        CheckpointError: If Transformers cannot load it.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    with loading(name, "a folder or a model with its tokenizer"):
        with no_bar_for_files(place):
            if pretrained:
                model = AutoModel.from_pretrained(place, trust_remote_code=False)
            else:
                model = AutoModel.from_config(
                    AutoConfig.from_pretrained(place, trust_remote_code=False)
                )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        return wrap_transformers(
            model,
            tokenizer,
            AutoImageProcessor.from_pretrained(place, trust_remote_code=False),
            name,
        )
