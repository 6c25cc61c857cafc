"""A released vision-language model that nobody here takes apart: it generates, and no more.

Transformers has a hundred classes of vision-language models. One that is no family of
`isthmus.released` stays its own class behind its own processor: prompts go in as texts and images,
and its `generate` writes. What needs its parts (shared prefixes, continuous batching, training,
LoRA, features, export) is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.config.model import LanguageConfig, ModelConfig, VisionConfig, media_with
from isthmus.errors import CheckpointError, ConfigError, PromptError, loading
from isthmus.machine import check_engine, device_for, dtype_for
from isthmus.media.file_ref import FileRef
from isthmus.media.image import open_image
from isthmus.model.backbones.refusals import CODE, refuse_others, whole_class
from isthmus.model.backbones.released import config_of, refuse_missing
from isthmus.model.backbones.span_tokens import SpanTokenizer
from isthmus.model.backbones.text import no_bar_for_files
from isthmus.model.checkpoint import is_transformers_folder, load_vlm
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Prompt, Span

_log = logging.getLogger(__name__)

CANNOT = (
    "shared prefixes",
    "continuous batching (serve, chat)",
    "training and LoRA",
    "features",
    "export",
)
"""What needs the parts of a model."""
_WORDS_OF_OTHERS = ("system", "user", "assistant")


@dataclass(frozen=True)
class WholeSummary:
    """What a model is that was not taken apart.

    Attributes:
        name: Its name.
        architecture: Its class.
        parameters: How many it has.
        cannot: What cannot be done with it.
    """

    name: str
    architecture: str
    parameters: int
    cannot: tuple[str, ...] = CANNOT

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.name}\n{self.architecture} in whole, {self.parameters:,} parameters: it "
            "generates, and scores closed answers one by one\n"
            f"not with it, since its parts are not known here: {', '.join(self.cannot)}"
        )


class WholeLanguage:
    """What prompts and measures ask of a language model: its tokenizer and its embedding."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def input_embedding(self) -> nn.Embedding:
        """The token embedding."""
        return self.model.get_input_embeddings()

    @property
    def computes_in(self) -> str:
        """The data type that it computes in, by its name."""
        return str(self.input_embedding.weight.dtype).removeprefix("torch.")

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens at its ends."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))


