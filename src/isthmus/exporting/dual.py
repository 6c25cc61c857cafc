"""Dual encoders that came from Transformers, back in their own class with what they learned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import ExportError
from isthmus.exporting.card import dual_card
from isthmus.exporting.check import GONE, PIXELS, TOLERANCE, drawn
from isthmus.exporting.exported import Exported
from isthmus.exporting.folder import appearing, refuse_full_disk, writing
from isthmus.files import write_text
from isthmus.model.backbones.text import no_bar_for_files
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.transformers_model import TransformersImageTower, TransformersTextTower

PROCESSORS = {"clip": "CLIPProcessor", "metaclip_2": "CLIPProcessor", "siglip": "SiglipProcessor"}
TEXTS = ("a photo of a cat", "two dogs", "a very small red square on a white wall")


def export_dual(model: DualEncoder, target: Path) -> Exported:
    """Writes a dual encoder, loads it again and compares scores; see `run.export`.

    Raises:
        ExportError: If it is not of Transformers, or what was written is not the model.
        OutputError: If it cannot be written.
    """
    import transformers

    whole = _refused_others(model)
    image, text = model.image, model.text
    assert isinstance(image, TransformersImageTower)
    assert isinstance(text, TransformersTextTower)
    size = sum(t.numel() * t.element_size() for t in whole.state_dict().values())
    refuse_full_disk(target, size)
    kind: Any = getattr(transformers, PROCESSORS[whole.config.model_type])
    architecture = type(whole).__name__
    with appearing(target) as folder:
        with writing(target), no_bar_for_files(str(folder)):
            whole.save_pretrained(folder)
            kind(image_processor=image.processor, tokenizer=text.tokenizer).save_pretrained(folder)
            image.processor.save_pretrained(folder)
            name = target.absolute().name
            write_text(folder / "README.md", dual_card(model.name, name, architecture))
        difference, pixels = _compare(model, folder)
    return Exported(target, architecture, size, difference, pixels)


def _refused_others(model: DualEncoder) -> Any:
    """The model of Transformers' that both towers are of.

    Raises:
        ExportError: If they are not, or it came without its image processor.
    """
    image, text = model.image, model.text
    if not (
        isinstance(image, TransformersImageTower)
        and isinstance(text, TransformersTextTower)
        and image.model is text.model
    ):
        raise ExportError(
            f'"{model.name}" is a dual encoder that is not of Transformers: its towers have no '
            "class there together; expected one of hf:REPO. Serve it with `isthmus serve "
            "--dual-encoder` instead"
        )
    if not hasattr(image.processor, "image_mean"):
        raise ExportError(
            f'"{model.name}" came without an image processor of Transformers: pass one as '
            "im.load(..., preprocess=PROCESSOR)"
        )
    return image.model


@torch.no_grad()
def _compare(model: DualEncoder, folder: Path) -> tuple[float, float]:
    """Largest differences of two scores, and of two values of a pixel.

    Raises:
        ExportError: If anything differs.
    """
    from transformers import AutoModel, AutoProcessor

    try:
        with no_bar_for_files(str(folder)):
            theirs = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds
        raise ExportError(
            f"Transformers cannot load what was written: {type(error).__name__}: {error}; {GONE}"
        ) from error
    images = [drawn((640, 480), 1), drawn((240, 320), 2)]
    padding: dict[str, Any] = {"padding": True}
    if model.text.fixed_length:
        padding = {"padding": "max_length", "max_length": model.text.context_length}
    inputs = processor(text=list(TEXTS), images=images, return_tensors="pt", **padding)
    ids = model.tokenize(TEXTS)["input_ids"]
    if not torch.equal(inputs["input_ids"], ids):
        raise ExportError(f"the tokenizer makes other ids of {TEXTS[0]!r} than the model; {GONE}")
    own = torch.stack([model.preprocess(image) for image in images])
    pixels = (inputs["pixel_values"] - own).abs()
    if pixels.mean() > PIXELS:
        raise ExportError(f"pixels differ by {float(pixels.mean()):.3g} on average; {GONE}")
    got: Tensor = theirs.eval()(input_ids=ids, pixel_values=own).logits_per_image
    ours = model
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        ours = copy.deepcopy(model).float().cpu()
    expected = ours.logits(ours.encode_pixels(own), ours.encode_tokens({"input_ids": ids}))
    difference = float((got - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ExportError(
            f"scores differ by {difference:.3g}, expected {TOLERANCE:g} at most: what was written "
            f"is not the model; {GONE}"
        )
    return difference, float(pixels.max())
