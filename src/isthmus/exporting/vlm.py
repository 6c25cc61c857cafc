"""Vision-language models: refused, or written in a form of another library and compared."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from isthmus.config.model import ModelConfig
from isthmus.errors import ExportError
from isthmus.exporting import fast_vlm, idefics3, llava
from isthmus.exporting.card import card
from isthmus.exporting.check import compare
from isthmus.exporting.exported import Exported
from isthmus.exporting.folder import appearing, refuse_full_disk, writing
from isthmus.exporting.form import Form, Target
from isthmus.exporting.jinja import jinja_of
from isthmus.exporting.language import INSTEAD
from isthmus.exporting.lora import ADAPTER, refuse_way, write_adapter
from isthmus.exporting.tokens import WrittenTokens, add_tokens
from isthmus.files import write_text
from isthmus.model.connectors.pixel_shuffle import PixelShuffle
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import END_TAG, Span
from isthmus.prompts.templates import template_named

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def export_vlm(model: VisionLanguageModel, target: Path, lora: str) -> Exported:
    """Writes a model, loads it again and compares; see `run.export`."""
    if model.text_only:
        raise language_alone(model.config.language.name)
    refuse_unknown(model.config, "the model")
    form = form_of(model.config)
    form.refuse_others(model)
    refuse_way(model, lora)
    added = idefics3.add_tokens(model) if form is idefics3 else add_tokens(model)
    notes = tuple(form.notes_of(model))
    mode = model.training
    with appearing(target) as folder:
        try:
            size = _write(form, model.eval(), folder, added, target, notes, lora)
            adapter = folder / ADAPTER if lora == "peft" else None
            found = compare(model, folder, added, form.moved_pixels(model), adapter)
        finally:
            model.train(mode)
    return Exported(target, form.ARCHITECTURE, size, found.logits, found.pixels, notes)


def form_of(config: ModelConfig) -> Form:
    """The form that a model is written in, if it can be written at all."""
    if isinstance(config.connector, PixelShuffle):
        return idefics3
    scheme = config.vision.name.partition(":")[0]
    return fast_vlm if scheme in fast_vlm.SCHEMES else llava


def refuse_unknown(config: ModelConfig, name: str, target: Target | None = None) -> None:
    """Refuses a model that the library has no class for, as far as its configuration tells.

    Args:
        config: What it is made of.
        name: What to call it.
        target: What it is to become; None is a class of Transformers.

    Raises:
        ExportError: If there is none; the message says why, and what can be done instead.
    """
    fusion, form = config.fusion, target or form_of(config)
    why = ""
    # A fusion of the user's own may not say
    if added := getattr(fusion, "added", f"whatever {type(fusion).__name__} does"):
        why = (
            f"its fusion adds {added} to the language model, and no class of Transformers, vLLM or "
            f"llama.cpp has that: expected Inline() without an adapter; {INSTEAD}"
        )
    elif config.media:
        kinds = ", ".join(type(medium).__name__ for medium in config.media)
        why = (
            f"it takes media besides images ({kinds}), and {form.ARCHITECTURE} takes images "
            f"alone: expected none; {INSTEAD}"
        )
    elif (own := config.tokens) is not None and (
        own.images_first or (form is not idefics3 and (own.before or own.after))
    ):
        why = (
            f"it has tokens around its images, or images before the first token of a text, which "
            f"{form.ARCHITECTURE} does not write: expected an image's own tokens alone; {INSTEAD}"
        )
    why = why or form.why_not(config)
    if why:
        raise ExportError(f"{name} cannot be exported: {why}")


def language_alone(name: str) -> ExportError:
    """What a language model alone is refused with."""
    return ExportError(
        f'"{name}" is a language model alone, which Transformers loads from where it is: expected '
        "a vision-language model, as `isthmus train` writes one"
    )


def _write(
    form: Form,
    model: VisionLanguageModel,
    folder: Path,
    added: WrittenTokens,
    target: Path,
    notes: tuple[str, ...],
    lora: str,
) -> int:
    """Writes everything of a model into a folder; bytes of its weights.

    Raises:
        OutputError: If it cannot be written.
    """
    from huggingface_hub import save_torch_state_dict

    with torch.no_grad():
        made = form.tensors_of(model, added, merge=lora == "merge")
        tensors = {name: _alone(tensor) for name, tensor in made.items()}
        del made
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    refuse_full_disk(target, size)
    config = form.config_of(model, added)
    template = template_named(model.config.template, model.language.tokenizer)
    program = jinja_of(template, image=added.image, end=added.end)
    processor = form.processor_of(model, added, program)
    name = target.absolute().name
    with writing(target):
        config.save_pretrained(folder)
        generation_config(model, added).save_pretrained(folder)
        processor.save_pretrained(folder)
        # runtimes that know no processor_config.json read the image processor's own
        processor.image_processor.save_pretrained(folder)
        save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
        if lora == "peft":
            write_adapter(model, folder / ADAPTER, name)
        write_text(folder / "README.md", card(model.config, name, form.ARCHITECTURE, notes))
    return size


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is no piece of another, as files need them."""
    found = tensor.detach().contiguous()
    size = found.numel() * found.element_size()
    return found if found.untyped_storage().nbytes() == size else found.clone()


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
    config.suppress_tokens = [added.image_id, *added.renamed.values()]
    return config


def _ends(model: VisionLanguageModel, added: WrittenTokens) -> list[int]:
    """The end of a chunk, and how the template ends an answer where that is one token."""
    template: Any = template_named(model.config.template, model.language.tokenizer)
    end = getattr(template, "end", "") or END_TAG
    # LLaVA's chat template writes a space behind an answer, which ends none
    told = end != END_TAG and end.strip()
    ids = model.special_tokens.encode([Span(end, "end")]) if told else []
    return [added.end_id, *(ids if len(ids) == 1 else [])]