class WholeModel(nn.Module):
    """A vision-language model of Transformers behind its own processor.

    Args:
        model: The model.
        processor: Its processor.
        name: What it was loaded by.

    Attributes:
        config: Its name and its template, "chat" where it has one and else "plain".
        language: Its tokenizer.
        spans: Tokenizes closed answers.
        decodes_apart: Whether an encoder reads the prompt and a decoder of its own writes.
        ends: Ids that end a text.
        limit: Most tokens of a prompt and its continuation.
    """

    text_only = False

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise ConfigError(
                f'"{name}" has the processor {type(processor).__name__}, which has no tokenizer: '
                "expected one for images and texts"
            )
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise CheckpointError(
                f'"{name}" has no vocabulary: its tokenizer\'s files are missing; fetch it again'
            )
        if getattr(processor, "chat_template", None):
            tokenizer.chat_template = processor.chat_template
        self.config = ModelConfig(
            vision=VisionConfig(name=name),
            language=LanguageConfig(name=name),
            connector=None,
            template="chat" if tokenizer.chat_template else "plain",
        )
        self.language = WholeLanguage(model, tokenizer)
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        self.spans = SpanTokenizer(tokenizer, -1, min(self.ends, default=-1))
        self.decodes_apart = bool(model.config.is_encoder_decoder)
        told = model.config.get_text_config()
        self.limit = int(getattr(told, "max_position_embeddings", None) or 10**6)
        self._marker: str | None = None

    @property
    def device(self) -> torch.device:
        """Where its inputs must be."""
        return next(self.model.parameters()).device

    def summary(self) -> WholeSummary:
        """What it is, and what cannot be done with it."""
        count = sum(p.numel() for p in self.model.parameters())
        return WholeSummary(self.config.language.name, type(self.model).__name__, count)

    # --- prompts ----------------------------------------------------------------------------------

    @property
    def marker(self) -> str:
        """What stands for an image in the texts that its processor takes; "" where nothing does.

        A processor has a token for an image, and some put it before the text themselves: whether
        this one does is tried.
        """
        if self._marker is None:
            told = [getattr(p, "image_token", None) for p in (self.processor, self._tokenizer)]
            token = next((str(t) for t in told if t), "")
            self._marker = token if token and not self._puts(token) else ""
        return self._marker

    @property
    def _tokenizer(self) -> Any:
        return self.language.tokenizer

    def _puts(self, token: str) -> bool:
        """Whether the processor puts the token of an image into a text that has none."""
        bare = self._tried("a")
        if bare is None:
            return False
        own = int(self._tokenizer.convert_tokens_to_ids(token))
        return own in bare or self._tried(f"{token}a") is None

    def _tried(self, text: str) -> list[int] | None:
        """Token ids that the processor makes of a text with an image; None if it refuses it."""
        try:
            made = self._process(text, [Image.new("RGB", (64, 64))])
            return [int(i) for i in made["input_ids"][0]]
        except Exception:  # it misses the token, or has one too many, in whatever words
            return None

    def _process(self, text: str, images: Sequence[Image.Image]) -> Mapping[str, Any]:
        several = list(images) if len(images) > 1 else images[0] if images else None
        options = {} if several is None else {"images": several}
        made: Mapping[str, Any] = self.processor(text=text, return_tensors="pt", **options)
        return made

    def written(self, prompt: Prompt) -> str:
        """The text of a prompt as the processor takes it.

        Raises:
            PromptError: If somebody's words hold a special token, which here would have its power,
                or an image stands where the processor puts none.
        """
        special = {*self._tokenizer.all_special_tokens, self.marker} - {""}
        end = self._tokenizer.eos_token or self._tokenizer.sep_token or "\n"
        text = ""
        for span in prompt.spans:
            if span.role in _WORDS_OF_OTHERS:
                self._refuse_special(span, special)
                text += span.text
            else:
                text += span.text.replace(END_TAG, end)
        if not self.marker:
            before = text.rpartition(IMAGE_TAG)[0].replace(IMAGE_TAG, "")
            if before.strip():
                raise PromptError(
                    f"the prompt has an image behind a text, and {type(self.processor).__name__} "
                    "puts images before the text: expected all images first, and no shots with "
                    "images"
                )
        return text.replace(IMAGE_TAG, self.marker)

    def _refuse_special(self, span: Span, special: set[str]) -> None:
        if found := next((token for token in special if token in span.text), None):
            raise PromptError(
                f"the {span.role}'s text has {found!r}, a special token of "
                f"{self.config.language.name}: leave it out"
            )

    def inputs(self, prompt: Prompt) -> dict[str, Any]:
        """What the model's `generate` takes for a prompt, on its device.

        Raises:
            PromptError: If the processor does not take the prompt.
            ImageError: If an image cannot be read.
        """
        images = [self._opened(source) for source in prompt.images]
        text = self.written(prompt)
        try:
            made = dict(self._process(text, images))
        except Exception as error:  # processors have words of their own
            reason = " ".join(str(error).split())[:200]
            raise PromptError(
                f"{type(self.processor).__name__} does not take this prompt with {len(images)} "
                f"images: {type(error).__name__}: {reason}; try one image and no shots"
            ) from error
        kept = {name: value for name, value in made.items() if self._takes(name)}
        if not self.decodes_apart:
            kept = self._without_end(kept)
        kind = next(self.model.parameters()).dtype
        return {name: _placed(value, self.device, kind) for name, value in kept.items()}

    def _opened(self, source: Any) -> Image.Image:
        if isinstance(source, (tuple, list, Tensor)) or (
            isinstance(source, FileRef) and source.kind != "image"
        ):
            raise PromptError(
                f"{self.config.language.name} takes only images: expected files or PIL images"
            )
        return open_image(source.read() if isinstance(source, FileRef) else source)

    def _takes(self, name: str) -> bool:
        from inspect import signature

        own = (self.model.forward, self.model.generate, self.model.prepare_inputs_for_generation)
        return name != "labels" and any(name in signature(f).parameters for f in own)

    def _without_end(self, made: dict[str, Any]) -> dict[str, Any]:
        """Inputs without what the tokenizer puts behind a text, which would be its end."""
        bare, whole = self.language.encode("a"), list(self._tokenizer.encode("a"))
        behind = next(
            (whole[i + len(bare) :] for i in range(len(whole)) if whole[i:][: len(bare)] == bare),
            [],
        )
        ids = made["input_ids"]
        if not behind or ids[0, -len(behind) :].tolist() != behind:
            return made
        length = ids.shape[1]
        return {
            name: value[:, : -len(behind)]
            if isinstance(value, Tensor)
            and (value.ndim == 2 or name.endswith("_mask"))
            and value.shape[1] == length
            else value
            for name, value in made.items()
        }


