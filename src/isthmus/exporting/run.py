"""`export`: a model written as a folder that another library loads with its own classes."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from isthmus.config.file import model_from_mapping
from isthmus.config.model import ModelConfig
from isthmus.errors import ConfigError, ExportError, OutputError, suggestion
from isthmus.exporting import fast_vlm, llava
from isthmus.exporting.card import card
from isthmus.exporting.check import compare
from isthmus.exporting.form import Form
from isthmus.exporting.jinja import jinja_of
from isthmus.exporting.language import INSTEAD
from isthmus.exporting.lora import ADAPTER, WAYS, refuse_way, write_adapter
from isthmus.exporting.tokens import WrittenTokens, add_tokens
from isthmus.files import sync, write_text
from isthmus.model.checkpoint import describe, load_vlm, locate
from isthmus.model.fusion.inline import Inline
from isthmus.model.saving import kind_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import END_TAG, Span
from isthmus.prompts.templates import template_named

TARGETS = ("transformers",)
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Exported:
    """A model that was written and found to be the same.

    Attributes:
        folder: Where it is.
        architecture: Its class in the other library.
        bytes: Size of its weights.
        difference: Largest difference of two logits, in fp32.
        pixels: Largest difference of two values of a pixel; 0 where both resample alike.
        notes: What whoever runs it should know.
    """

    folder: Path
    architecture: str
    bytes: int
    difference: float
    pixels: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def export(
    model: VisionLanguageModel | str | Path,
    folder: str | Path,
    *,
    to: Literal["transformers"] = "transformers",
    lora: Literal["merge", "peft"] = "merge",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
) -> Exported:
    """Writes a model as a folder that another library loads with its own classes.

    A CLIP or SigLIP of Transformers, `MLP(depth=2)` and a language model, joined by `Inline()`,
    become a `LlavaForConditionalGeneration` with its processor, chat template and model card; with
    a convolutional network of timm, a `FastVlmForConditionalGeneration`. What was written is
    loaded again and compared before it gets its name.

    Args:
        model: The model, or its name or folder.
        folder: Where to; it must not exist, or be empty.
        to: The library, "transformers".
        lora: "merge" adds LoRA to the weights that it adapts; "peft" writes it as a folder of
            PEFT's inside of the folder, "adapter".
        device: Where a model that is named is loaded.
        dtype: Data type of its weights, which is that of the files.

    Returns:
        What was written, and how far its logits are from the model's.

    Raises:
        ConfigError: If there is no such library, or no such way to write LoRA.
        OutputError: If the folder holds something or cannot be written, or the disk is full.
        CheckpointError: If there is no such model.
        ExportError: If the other library has no class for such a model, or what was written is not
            the model; nothing of it is left then.

    Example:
        >>> import isthmus as im
        >>> im.export(im.compose("tiny-vit", "tiny-lm", im.Linear()), "out")
        Traceback (most recent call last):
        ...
        isthmus.errors.ExportError: the model cannot be exported: its connector is Linear, ...
    """
    if to not in TARGETS:
        raise ConfigError(f'unknown library to export to, "{to}": {suggestion(to, TARGETS)}')
    if lora not in WAYS:
        raise ConfigError(f'unknown way to export LoRA, "{lora}": {suggestion(lora, WAYS)}')
    target = _free(Path(folder))
    if not isinstance(model, VisionLanguageModel):
        model = _load(model, device, dtype)
    if model.text_only:
        raise _language_alone(model.config.language.name)
    refuse_unknown(model.config, "the model")
    form = form_of(model.config)
    form.refuse_others(model)
    refuse_way(model, lora)
    added = add_tokens(model)
    with torch.no_grad():
        made = form.tensors_of(model, added, merge=lora == "merge")
        tensors = {name: tensor.detach().contiguous() for name, tensor in made.items()}
        del made
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    _refuse_full_disk(target, size)
    notes = tuple(form.notes_of(model))
    written = _beside(target)
    try:
        _write(form, model, written, added, tensors, target.name, notes)
        del tensors
        adapter = written / ADAPTER if lora == "peft" else None
        if adapter is not None:
            _write_adapter(model, adapter, target)
        found = compare(model, written, added, form.moved_pixels(model), adapter)
        _rename(written, target)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return Exported(target, form.ARCHITECTURE, size, found.logits, found.pixels, notes)


def form_of(config: ModelConfig) -> Form:
    """The form that a model is written in, if it can be written at all."""
    scheme = config.vision.name.partition(":")[0]
    return fast_vlm if scheme in fast_vlm.SCHEMES else llava


def refuse_unknown(config: ModelConfig, name: str) -> None:
    """Refuses a model that the library has no class for, as far as its configuration tells.

    Args:
        config: What it is made of.
        name: What to call it.

    Raises:
        ExportError: If there is none; the message says why, and what can be done instead.
    """
    fusion, form = config.fusion, form_of(config)
    why = ""
    if not isinstance(fusion, Inline):
        why = (
            f"its fusion is {type(fusion).__name__}, and Transformers, vLLM and llama.cpp have no "
            f"class with such layers: expected Inline(); {INSTEAD}"
        )
    elif fusion.adapter is not None:
        why = (
            "its fusion has adapters that act in sight of images, and no class of Transformers has "
            f"any: expected Inline() without an adapter; {INSTEAD}"
        )
    elif config.media:
        kinds = ", ".join(type(medium).__name__ for medium in config.media)
        why = (
            f"it takes media besides images ({kinds}), and {form.ARCHITECTURE} takes images "
            f"alone: expected none; {INSTEAD}"
        )
    why = why or form.why_not(config)
    if why:
        raise ExportError(f"{name} cannot be exported: {why}")


def _load(
    source: str | Path, device: str | torch.device, dtype: str | torch.dtype | None
) -> VisionLanguageModel:
    """A model by its name, refused before its parts are loaded where that can be told."""
    name = f'"{source}"'
    if kind_of(source) != "vlm":
        raise ExportError(
            f"{name} is a dual encoder: expected a vision-language model. One that came from "
            "Transformers or open_clip is there in its own form already"
        )
    if str(source).startswith(("hf:", "asset:")):
        raise _language_alone(str(source))
    values = describe(place := locate(source), "vlm")["config"]
    own = values["connector"].get("type") == "own"
    shown = {**values, "connector": {"type": "linear"}} if own else values
    config = model_from_mapping(shown, untrusted=place)
    refuse_unknown(replace(config, connector=None) if own else config, name)
    return load_vlm(source, device=device, dtype=dtype)


def _language_alone(name: str) -> ExportError:
    return ExportError(
        f'"{name}" is a language model alone, which Transformers loads from where it is: expected '
        "a vision-language model, as `isthmus train` writes one"
    )


def _free(target: Path) -> Path:
    """The folder, if nothing stands there.

    Raises:
        OutputError: If something does.
    """
    if target.is_dir() and any(target.iterdir()):
        raise OutputError(
            f"{target} holds something already: nothing was written; name a new or empty folder"
        )
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file: name a new or empty folder")
    return target


def _refuse_full_disk(target: Path, size: int) -> None:
    """Refuses a disk without room for so many bytes.

    Raises:
        OutputError: If there is not enough.
    """
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size + (16 << 20):  # tokenizer and configurations
        raise OutputError(
            f"{target} needs {size / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free: make "
            "room, name a folder on another disk, or take --dtype bfloat16"
        )


def _beside(target: Path) -> Path:
    """A new folder beside another, on the same disk."""
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}.")
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}; name another folder") from error
    made = Path(name)
    made.chmod(0o755)  # temporary folders are private; an exported model is not
    return made


def _rename(written: Path, target: Path) -> None:
    """Gives a folder its name, once all of it is on the disk."""
    try:
        for path in written.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # some writers make files private
                sync(path)
        if target.exists():
            target.rmdir()
        written.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}; name another folder") from error


def _write(
    form: Form,
    model: VisionLanguageModel,
    folder: Path,
    added: WrittenTokens,
    tensors: Mapping[str, Tensor],
    name: str,
    notes: tuple[str, ...],
) -> None:
    """Writes everything of a model into a folder.

    Raises:
        OutputError: If it cannot be written.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors import SafetensorError

    config = form.config_of(model, added)
    template = template_named(model.config.template, model.language.tokenizer)
    processor = form.processor_of(model, added, jinja_of(template))
    try:
        config.save_pretrained(folder)
        generation_config(model, added).save_pretrained(folder)
        processor.save_pretrained(folder)
        # runtimes that know no processor_config.json read the image processor's own
        processor.image_processor.save_pretrained(folder)
        save_torch_state_dict(dict(tensors), folder, metadata={"format": "pt"})
        write_text(folder / "README.md", card(model.config, name, form.ARCHITECTURE, notes))
    except (OSError, SafetensorError) as error:
        raise _unwritten(folder.parent / name, error) from error


