"""Released vision-language models of Transformers: known by their configuration, taken apart.

A file of `isthmus.released` knows one family, and says what its parts are. Here a model of any
family is read, once, and its parts are handed out: the vision tower with its preprocessing, the
decoder with its head as a causal language model, and the tensors of the connector. They are the
model's own modules, shared and not copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isthmus.config.model import TokensConfig
from isthmus.config.registry import RELEASED
from isthmus.errors import CheckpointError, ConfigError, loading
from isthmus.model.backbones.causal import causal_model
from isthmus.model.backbones.own_form import own_form
from isthmus.model.backbones.rotary import converted
from isthmus.model.backbones.text import no_bar_for_files
from isthmus.model.reading import CAUSAL, Reading


@dataclass(frozen=True)
class Plan:
    """What a released model is made of, as its configuration says before any weight is read.

    Attributes:
        feature_layer: Which layer of the vision tower is read; see `VisionConfig`.
        keep_cls: Whether class tokens stay in front of the patches.
        prefix: How many tokens in front are dropped where they do not stay; None for all that
            stand before the grid of patches.
        connector: Configuration of the connector.
        image_id: Id of the token that stands for an image.
        final_norm: Whether features have gone through the tower's own final norm.
        media: Configurations of media besides images and clips, as in `ModelConfig`.
        preprocess: What the tower takes for its image processor, of the repository's; None for
            that itself.
        before: Ids of tokens that stand before what an image fills.
        after: Ids of tokens that stand behind it.
        images_first: Whether images that head a prompt stand before the token that begins texts.
        heading: Words that stand before every prompt of its chat template.
        processed: The plan with what the repository's processor tells besides; None for nothing.
        deepstack: Whether features of earlier layers stand beside them.
        fusion: Configuration of the fusion; None for tokens in the text and nothing else.
        reading: Who sees what comes later, and where positions begin.
        around: What is written before and behind the token of an image as text, in texts and ids.
        template: The template of its prompts; None for its chat template, or "plain" without one.
    """

    feature_layer: int
    keep_cls: bool
    prefix: int | None
    connector: Any
    image_id: int
    final_norm: bool = False
    media: tuple[Any, ...] = ()
    preprocess: Callable[[Any], Any] | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    images_first: bool = False
    heading: str = ""
    processed: Callable[[Plan, Any], Plan] | None = None
    deepstack: bool = False
    fusion: Any = None
    reading: Reading = CAUSAL
    around: tuple[tuple[str | int, ...], tuple[str | int, ...]] = ((), ())
    template: str | None = None

    def tokens(self, tokenizer: Any) -> TokensConfig:
        """The token of an image, and what stands around it in the words of a tokenizer."""
        before, after = (
            "".join(p if isinstance(p, str) else tokenizer.convert_ids_to_tokens(p) for p in side)
            for side in self.around
        )
        return TokensConfig(
            image_id=self.image_id,
            before=self.before,
            after=self.after,
            images_first=self.images_first,
            text_before=before,
            text_after=after,
        )


@dataclass(frozen=True)
class Modules:
    """The modules of a released model.

    Attributes:
        tower: The vision tower, as `VisionEncoder` takes it.
        decoder: The decoder, without its head.
        head: The head.
        connector: The connector's tensors, by the names that our connector has for them.
        medium: Those of the plan's medium likewise.
        generation_config: How it generates; None for what the whole model says of it.
    """

    tower: nn.Module
    decoder: nn.Module
    head: nn.Module
    connector: Mapping[str, Tensor]
    medium: Mapping[str, Tensor] = field(default_factory=dict)
    generation_config: Any = None


class Family(Protocol):
    """A family of released models; its class is registered in `registry.RELEASED` by model type.

    Attributes:
        architecture: Transformers' class of the whole model.
    """

    architecture: str

    @staticmethod
    def plan(config: Any) -> Plan:
        """What a model of this configuration is made of.

        Raises:
            ConfigError: If it has what our parts lack; the message names it.
        """
        ...

    @staticmethod
    def parts(model: Any) -> Modules:
        """The modules of a model."""
        ...


@dataclass(frozen=True)
class Released:
    """A released model that was read.

    Attributes:
        plan: What it is made of.
        tower: The vision tower.
        language: The decoder with its head, a causal language model of Transformers.
        connector: The connector's tensors by name.
        medium: The medium's tensors by name.
        image_processor: The repository's preprocessing of images, as the tower takes it.
        tokenizer: Its tokenizer, with the repository's chat template.
    """

    plan: Plan
    tower: nn.Module
    language: nn.Module
    connector: Mapping[str, Tensor]
    medium: Mapping[str, Tensor]
    image_processor: Any
    tokenizer: Any


def family_of(place: str) -> type[Family] | None:
    """The family of a repository or folder; None if it is no model of a family that is known.

    Raises:
        ConfigError: If its model type is known and its class is another, as of a repository that
            was not converted to Transformers' form.
    """
    told = told_by(place)
    model_type, classes = told.get("model_type"), told.get("architectures")
    if model_type not in RELEASED.names():
        return None
    family: type[Family] = RELEASED.find(str(model_type))
    if classes and family.architecture not in classes:
        raise ConfigError(
            f'"{place}" is a {classes[0]}: expected {family.architecture}, the class that '
            f'Transformers has for "{model_type}"; take a repository that was converted to it (of '
            "LLaVA, those of llava-hf)"
        )
    return family


def plan_of(name: str) -> Plan | None:
    """The plan of a released model "hf:REPO"; None if the name is of anything else.

    Raises:
        CheckpointError: If its configuration cannot be read.
        ConfigError: As for `Family.plan`.

    Example:
        >>> plan_of("tiny-vit") is None
        True
    """
    scheme, _, place = name.partition(":")
    family = family_of(place) if scheme == "hf" and place else None
    return None if family is None else family.plan(_config_of(family, name, place))


def _config_of(family: type[Family], name: str, place: str) -> Any:
    """The configuration that a family's plan is made of."""
    return family.config(place, told_by(place)) if own_form(family) else config_of(name, place)


