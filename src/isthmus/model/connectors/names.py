"""`names`: an image as the names of what is in it and where, in the language model's words.

Names come from what knows them. Of drawings, linear discriminant analysis of all stages of a
convolutional network knows them; of photographs, the network's own classifier. Which of the two is
heard depends on the distance of an image from those that the analysis was fitted to
(`isthmus.model.trust`). The likeliest name is handed over whole, piece by piece, in the language
model's word embeddings, so that a frozen language model can read it as it would read the word; how
sure it is stands behind it. The next likeliest follow, and the likeliest name in each quadrant and
in the middle, so that several things, their places and their number can be read. What no name says
goes through free tokens, gathered by attention. Where a word is printed in the image, its word
pieces stand in place of the regions' names, so that the language model has only to copy them.

Handing over words is AlignVLM's (Masry et al. 2025, arXiv 2502.01341); naming concepts before
anything is said of them is that of concept bottleneck models (Koh et al. 2020).

Letters: B images, N patches, R regions, W numbers of the stages, C concepts, K word pieces of a
name, D the language model's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Config, Count, NotNegative
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.attention import MultiHeadAttention
from isthmus.model.connectors.reading import Pieces, Reader, as_text
from isthmus.model.trust import trust

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape, RegionShape

UNUSED = -1
SURE = 0.5
"""How likely there must be text in an image for it to be handed over."""


class Discriminant(nn.Module):
    """Linear discriminant analysis: which class what the stages see is nearest to.

        v = linear (x - mean),    logits_c = scale * cos(v, mean_c)

    Args:
        in_width: Numbers W of the stages.
        width: Dimensions that are kept.
        concepts: Classes C.

    Attributes:
        mean, linear, means, scale: Fitted by whoever knows the images, and frozen. `linear` whitens
            what differs within classes, in units of the radius within which the fit is trusted.
    """

    mean: Tensor
    linear: Tensor
    means: Tensor
    scale: Tensor

    def __init__(self, in_width: int, width: int, concepts: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_width))
        self.register_buffer("linear", torch.zeros(width, in_width))
        self.register_buffer("means", torch.zeros(concepts, width))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, stages: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., C) of what the stages see (..., W), and trust (...) in them; float32."""
        with torch.autocast(stages.device.type, enabled=False):  # near names differ by little
            vectors = (stages.float() - self.mean.float()) @ self.linear.float().T
            logits = self.scale.float() * (F.normalize(vectors, dim=-1) @ self.means.float().T)
            return logits, trust(vectors.norm(dim=-1), 1.0)


