"""What an encoder's own classifier sees, said in words, beside what a head has learned.

A classifier trained on photographs knows photographs better than a head that was fitted to other
images. Its classes have names, so its opinion can be given in the space of texts: the
probabilities of its classes mix the vectors of their names (ConSE, "convex combination of semantic
embeddings": Norouzi et al. 2014, arXiv 1312.5650, section 3.2).

Letters: B images, C classes, D width of the head's vectors, E width of the names' vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.model.trust import trust


@dataclass(frozen=True, kw_only=True)
class ClassMixtureConfig:
    """A mixture's form.

    Attributes:
        width: Width E of the classes' vectors.
        temperature: Divides the classifier's scores; above 1, less likely classes have a say.
        radius: Length of a head's vector at which head and classifier are trusted alike.

    Raises:
        ConfigError: If a number is not more than 0.
    """

    width: int
    temperature: float = 1.0
    radius: float = 1.0

    def __post_init__(self) -> None:
        for name in ("width", "temperature", "radius"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"got {name} {getattr(self, name)}, expected more than 0")


class ClassMixture(nn.Module):
    """Puts the mixture of the classes' vectors beside a head's vector v.

        [trust v / |v|,  (1 - trust) softmax(scores / temperature) vectors,  (1 - trust) v / |v|]

    with the trust of `isthmus.model.trust`: v is whitened by the images that the head was fitted
    to, and for images that are foreign to it the classifier speaks. So it is made for a head that
    was solved for, in units of the radius; one that is new has vectors of any length.

    Texts have nothing in the last part, so that a head that is not trusted has no say in what an
    image is called; but images are still told from each other by it, in search and by few
    labelled examples.

    Args:
        classes: How many classes C the classifier has.
        config: The mixture's form.

    Attributes:
        vectors: The classes' vectors (C, E), a parameter; 0 unless set.

    Example:
        >>> mixture = ClassMixture(3, ClassMixtureConfig(width=2, radius=5.0))
        >>> mixture(torch.ones(1, 4), torch.zeros(1, 3)).shape
        torch.Size([1, 10])
    """

    def __init__(self, classes: int, config: ClassMixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.vectors = nn.Parameter(torch.zeros(classes, config.width))

    def no_weight_decay(self) -> set[str]:
        """The vectors of the classes."""
        return {"vectors"}

    def forward(self, vectors: Tensor, scores: Tensor) -> Tensor:
        """Vectors (B, D + E + D) of a head's vectors (B, D) and the classifier's scores (B, C)."""
        length = vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        trusted = trust(length, self.config.radius)
        shares = (scores / self.config.temperature).softmax(dim=-1)
        said = shares.to(self.vectors.dtype) @ self.vectors
        own = vectors / length
        return torch.cat([trusted * own, (1 - trusted) * said, (1 - trusted) * own], dim=-1)