def config_of(name: str, place: str, trusted: bool = False) -> Any:
    """The configuration of a repository or folder of Transformers.

    Args:
        name: What it was named as, for messages.
        place: The repository or folder.
        trusted: Whether code that comes with it is run.

    Raises:
        CheckpointError: If it cannot be read.
    """
    from transformers import AutoConfig

    with loading(name, "a folder"):
        return AutoConfig.from_pretrained(place, trust_remote_code=trusted)


def told_by(place: str) -> dict[str, Any]:
    """The entries of a `config.json`; none where it cannot be read, which loading reports.

    In the form of a family of its own, its name stands for the model type that is missing.
    """
    from transformers import PretrainedConfig

    try:
        found, _ = PretrainedConfig.get_config_dict(place)
    except Exception:
        return {}
    told = dict(found)
    if told and "model_type" not in told:
        families = ((name, RELEASED.find(name)) for name in RELEASED.names())
        own = [name for name, family in families if own_form(family) and family.has_form(told)]
        told |= {"model_type": own[0]} if own else {}
    return told


FEWEST = 16
"""A tokenizer with fewer tokens has no vocabulary."""

# --- reading --------------------------------------------------------------------------------------

_Kept = dict[tuple[str, bool], Released]
_kept: ContextVar[tuple[_Kept, torch.dtype] | None] = ContextVar("read together", default=None)


@contextmanager
def read_together(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """While it lasts, a released model that several parts are taken of is read once.

    Args:
        dtype: Precision in which its weights are read.
    """
    token = _kept.set(({}, dtype))
    try:
        yield
    finally:
        _kept.reset(token)


def read(name: str, *, pretrained: bool = True) -> Released:
    """Reads a released model.

    Args:
        name: "hf:REPO", a model of a family that is known.
        pretrained: Whether to fetch weights; without, they are random.

    Raises:
        ConfigError: If it has what our parts lack.
        CheckpointError: If it cannot be read, or lacks some of its weights.

    Example:
        >>> import tempfile
        >>> from isthmus.model.backbones.tiny_llava import write_tiny_llava
        >>> whole = read(f"hf:{write_tiny_llava(tempfile.mkdtemp())}")
        >>> type(whole.tower).__name__, type(whole.language).__name__
        ('CLIPVisionModel', 'LlamaForCausalLM')
    """
    known, dtype = _kept.get() or ({}, torch.float32)
    key = (name, pretrained)
    if key not in known:
        known[key] = _read(name, pretrained, dtype)
    return known[key]


def _read(name: str, pretrained: bool, dtype: torch.dtype) -> Released:
    from transformers import AutoModelForImageTextToText

    place = name.partition(":")[2]
    family = family_of(place)
    if family is None:
        raise ConfigError(f'"{name}" is not a released model of: {", ".join(RELEASED.names())}')
    config = _config_of(family, name, place)
    plan = family.plan(config)
    with loading(name, "a folder with its weights and its processor"), no_bar_for_files(place):
        form = family if own_form(family) else None
        found = _processors(place) if form is None else _parts(form.processor(place, config))
        whole, images, tokenizer, template = found
        if len(tokenizer) < FEWEST:  # Transformers makes an empty one where its files are missing
            raise CheckpointError(
                f'"{name}" has a tokenizer of {len(tokenizer)} tokens: its files, such as '
                "tokenizer.json, are missing; fetch them"
            )
        if plan.processed is not None:
            plan = plan.processed(plan, whole)
        if template:  # which older repositories keep beside the tokenizer's files
            words = "{{ " + json.dumps(plan.heading) + " }}" if plan.heading else ""
            tokenizer.chat_template = words + template
        if form is not None:
            model = converted(form.model(place, config, tokenizer, pretrained), dtype)
        elif pretrained:
            model, report = AutoModelForImageTextToText.from_pretrained(
                place, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
            refuse_missing(name, sorted(report["missing_keys"]))
        else:
            model = converted(AutoModelForImageTextToText.from_config(config), dtype)
        modules = family.parts(model)
        told = modules.generation_config or model.generation_config
        language = causal_model(modules.decoder, modules.head, told)
    return Released(
        plan=plan,
        tower=modules.tower,
        language=language,
        connector=modules.connector,
        medium=modules.medium,
        image_processor=images if plan.preprocess is None else plan.preprocess(images),
        tokenizer=tokenizer,
    )


def _processors(place: str) -> tuple[Any, Any, Any, str | None]:
    """A repository's processor, its image processor, its tokenizer, and its chat template.

    Without a package that it needs for videos there is no processor, but the rest.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

    try:
        whole = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    except ImportError:
        images = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        template = ProcessorMixin.get_processor_dict(place)[0].get("chat_template")
        return None, images, tokenizer, template
    return _parts(whole)


def _parts(whole: Any) -> tuple[Any, Any, Any, str | None]:
    return whole, whole.image_processor, whole.tokenizer, whole.chat_template


def refuse_missing(name: str, missing: list[str]) -> None:
    """Refuses a model that lacks weights.

    Transformers would go on with random weights, and say so in its log alone.

    Raises:
        CheckpointError: If any are missing.
    """
    if missing:
        raise CheckpointError(
            f'"{name}" lacks {len(missing)} of its weights, such as {missing[0]}: a file of it is '
            "missing, or is another model's; fetch it again"
        )