class NamesConnector(nn.Module):
    """Names of an image and of its regions as visual tokens, and a few free tokens.

    Args:
        regions: What the features hold.
        in_width: Width of the features.
        embeddings: (V, D) the language model's word embeddings; kept frozen and never saved.
        concepts: Most concepts C that can be named.
        pieces: Word pieces K of the likeliest name; shorter names are filled up.
        others: Next likeliest names, a token each, the mean of their pieces.
        region_pieces: Word pieces of a region's name.
        dimensions: Of the discriminant analysis.
        free: Number of free tokens.
        heads: Attention heads of the free tokens, each 64 wide.
        reader: Width of the reader of printed words; 0 for none.

    Attributes:
        names: (C, K) int64 word pieces of each concept, -1 in unused rows; saved with the weights.
        classes: (classes,) int64, the concept that each class of the encoder's is; -1 for none.
        image, region: The analyses of a whole image and of a region of one.
        reader: Reads a printed word, or None. Trained by whoever knows words, and frozen.
        spelling: Its words in word pieces; nothing is read before `spelling.set`.
    """

    embeddings: Tensor
    names: Tensor
    classes: Tensor
    filler: Tensor

    def __init__(
        self,
        regions: RegionShape,
        in_width: int,
        embeddings: Tensor,
        *,
        concepts: int,
        pieces: int,
        others: int,
        region_pieces: int,
        dimensions: int,
        free: int,
        heads: int,
        reader: int = 0,
    ) -> None:
        super().__init__()
        if region_pieces > pieces or others >= concepts:
            raise ConfigError(
                f"names: region_pieces is {region_pieces} and others {others}: expected at most "
                f"{pieces}, the pieces of a name, and less than {concepts}, the concepts"
            )
        self.shape, self.others, self.region_pieces = regions, others, region_pieces
        self.num_tokens = pieces + 1 + others + (regions.count - 1) * region_pieces + free
        self.width = embeddings.shape[1]
        self.image = Discriminant(regions.stages, dimensions, concepts)
        self.region = Discriminant(regions.stages, dimensions, concepts)
        self.sureness = nn.Linear(others + 2, self.width)
        self.other_sureness = nn.Linear(1, self.width)
        self.region_sureness = nn.Linear(2, self.width)
        self.places = nn.Parameter(torch.zeros(regions.count - 1, self.width))
        self.norm = nn.LayerNorm(in_width)
        self.queries = nn.Parameter(torch.randn(free, in_width) * in_width**-0.5)
        self.attention = MultiHeadAttention(
            in_width, in_width, heads=heads, head_dim=64, bias=True, out_width=self.width
        )
        self.out_norm = nn.LayerNorm(self.width)
        # tokens are as long as words are
        spread = float(embeddings.detach().float().norm(dim=-1).median())
        nn.init.constant_(self.out_norm.weight, spread / math.sqrt(self.width))
        for layer in (self.sureness, self.other_sureness, self.region_sureness):
            nn.init.normal_(layer.weight, std=spread / math.sqrt(self.width))
            nn.init.zeros_(layer.bias)
        self.register_buffer("embeddings", embeddings.detach(), persistent=False)
        self.register_buffer("names", torch.full((concepts, pieces), UNUSED))
        self.names[:, 0] = torch.arange(concepts) % embeddings.shape[0]
        self.register_buffer("classes", torch.full((regions.classes,), UNUSED))
        self.register_buffer("filler", torch.zeros((), dtype=torch.long))
        self.reader: Reader | None = None
        if reader:
            if regions.fine is None:
                raise ConfigError(
                    f"names: reader is {reader}, which reads an early feature map: set vision.fine "
                    "to the stride of one, such as 8 with asset:efficientnet-lite2"
                )
            self.reader = Reader(regions.fine[0], reader).eval().requires_grad_(False)
            self.spelling = Pieces(embeddings.shape[0])
            self.text = nn.Parameter(torch.randn(self.width) * spread / math.sqrt(self.width))

    def train(self, mode: bool = True) -> NamesConnector:
        """A frozen reader never leaves evaluation mode."""
        super().train(mode)
        if self.reader is not None:
            self.reader.eval()
        return self

    def set_names(
        self, names: Sequence[Sequence[int]], filler: int, classes: Sequence[int] = ()
    ) -> None:
        """Says what each concept is called.

        Args:
            names: For each concept 1 to K word pieces; longer names are cut.
            filler: The word piece that stands behind a shorter name.
            classes: For each class of the encoder's classifier its concept, -1 for none.

        Raises:
            ConfigError: If there are more names than rows, an empty one, or another number of
                classes.
        """
        rows, length = self.names.shape
        if not 0 < len(names) <= rows or not all(names):
            raise ConfigError(
                f"names: got {len(names)} names, expected 1 to {rows} of at least one word piece: "
                "set connector.concepts"
            )
        if classes and len(classes) != len(self.classes):
            raise ConfigError(
                f"names: got concepts of {len(classes)} classes, expected {len(self.classes)}"
            )
        self.names.fill_(UNUSED)
        for row, own in enumerate(names):
            kept = list(own)[:length]
            self.names[row] = torch.tensor([*kept, *[filler] * (length - len(kept))])
        self.filler.fill_(filler)
        if classes:
            self.classes.copy_(torch.tensor(list(classes)))

    def shares(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """How likely each concept is.

        Args:
            features: (B, N + R rows, D_vision).

        Returns:
            Shares (B, R, C), of which each row sums to 1, the whole image first; and the trust
            (B, R) in the analysis, the rest of which is the classifier's.
        """
        _, stages, scores = self.shape.split(features)
        whole, trusted = self.image(stages[:, :1])
        parts, parts_trusted = self.region(stages[:, 1:])
        trusted = torch.cat([trusted, parts_trusted], dim=1)
        return self.mixed(torch.cat([whole, parts], dim=1), scores, trusted), trusted

    def mixed(self, logits: Tensor, scores: Tensor, trusted: Tensor) -> Tensor:
        """How likely each concept is, of both who know.

        Args:
            logits: (..., C) of an analysis.
            scores: (..., classes) of the classifier.
            trusted: (...) trust in the analysis.
        """
        logits = logits.masked_fill(self.names[:, 0] == UNUSED, float("-inf"))
        known = self.classes >= 0
        said = torch.zeros_like(logits)
        if bool(known.any()):
            of_classes = scores[..., known].float().softmax(dim=-1).to(logits.dtype)
            said = said.index_add(-1, self.classes[known], of_classes)
        else:
            trusted = torch.ones_like(trusted)
        return trusted[..., None] * logits.softmax(dim=-1) + (1 - trusted)[..., None] * said

    def no_weight_decay(self) -> set[str]:
        """The queries of the free tokens, the places of regions and what says text: no maps."""
        return {"queries", "places"} | ({"text"} if self.reader is not None else set())

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N + R rows, D_vision)."""
        shares, trusted = self.shares(features)
        likely, index = shares[:, 0].topk(1 + self.others, dim=-1)
        words = self.embeddings[self.names[index].clamp(min=0)]  # (B, 1 + others, K, D)
        name = words[:, 0]
        dtype = self.sureness.weight.dtype
        shares, trusted = shares.to(dtype), trusted.to(dtype)
        likely = likely.to(dtype)
        sure = self.sureness(torch.cat([likely, trusted[:, :1]], dim=-1))[:, None]
        others = self._mean(words[:, 1:], self.names[index[:, 1:]])
        others = others + self.other_sureness(likely[:, 1:, None])
        best, which = shares[:, 1:].max(dim=-1)
        parts = self.embeddings[self.names[which][..., : self.region_pieces].clamp(min=0)]
        told = self.region_sureness(torch.stack([best, trusted[:, 1:]], dim=-1)) + self.places
        first = (parts[:, :, :1] + told[:, :, None]).to(parts.dtype)
        parts = torch.cat([first, parts[:, :, 1:]], dim=2).flatten(1, 2)
        if self.reader is not None:
            is_read, pieces = self.words_in(features)
            sure = sure + is_read[:, None, None] * self.text
            parts = torch.where(is_read[:, None, None], self.embeddings[pieces], parts)
        patches = self.norm(features[:, : self.shape.patches])
        queries = self.queries.expand(features.shape[0], -1, -1)
        free = self.out_norm(self.attention(queries, patches))
        tokens = [name, sure, others, parts, free]
        return torch.cat([t.to(free.dtype) for t in tokens], dim=1)

    @torch.no_grad()
    def words_in(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a word is printed in each image (B,), and its word pieces (B, places of regions).

        Args:
            features: (B, N + R rows + F, D_vision), with an early map.
        """
        assert self.reader is not None
        letters, text = self.reader.read(self.shape.fine_map(features))
        places = (self.shape.count - 1) * self.region_pieces
        pieces = self.filler.repeat(len(letters), places)
        is_read = text > SURE
        for row, word in enumerate(as_text(letters)):
            own = self.spelling.split(word)[:places] if word else []
            pieces[row, : len(own)] = pieces.new_tensor(own)
            is_read[row] &= bool(own)
        return is_read, pieces

    def _mean(self, words: Tensor, names: Tensor) -> Tensor:
        """The mean (B, n, D) of the pieces (B, n, K, D) of names, their filling left out."""
        own = (names != self.filler).to(words.dtype)
        own[..., 0] = 1.0
        mean: Tensor = (words * own[..., None]).sum(dim=-2) / own.sum(dim=-1, keepdim=True)
        return mean


