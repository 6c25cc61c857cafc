"""The vision-language model: two frozen parts, a connector, a fusion.

Letters: B rows (prompts) of a batch, L tokens a row, P pictures in the whole batch, N patches and
M visual tokens a picture, D the language model's width, V the rows of its embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.backbones.language import LanguageModel, load_language
from isthmus.backbones.special_tokens import SpecialTokens
from isthmus.backbones.vision import VisionEncoder, load_vision
from isthmus.batch import IGNORED, Batch, Output, pad
from isthmus.config import Inline, ModelConfig
from isthmus.connectors import Connector, build_connector
from isthmus.connectors.linear import Linear
from isthmus.cross_entropy import token_losses
from isthmus.errors import PromptError
from isthmus.fusion import CrossAttentionFusion, InlineFusion, build_fusion, visual_width
from isthmus.fusion.cross_attention import GatedCrossAttentionBlock
from isthmus.fusion.sight import (
    Sight,
    first_of_each,
    first_picture,
    picture_of_token,
    samples_with_pictures,
)
from isthmus.machine import device_for, dtype_for
from isthmus.prompt import END_TAG, IMAGE_TAG, Span
from isthmus.registry import FUSIONS
from isthmus.summary import Part, Summary, count, flops_of


class VisionLanguageModel(nn.Module):
    """A vision encoder and a language model, joined.

    Args:
        vision: The frozen vision encoder.
        language: The language model, frozen or with LoRA.
        connector: Features to visual tokens; anything that fits `connectors.Connector`.
        config: What the model is made of; written into checkpoints.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))
        >>> model.fusion.tokens_in_text
        1
    """

    def __init__(
        self,
        vision: VisionEncoder,
        language: LanguageModel,
        connector: nn.Module,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.text_only = False
        self.vision = vision
        self.language = language
        self.connector = connector
        self.special_tokens = SpecialTokens(language)
        self.fusion = build_fusion(config.fusion, language, connector)

    @property
    def device(self) -> torch.device:
        """Where the trained rows are, and so the inputs must be."""
        return self.special_tokens.input_rows.device

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The strip: every parameter that is not frozen, by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def summary(self) -> Summary:
        """Parameters frozen and trained part by part, visual tokens and FLOPs per picture."""
        height, width = self.vision.image_size
        pixels = torch.zeros(1, 3, height, width, device=self.device)
        pixels = pixels.to(next(self.vision.parameters()).dtype)
        features = self.vision(pixels)
        connected = features.to(next(self.connector.parameters(), features).dtype)
        flops = {
            "vision": flops_of(self.vision.eager, pixels),
            "connector": flops_of(self.connector, connected),
        }
        if isinstance(self.fusion, CrossAttentionFusion):
            with torch.no_grad():
                visual = self.connector(connected)
            flops["fusion"] = sum(
                flops_of(cast(GatedCrossAttentionBlock, block).attention.project_context, visual)
                for block in self.fusion.blocks.values()
            )
        described = {
            "vision": (self.vision, self.config.vision.name),
            "connector": (self.connector, type(self.connector).__name__),
            "fusion": (self.fusion, FUSIONS.name_of(type(self.config.fusion))),
            "special tokens": (self.special_tokens, f"{IMAGE_TAG}, {END_TAG}"),
            "language": (self.language, self.config.language.name),
        }
        parts = tuple(Part(name, what, *count(m)) for name, (m, what) in described.items())
        return Summary(
            parts,
            int(cast(Connector, self.connector).num_tokens),
            self.fusion.tokens_in_text,
            flops,
        )

    # --- from prompts to a batch ------------------------------------------------------------

    def encode_text(self, text: str | Sequence[Span], pictures: int) -> list[int]:
        """Token ids of a prompt, `<image>` repeated as the fusion needs it.

        Args:
            text: The prompt's spans, or its text; one `<image>` per picture.
            pictures: How many pictures come with it.

        Raises:
            PromptError: If the number of tags and of pictures differ, the model sees none, or a
                text is no Unicode.
        """
        if pictures and self.text_only:
            raise PromptError(
                f"{self.config.language.name} is a language model alone and sees no pictures: "
                "leave them out, or join it to a vision encoder with im.compose"
            )
        ids = self.special_tokens.encode(text)
        tags = ids.count(self.special_tokens.image_id)
        if tags != pictures:
            raise PromptError(
                f"the prompt has {tags} {IMAGE_TAG} tags and {pictures} pictures came with it; "
                "expected one tag for each picture"
            )
        repeat = self.fusion.tokens_in_text
        expanded = [
            i for i in ids for _ in range(repeat if i == self.special_tokens.image_id else 1)
        ]
        return [*self.language.start_ids, *expanded]

    def prepare(
        self,
        prompts: Sequence[str | Sequence[Span]],
        pictures: Sequence[Sequence[Image.Image | Tensor]] = (),
        *,
        padding_side: str = "left",
    ) -> Batch:
        """A batch from prompts and their pictures, on the model's device.

        Args:
            prompts: Spans, or texts, with one `<image>` for each picture.
            pictures: For each prompt its pictures in order: PIL pictures, or what
                `vision.preprocess` made of them (3, H, W), or clips (T, 3, H, W). Empty: none.
            padding_side: "left" for generation, either for anything else.

        Raises:
            PromptError: If tags and pictures do not match.
        """
        per_prompt = list(pictures) or [()] * len(prompts)
        if len(per_prompt) != len(prompts):
            raise PromptError(
                f"{len(prompts)} prompts came with {len(per_prompt)} lists of pictures"
            )
        rows = [
            self.encode_text(text, len(own)) for text, own in zip(prompts, per_prompt, strict=True)
        ]
        ids, mask = pad(rows, self.pad_id, padding_side)
        flat = [self._pixels(p) for own in per_prompt for p in own]
        pixels = torch.stack(flat) if flat else None
        return Batch(input_ids=ids, attention_mask=mask, pixels=pixels).to(self.device)

    def _pixels(self, picture: Image.Image | Tensor) -> Tensor:
        return picture if isinstance(picture, Tensor) else self.vision.preprocess(picture)

    @property
    def pad_id(self) -> int:
        """A token of the language model's own that stands at padding."""
        tokenizer = self.language.tokenizer
        for candidate in (tokenizer.pad_token_id, *self.language.end_ids()):
            if candidate is not None and candidate < self.special_tokens.image_id:
                return int(candidate)
        return 0

    # --- from a batch to logits -------------------------------------------------------------

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """Features (P, N, D_vision) of pictures, or (P, T, N, D_vision) of clips."""
        if pixels.ndim == 4:
            return cast(Tensor, self.vision(pixels))
        features: Tensor = self.vision(pixels.flatten(0, 1))
        return features.view(*pixels.shape[:2], *features.shape[1:])

    def visual_tokens(self, batch: Batch) -> Tensor | None:
        """Visual tokens (P, M, D_visual) of the batch's pictures; None without pictures.

        Raises:
            PromptError: If tags and pictures do not match. More tags than pictures must never
                become a silent mask.
        """
        tags = int((batch.input_ids == self.special_tokens.image_id).sum())
        source = next(
            (s for s in (batch.visual, batch.features, batch.pixels) if s is not None), None
        )
        count = 0 if source is None else source.shape[0]
        if tags != count * self.fusion.tokens_in_text:
            raise PromptError(
                f"the batch has {count} pictures and {tags} {IMAGE_TAG} tokens; expected "
                f"{self.fusion.tokens_in_text} tokens for each picture"
            )
        if source is None or count == 0 or source is batch.visual:
            return source if count else None
        features = source if batch.features is not None else self.encode_pictures(source)
        dtype = next(self.connector.parameters(), features).dtype
        return cast(Tensor, self.connector(features.to(dtype)))

    @contextmanager
    def in_sight(
        self, batch: Batch, *, decoding: bool = False, chosen: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Puts a batch's pictures in sight of the language model while the context lasts.

        Outside of it the language model is its bare self, for whoever else holds it.

        Args:
            batch: The prompts.
            decoding: Whether tokens will be decoded after the prompt, so that K and V are kept.
            chosen: (B, L) bool, the positions that logits are wanted of; None for all.

        Yields:
            Input embeddings (B, L, D) for the language model.
        """
        visual = self.visual_tokens(batch)
        is_image = batch.input_ids == self.special_tokens.image_id
        embeddings = self.special_tokens.embed(batch.input_ids)
        sight = may_end = None
        if visual is not None:
            may_end = samples_with_pictures(is_image, batch.positions)
            inline = self.fusion if isinstance(self.fusion, InlineFusion) else self.fusion.inline
            if inline is not None:
                embeddings = inline.embed(embeddings, is_image, visual)
            if isinstance(self.fusion, CrossAttentionFusion):
                tags = first_of_each(is_image, self.fusion.tokens_in_text)
                sight = Sight(
                    visual=visual,
                    prompt=picture_of_token(tags, batch.attention_mask, batch.positions),
                    begin=first_picture(tags, batch.positions),
                    keep=decoding,
                )
        with self.shown(sight, may_end, chosen):
            yield embeddings

    @contextmanager
    def shown(
        self, sight: Sight | None, may_end: Tensor | None, chosen: Tensor | None = None
    ) -> Iterator[None]:
        """Shows the language model what is in sight while the context lasts.

        Args:
            sight: Who sees which visual tokens through cross-attention; None for nothing.
            may_end: (B,) or (B, L) bool, which rows or tokens have pictures; None for none.
            chosen: (B, L) bool, the positions that logits are wanted of; None for all.
        """
        self.special_tokens.may_end, self.special_tokens.chosen = may_end, chosen
        try:
            if isinstance(self.fusion, CrossAttentionFusion):
                self.fusion.show(sight)
            yield
        finally:
            self.special_tokens.may_end = self.special_tokens.chosen = None
            if isinstance(self.fusion, CrossAttentionFusion):
                self.fusion.hide()

    def forward(self, batch: Batch, *, last: int = 0) -> Output:
        """Logits and loss of a batch.

        Args:
            batch: The prompts, with labels if a loss is wanted.
            last: Logits are computed for the last so many positions; 0 means all. With labels
                only the positions before a labelled token have logits.

        Raises:
            ConfigError: If rows hold several samples and the language model cannot keep them apart.
        """
        labels, chosen = batch.labels, None
        if labels is not None:
            chosen = F.pad(labels[:, 1:] != IGNORED, (0, 1))
            last = 0
        # asked before the pictures are in sight: it may try the language model out
        places = self.language.places(batch.attention_mask, batch.positions)
        with self.in_sight(batch, chosen=chosen) as embeddings:
            logits: Tensor = self.language.model(
                inputs_embeds=embeddings, logits_to_keep=last, use_cache=False, **places
            ).logits
        if labels is None or chosen is None:
            return Output(logits)
        after = chosen[:, :-1]
        losses = token_losses(logits.flatten(0, 1), labels[:, 1:][after])
        if batch.weights is None:
            loss = losses.sum() / max(1, len(losses))
        else:
            # no matrix product: autocast would put that into half precision
            loss = (losses * batch.weights[:, 1:][after]).sum()
        return Output(logits, loss, losses.detach())


def compose(
    vision: Any,
    language: Any,
    connector: Any,
    fusion: Any = None,
    *,
    template: str = "plain",
    tokenizer: Any = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
) -> VisionLanguageModel:
    """Joins a vision encoder and a language model.

    Args:
        vision: A name ("timm:...", "hf:...", "open_clip:..."), a `VisionConfig`, or an object.
        language: A name ("hf:..."), a `LanguageConfig`, or a Transformers causal LM.
        connector: A connector's options, for example `Resampler(latents=64)`, or a module of
            your own that fits `connectors.Connector`.
        fusion: `Inline()` (the default) or `CrossAttention(...)`.
        template: How questions become prompts.
        tokenizer: Needed where `language` is an object.
        device: "auto" (where a language model handed in as an object is, otherwise the best there
            is), "cpu", "cuda", "mps" or a `torch.device`.
        dtype: Data type of all weights; None keeps that of the parts, float32 where they are named.
            A strip that is to be trained needs float32; training has a precision of its own.

    Raises:
        ConfigError: If a part is unknown, the parts do not fit, or there is no such device.

    Example:
        >>> import isthmus as im
        >>> im.compose("tiny-vit", "tiny-lm", im.MLP()).connector.num_tokens
        16
    """
    if isinstance(language, nn.Module) and device == "auto":
        device = next(language.parameters()).device
    place = device_for(device)  # said before anything is loaded
    kind = None if dtype is None else dtype_for(dtype, place)
    encoder = load_vision(vision)
    lm = load_language(language, tokenizer=tokenizer)
    options = Inline() if fusion is None else fusion
    width = visual_width(options, lm.width, encoder.shape.width)
    strip = build_connector(connector, encoder.shape, width, lm.input_embedding.weight)
    config = ModelConfig(
        vision=encoder.config,
        language=lm.config,
        connector=None if isinstance(connector, nn.Module) else connector,
        fusion=options,
        template=template,
    )
    model = VisionLanguageModel(encoder, lm, strip, config)
    return model.to(device=place, dtype=kind)


def bare_language_model(language: Any, *, tokenizer: Any = None) -> VisionLanguageModel:
    """A language model alone, for prompts, engine and tasks that need no pictures.

    Args:
        language: As for `compose`.
        tokenizer: Likewise.

    Returns:
        A model that refuses pictures. Its strip is a stand-in that nothing goes through: without
        pictures a model is always its bare language model.

    Example:
        >>> bare_language_model("tiny-lm").text_only
        True
    """
    model = compose("tiny-vit", language, Linear(), template="qa", tokenizer=tokenizer)
    model.text_only = True
    return model.requires_grad_(False)