def _write_adapter(model: VisionLanguageModel, folder: Path, target: Path) -> None:
    """Writes a model's LoRA.

    Raises:
        OutputError: If it cannot be written.
    """
    from safetensors import SafetensorError

    try:
        write_adapter(model, folder, target.name)
    except (OSError, SafetensorError) as error:
        raise _unwritten(target, error) from error


def _unwritten(target: Path, error: Exception) -> OutputError:
    return OutputError(
        f"cannot write {target}: {error}; nothing was kept. Free some space or name another folder"
    )


def generation_config(model: VisionLanguageModel, added: WrittenTokens) -> Any:
    """The language model's, greedy as `ask`, ending where an answer of the model ends."""
    config = copy.deepcopy(model.language.model.generation_config)
    for name in SAMPLING:
        if hasattr(config, name):
            setattr(config, name, None)
    config.do_sample = False
    config._from_model_config = False  # or Transformers would make another of config.json
    config.eos_token_id = list(dict.fromkeys([*model.language.end_ids(), *_ends(model, added)]))
    config.pad_token_id = added.tokenizer.pad_token_id
    config.suppress_tokens = [added.image_id]
    return config


def _ends(model: VisionLanguageModel, added: WrittenTokens) -> list[int]:
    """The end of a chunk, and how the template ends an answer where that is one token."""
    template: Any = template_named(model.config.template, model.language.tokenizer)
    end = getattr(template, "end", "") or END_TAG
    ids = [] if end == END_TAG else model.special_tokens.encode([Span(end, "end")])
    return [added.end_id, *(ids if len(ids) == 1 else [])]