@CONNECTORS.register("names")
@dataclass(frozen=True, kw_only=True)
class Names(Config):
    """Names of what is in the image and where, as word embeddings, and a few free tokens.

    Reads what a convolutional network's stages and its own classifier see of the image and of its
    regions: set `vision.regions = true`. The names and the analyses are fitted by a recipe.

    With a `reader`, one printed word of up to eight letters and digits is read from an early
    feature map: set `vision.fine = 8` too. Where one is read, its word pieces, as the language
    model's tokenizer splits it, take the tokens of the regions, and a learned vector is added to
    the sureness. Everywhere else the tokens are as without a reader. It is trained by a recipe.
    """

    reads_regions: ClassVar[bool] = True
    concepts: Count = 5000
    """Most concepts that can be named."""
    pieces: Count = 5
    """Word pieces of the likeliest name."""
    others: NotNegative = 2
    """Next likeliest names, a token each."""
    region_pieces: Count = 2
    """Word pieces of the name in a region."""
    dimensions: Count = 512
    """Dimensions of the discriminant analysis."""
    free: NotNegative = 4
    """Visual tokens that are no names."""
    heads: Count = 8
    """Attention heads of the free tokens, each 64 wide."""
    reader: NotNegative = 0
    """Width of the reader of printed words, such as 128; 0 for none."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> NamesConnector:
        """The module for features of a shape."""
        if shape.regions is None:
            raise ConfigError(
                "names reads regions: set vision.regions = true, with a convolutional network of "
                "timm that has its classifier, such as asset:efficientnet-lite2"
            )
        if embeddings is None or embeddings.shape[1] != width:
            raise ConfigError(
                "names makes tokens of the language model's width from its word embeddings: use it "
                "with fusion inline, or with cross_attention and visual_width set to that width"
            )
        return NamesConnector(shape.regions, shape.width, embeddings, **asdict(self))

    def toy(self) -> Names:
        """The same connector, small."""
        small = replace(self, concepts=32, pieces=2, others=1, dimensions=4, free=2, heads=2)
        return replace(
            small, region_pieces=min(self.region_pieces, 2), reader=8 if self.reader else 0
        )
