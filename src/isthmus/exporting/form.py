"""What a class of another library must say of itself, for a model to be written as one."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from isthmus.config.model import ModelConfig
from isthmus.exporting.tokens import WrittenTokens
from isthmus.model.vlm import VisionLanguageModel


class Target(Protocol):
    """What a model can be written as, as far as its configuration tells.

    Attributes:
        ARCHITECTURE: Name of the class in Transformers, or of another program.
    """

    ARCHITECTURE: str

    def why_not(self, config: ModelConfig) -> str:
        """Why a model of a configuration has not this form; empty if it has."""
        ...


class Form(Target, Protocol):
    """A form that a model can be written in. Each is a file here, whose functions these are."""

    def refuse_others(self, model: VisionLanguageModel) -> None:
        """Refuses what only the loaded parts tell.

        Raises:
            ExportError: If a part has no place in the class.
        """
        ...

    def config_of(self, model: VisionLanguageModel, added: WrittenTokens) -> Any:
        """The class's configuration."""
        ...

    def processor_of(self, model: VisionLanguageModel, added: WrittenTokens, template: str) -> Any:
        """Its processor: pixels, the places of an image in the text, the chat template."""
        ...

    def tensors_of(
        self, model: VisionLanguageModel, added: WrittenTokens, *, merge: bool
    ) -> dict[str, Tensor]:
        """Every tensor by its name on the disk; LoRA is merged, or left out."""
        ...

    def moved_pixels(self, model: VisionLanguageModel) -> Tensor:
        """(3, 1, 1) what the model's pixels are more than those of the written processor."""
        ...

    def notes_of(self, model: VisionLanguageModel) -> list[str]:
        """What whoever runs the model elsewhere should know."""
        ...
