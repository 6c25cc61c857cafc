"""The CLIP side: vectors of texts and images, and labels of images.

One thread computes, so that requests take turns and the event loop stays free.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from isthmus.classification.templates import SLOT, checked_labels, prompts_of, template_sets
from isthmus.classification.zero_shot import NONE, ZeroShotClassifier
from isthmus.errors import InputError
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.serving.media import ImageReader
from isthmus.serving.refusals import Refusal
from isthmus.serving.schemas import ClassifyRequest, EmbeddingRequest
from isthmus.serving.settings import ServerSettings

_KEPT = 16
_BATCH = 32
_T = TypeVar("_T")


class DualService:
    """Answers `/v1/embeddings` and `/v1/classify`.

    Args:
        model: The dual encoder.
        reader: Reads images.
        settings: Limits and the name.
    """

    def __init__(self, model: DualEncoder, reader: ImageReader, settings: ServerSettings) -> None:
        self.model = model.eval()
        self.reader = reader
        self.settings = settings
        self._worker = ThreadPoolExecutor(1, "isthmus-dual")
        self._kept: OrderedDict[str, ZeroShotClassifier] = OrderedDict()

    async def _do(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def close(self) -> None:
        """Lets the thread go."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str | None) -> None:
        """Refuses another model's name.

        Raises:
            Refusal: 404.
        """
        if name not in (None, self.settings.dual_encoder_name):
            raise Refusal(
                404,
                f'there is no such model here: expected "{self.settings.dual_encoder_name}"',
                "model_not_found",
                "model",
            )

    # --- Vectors ----------------------------------------------------------------------------

    async def embed(self, asked: EmbeddingRequest) -> dict[str, Any]:
        """The vectors of texts and images, in their order, of length 1.

        Raises:
            Refusal, PromptError: If one cannot be read, or is longer than the context.
        """
        self.check_model(asked.model)
        if asked.dimensions is not None:
            raise Refusal(
                400,
                "the model's vectors have one width: leave dimensions out",
                "unsupported_parameter",
                "dimensions",
            )
        given = [asked.input] if isinstance(asked.input, str) else asked.input
        shown = [i for i, one in enumerate(given) if one[:11].lower() == "data:image/"]
        places = [(f"input.{i}", given[i]) for i in shown]
        pixels = await self.reader.read(places, self.model.preprocess)
        images = dict(zip(shown, pixels, strict=True))
        texts = [one for i, one in enumerate(given) if i not in images]
        vectors, tokens = await self._do(lambda: self._vectors(list(images.values()), texts))
        of_images, of_texts = iter(vectors[: len(images)]), iter(vectors[len(images) :])
        data = []
        for i in range(len(given)):
            vector = next(of_images if i in images else of_texts)
            told: Any = vector.tolist()
            if asked.encoding_format == "base64":
                raw = vector.numpy().astype("<f4").tobytes()
                told = base64.b64encode(raw).decode()
            data.append({"object": "embedding", "index": i, "embedding": told})
        return {
            "object": "list",
            "data": data,
            "model": self.settings.dual_encoder_name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    @torch.inference_mode()
    def _vectors(self, pixels: Sequence[Tensor], texts: Sequence[str]) -> tuple[Tensor, int]:
        found = []
        if pixels:
            found.append(self._features(pixels))
        tokens = 0
        if texts:
            rows = self.model.rows(texts)
            tokens = sum(map(len, rows))
            found.append(self.model.encode_rows(rows).float().cpu())
        return torch.cat(found), tokens

    @torch.inference_mode()
    def _features(self, pixels: Sequence[Tensor]) -> Tensor:
        batches = [pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH)]
        return torch.cat(
            [self.model.encode_pixels(torch.stack(list(b))).float().cpu() for b in batches]
        )

    # --- Labels -----------------------------------------------------------------------------

    async def classify(self, asked: ClassifyRequest) -> dict[str, Any]:
        """The label of each image, or its labels, with every label's probability.

        Raises:
            Refusal, InputError: If labels, templates or an image cannot be used.
        """
        self.check_model(asked.model)
        labels = self._checked(asked)
        places = [(f"images.{i}", url) for i, url in enumerate(asked.images)]
        pixels = await self.reader.read(places, self.model.preprocess)
        return await self._do(lambda: self._labels(asked, labels, pixels))

    def _checked(self, asked: ClassifyRequest) -> list[str]:
        """The labels, if they and the templates are fit for use."""
        templates = asked.templates
        if (
            isinstance(templates, str)
            and SLOT not in templates
            and templates not in template_sets()
        ):
            # The library would read a file of that name; a client may not make it
            raise Refusal(
                400,
                f"unknown templates: expected one of {', '.join(sorted(template_sets()))}, a "
                "template with {}, a list of them, or descriptions by label",
                "invalid_value",
                "templates",
            )
        each = 1
        if isinstance(templates, list):
            each = len(templates)
        elif isinstance(templates, dict):
            each = max(map(len, templates.values()), default=0)
        elif templates in template_sets():
            each = len(template_sets()[templates]["templates"])
        if len(asked.labels) * each > self.settings.max_prompts:
            raise Refusal(
                400,
                f"{len(asked.labels)} labels in {each} templates: expected at most "
                f"{self.settings.max_prompts} prompts",
                "too_many_labels",
                "labels",
            )
        try:
            labels = checked_labels(asked.labels)
        except InputError as error:
            raise Refusal(400, str(error), "invalid_value", "labels") from None
        try:
            prompts_of(labels, templates)
        except InputError as error:
            raise Refusal(400, str(error), "invalid_value", "templates") from None
        return labels

    def _classifier(self, asked: ClassifyRequest, labels: list[str]) -> ZeroShotClassifier:
        """The classifier of these labels; the last few are kept, none on the disk."""
        key = json.dumps([labels, asked.templates, asked.multi_label])
        if key not in self._kept:
            made = ZeroShotClassifier(
                self.model, labels, asked.templates, multi_label=asked.multi_label, cache=False
            )
            _ = made.weights_  # a prompt that is too long is not kept
            self._kept[key] = made
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @torch.inference_mode()
    def _labels(
        self, asked: ClassifyRequest, labels: list[str], pixels: Sequence[Tensor]
    ) -> dict[str, Any]:
        classifier = self._classifier(asked, labels)
        classifier.threshold = asked.threshold
        features = self._features(pixels)
        ranked = classifier.top(features, asked.top or len(labels))
        found = classifier.predict(features)
        data: list[dict[str, Any]] = []
        for i, scores in enumerate(ranked):
            told: dict[str, Any] = {"object": "classification", "index": i}
            if asked.multi_label:
                held = [label for label, holds in zip(labels, found[i], strict=True) if holds]
                told["labels"] = held or [NONE]
            else:
                told["label"] = str(found[i])
            told["scores"] = [{"label": name, "probability": p} for name, p in scores]
            data.append(told)
        return {"object": "list", "data": data, "model": self.settings.dual_encoder_name}