def _placed(value: Any, device: torch.device, kind: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, kind if value.is_floating_point() else None)
    if isinstance(value, (list, tuple)):
        return [_placed(member, device, kind) for member in value]
    return value


# --- loading --------------------------------------------------------------------------------------


def load_answering(
    source: Any,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    image_options: Mapping[str, Any] | None = None,
    device_map: Any = None,
    engine: str = "torch",
    **parts: Any,
) -> VisionLanguageModel | WholeModel:
    """Loads a model that answers questions: one of ours, or a released one in whole.

    Args:
        source: As for `load_vlm`; or a vision-language model of any class of Transformers, as
            "hf:REPO" or its folder. "hf+code:REPO" runs the code that comes with it.
        device: As for `load_vlm`.
        dtype: As for `load_vlm`.
        image_options: As for `load_vlm`; a model in whole has none.
        device_map: As for `load_vlm`; a model in whole is on one device.
        engine: As for `load_vlm`; a model in whole is run by its own class.
        **parts: As for `load_vlm`.

    Raises:
        ConfigError: As for `load_vlm`.
        CheckpointError: As for `load_vlm`.

    Example:
        >>> load_answering("tiny").text_only
        False
    """
    name = str(source)
    scheme, _, place = name.partition(":")
    if scheme not in ("hf", CODE):
        place = name if is_transformers_folder(name) else ""
    trusted = scheme == CODE
    if not place or parts or not (trusted or whole_class(place)):
        options: dict[str, Any] = {"image_options": image_options, "device_map": device_map}
        return load_vlm(source, device=device, dtype=dtype, engine=engine, **options, **parts)
    check_engine(engine)
    if engine != "torch":
        _log.warning("engine %s: %s is a model in whole, so PyTorch decodes", engine, name)
    media_with((), image_options or {})
    if device_map is not None:
        raise ConfigError(
            f'device_map: "{name}" is a vision-language model in whole, which is on one device: '
            "expected a language model alone, or a model that im.compose joined"
        )
    where = device_for(device)
    return _read(name, place, dtype_for(dtype, where), trusted).to(device=where)


def _read(name: str, place: str, kind: torch.dtype, trusted: bool) -> WholeModel:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    if not trusted:
        refuse_others(f"hf:{place}")
    config = config_of(name, place, trusted)
    own = getattr(config, "auto_map", None) or {}
    auto: Any = AutoModelForImageTextToText
    if trusted and auto.__name__ not in own and AutoModelForCausalLM.__name__ in own:
        auto = AutoModelForCausalLM
    with loading(name, "a folder with its weights and its processor"), no_bar_for_files(place):
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=trusted)
        model, report = auto.from_pretrained(
            place, dtype=kind, output_loading_info=True, trust_remote_code=trusted
        )
        refuse_missing(name, sorted(report["missing_keys"]))
    return WholeModel(model, processor, name)


def refuse_whole(model: Any, what: str) -> None:
    """Refuses a model that was not taken apart, where its parts are needed.

    Args:
        model: Any model.
        what: What needs them, for the message.

    Raises:
        ConfigError: If it is one.
    """
    if isinstance(model, WholeModel):
        raise ConfigError(
            f'"{model.config.language.name}" is a {type(model.model).__name__} in whole, which '
            f"only generates and scores closed answers: {what} needs a model whose parts are "
            "known here"
        )
