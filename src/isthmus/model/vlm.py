"""The vision-language model: two frozen parts, a connector, a fusion.

Letters: B rows (prompts) of a batch, L tokens a row, P images in the whole batch, N patches and
M visual tokens an image, D the language model's width, V the rows of its embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.model import ModelConfig
from isthmus.errors import PromptError
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.backbones.hooks import Hooks
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.special_tokens import SpecialTokens
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.backbones.vocabulary_tokens import VocabularyTokens
from isthmus.model.batch import IGNORED, Batch, Output, pad
from isthmus.model.connectors import Connector
from isthmus.model.cross_entropy import token_losses
from isthmus.model.fusion import Fusion, Visual, build_fusion
from isthmus.model.fusion.adapter import Adapted
from isthmus.model.fusion.deepstack import Deepstack, deepstack_of
from isthmus.model.fusion.sight import (
    Sight,
    first_image,
    first_of_each,
    image_of_token,
    samples_with_images,
)
from isthmus.model.layout import Layout, expand, leading
from isthmus.model.media.base import (
    Medium,
    connected,
    fixed_layout,
    layouts_of,
    medium_of,
    stacked,
    together,
    visual_of,
)
from isthmus.model.media.image import ClipMedium, ImageMedium
from isthmus.model.positions import Positions, positions_of
from isthmus.model.summary import Summary, summary_of
from isthmus.prompts.prompt import IMAGE_TAG, Span

MEDIUM_SUFFIX = "_medium"
"""Ends the name of a submodule that is a medium."""


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
        >>> model.fusion.in_text, model.layout.places
        (False, 1)
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
        self.engine = "torch"  # who generates texts, of `machine.ENGINES`
        self.vision = vision
        self.language = language
        self.connector = connector
        own = config.tokens
        self.special_tokens: SpecialTokens = (
            AddedTokens(language)
            if own is None
            else VocabularyTokens(language, own.image_id, own.text_before, own.text_after)
        )
        width = int(cast(Connector, connector).width)
        self.fusion: Fusion = build_fusion(config.fusion, language, width)
        self.media: list[Medium] = [ClipMedium(), ImageMedium()]
        for options in config.media:
            self.add_medium(options.build(self))
        self.saved_media = tuple(medium.name for medium in self.media[: len(config.media)])

    @property
    def device(self) -> torch.device:
        """Where the word embedding is computed, and so the inputs must be."""
        return self.language.device

    def train(self, mode: bool = True) -> VisionLanguageModel:
        """Changes the mode of all but the frozen encoders, which stay in evaluation mode."""
        super().train(mode)
        for medium in self.media:
            encoder = getattr(medium, "encoder", None)
            if isinstance(encoder, nn.Module):
                encoder.eval()
        return self

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The strip: every parameter that is not frozen, by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def summary(self) -> Summary:
        """Parameters frozen and trained part by part, visual tokens and FLOPs per image."""
        return summary_of(self)

    # --- media ------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """Where an image stands in the text; a typical one, if its medium varies."""
        for medium in self.media:
            if medium.varies and medium.name == "image":
                return medium.layout(self, None)
        return fixed_layout(self)

    def add_medium(self, medium: Medium) -> None:
        """Takes another medium, which is asked before the ones that are there.

        A checkpoint holds those of `compose(media=...)`, and nothing of one that was added here.
        """
        if isinstance(medium, nn.Module):
            encoder = getattr(medium, "encoder", None)
            if isinstance(encoder, nn.Module):
                encoder.requires_grad_(False)
            self.add_module(f"{medium.name}{MEDIUM_SUFFIX}", medium)
        self.media.insert(0, medium)

    # --- from prompts to a batch ------------------------------------------------------------

    def encode_text(self, text: str | Sequence[Span], images: int | Sequence[Layout]) -> list[int]:
        """Token ids of a prompt, the layout of an image in place of each `<image>`.

        Args:
            text: The prompt's spans, or its text; one `<image>` per image.
            images: The layouts of its images; or how many there are, of the model's own layout.

        Raises:
            PromptError: If the number of tags and of images differ, the model sees none, or a
                text is no Unicode.
        """
        layouts = [self.layout] * images if isinstance(images, int) else images
        if layouts and self.text_only:
            raise PromptError(
                f"{self.config.language.name} is only a language model and sees no images: "
                "leave them out, or join it to a vision encoder with im.compose"
            )
        ids = self.special_tokens.encode(text)
        tags = ids.count(self.special_tokens.image_id)
        if tags != len(layouts):
            raise PromptError(
                f"the prompt has {tags} {IMAGE_TAG} tags and {len(layouts)} images came with "
                "it; expected one tag for each image"
            )
        ids = expand(ids, layouts, self.special_tokens.image_id)
        at = self.begin_of_text(ids, layouts)
        return [*ids[:at], *self.language.start_ids, *ids[at:]]

    def begin_of_text(self, ids: Sequence[int], layouts: Sequence[Layout]) -> int:
        """Where in the ids of a prompt, its layouts expanded, its tokenizer's first ids belong."""
        own = self.config.tokens
        first = own is not None and own.images_first
        return leading(ids, layouts, self.special_tokens.image_id) if first else 0

    def prepare(
        self,
        prompts: Sequence[str | Sequence[Span]],
        images: Sequence[Sequence[Any]] = (),
        *,
        padding_side: str = "left",
    ) -> Batch:
        """A batch from prompts and their images, on the model's device.

        Args:
            prompts: Spans, or texts, with one `<image>` for each image.
            images: For each prompt its images in order: PIL images, or what
                `vision.preprocess` made of them (3, H, W), or clips (T, 3, H, W), or whatever
                else a medium of the model takes. Empty: none.
            padding_side: "left" for generation, either for anything else.

        Raises:
            PromptError: If tags and images do not match.
        """
        per_prompt = list(images) or [()] * len(prompts)
        if len(per_prompt) != len(prompts):
            raise PromptError(f"{len(prompts)} prompts came with {len(per_prompt)} lists of images")
        opened, layouts, rows = [], [], []
        for text, own in zip(prompts, per_prompt, strict=True):
            inputs = [medium_of(self, source).open(self, source) for source in own]
            here = layouts_of(self, inputs)
            rows.append(self.encode_text(text, here))
            opened += inputs
            layouts += here
        ids, mask = pad(rows, self.pad_id, padding_side)
        fixed = all(layout == self.layout for layout in layouts)
        return Batch(
            input_ids=ids,
            attention_mask=mask,
            pixels=together(opened) if opened else None,
            layouts=None if fixed else tuple(layouts),
        ).to(self.device)

    @property
    def pad_id(self) -> int:
        """A token of the language model's own that stands at padding."""
        tokenizer = self.language.tokenizer
        rows, image_id = self.language.vocab_rows, self.special_tokens.image_id
        for candidate in (tokenizer.pad_token_id, *self.language.end_ids()):
            if candidate is not None and candidate < rows and candidate != image_id:
                return int(candidate)
        return 0

    # --- from a batch to logits -------------------------------------------------------------

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Features (P, N, D_vision) of images, or (P, T, N, D_vision) of clips."""
        medium = ImageMedium() if pixels.ndim == 4 else ClipMedium()
        return medium.features(self, pixels)

    def visual_tokens(self, batch: Batch) -> Visual | None:
        """Visual tokens (P, M, D_visual) of the batch's images; None without images.

        Raises:
            PromptError: If tags and images do not match. More tags than images must never
                become a silent mask.
        """
        tags = int((batch.input_ids == self.special_tokens.image_id).sum())
        source = next(
            (s for s in (batch.visual, batch.features, batch.pixels) if s is not None), None
        )
        count = 0 if source is None else len(source)
        layouts = self._layouts(batch, count)
        if len(layouts) != count or tags != sum(layout.places for layout in layouts):
            places = [layout.places for layout in layouts]
            each = f"{places}" if batch.layouts else f"{self.layout.places}"
            raise PromptError(
                f"the batch has {count} images and {tags} {IMAGE_TAG} tokens; expected "
                f"{each} tokens for each image"
            )
        if source is None or count == 0:
            return None
        if batch.visual is not None:
            visual: Visual = batch.visual
        elif batch.features is not None:
            visual = connected(self, batch.features)
        else:
            visual = stacked(visual_of(self, source))
        for number, (own, layout) in enumerate(zip(visual, layouts, strict=True)):
            if layout.holes and len(own) != layout.holes:
                raise PromptError(
                    f"image {number} became {len(own)} visual tokens, and its layout has "
                    f"{layout.holes} holes: expected the same number"
                )
        return visual

    def _layouts(self, batch: Batch, count: int) -> Sequence[Layout]:
        return [self.layout] * count if batch.layouts is None else batch.layouts

    def positions(self, batch: Batch) -> Positions:
        """Where a batch's tokens stand for the language model."""
        is_image = batch.input_ids == self.special_tokens.image_id
        layouts: Sequence[Layout] = ()
        if self.language.axes > 1:
            count = int(is_image.sum()) // self.layout.places
            layouts = self._layouts(batch, count)
        return positions_of(
            batch.attention_mask,
            is_image,
            layouts,
            axes=self.language.axes,
            samples=batch.positions,
            first=self.language.reading.first,
        )

    def mask(self, batch: Batch) -> Any:
        """A batch's attention mask as its language model reads (see `LanguageModel.mask`)."""
        return self.language.mask(
            batch.attention_mask,
            batch.input_ids == self.special_tokens.image_id,
            samples=batch.positions,
            learned=None if batch.labels is None else batch.labels != IGNORED,
        )

    @contextmanager
    def in_sight(
        self, batch: Batch, *, decoding: bool = False, chosen: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Puts a batch's images in sight of the language model while the context lasts.

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
        sight = may_end = adapted = deepstack = None
        if visual is not None:
            if self.fusion.adapter is not None:
                adapted = self.fusion.adapter.see(is_image, batch.attention_mask, batch.positions)
            may_end = samples_with_images(is_image, batch.positions)
            embeddings = self.fusion.embed(embeddings, is_image, visual)
            deepstack = deepstack_of(self.fusion, is_image, visual)
            if self.fusion.sees != "nothing":
                layouts = self._layouts(batch, len(visual))
                tags = first_of_each(is_image, [layout.places for layout in layouts])
                sight = self.fusion.look(
                    visual,
                    image_of_token(tags, batch.attention_mask, batch.positions),
                    first_image(tags, batch.positions),
                    keep=decoding,
                )
        with self.shown(sight, may_end, chosen, adapted, deepstack):
            yield embeddings

    @contextmanager
    def shown(
        self,
        sight: Sight | None,
        may_end: Tensor | None,
        chosen: Tensor | None = None,
        adapted: Adapted | None = None,
        deepstack: Deepstack | None = None,
    ) -> Iterator[None]:
        """Shows the language model what is in sight while the context lasts.

        Args:
            sight: Who sees which visual tokens through cross-attention; None for nothing.
            may_end: (B,) or (B, L) bool, which rows or tokens have images; None for none.
            chosen: (B, L) bool, the positions that logits are wanted of; None for all.
            adapted: Where the fusion's adapters act; None for nowhere.
            deepstack: What is added behind decoder layers; None for nothing.
        """
        hooks: list[Hooks] = []
        if sight is not None:
            hooks.append(partial(self.fusion.hook, self.language, sight))
        if adapted is not None and self.fusion.adapter is not None:
            hooks.append(partial(self.fusion.adapter.hook, self.language, adapted))
        if deepstack is not None:
            hooks.append(partial(deepstack.hook, self.language))
        with self.special_tokens.used(may_end, chosen), self.language.hooked(*hooks):
            yield

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
        # asked before the images are in sight: it may try the language model out
        own, mask = self.positions(batch).tokens, self.mask(batch)
        samples = batch.positions if mask is batch.attention_mask else None  # or the mask knows
        places = self.language.places(mask, samples, own)
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
