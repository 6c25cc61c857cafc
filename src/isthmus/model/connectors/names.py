"""`names`: an image as the names of what is in it and where, in the language model's words.

Names come from what knows them. Of drawings, linear discriminant analysis of all stages of a
convolutional network knows them; of photographs, the network's own classifier. Which of the two is
heard depends on the distance of an image from those that the analysis was fitted to
(`isthmus.model.trust`). The likeliest name is handed over whole, piece by piece, in the language
model's word embeddings, so that a frozen language model can read it as it would read the word; how
sure it is stands behind it. The next likeliest follow, and what is in each quadrant and in the
middle: a token for the place, then a name and the next likeliest, or that there is nothing. So
several things, their places and their number can be read. Regions have an analysis of their own,
since a thing looks otherwise in a quarter of an image. Where a word is printed, its word pieces
stand in place of the regions. What no name says goes through free tokens: a linear map of the
analysis, alike for images that are alike, and others that are gathered by attention.

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

from isthmus.config.base import Amount, Config, Count, NotNegative
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.analysis import UNUSED, Discriminant, Presence, moved, spread
from isthmus.model.attention import MultiHeadAttention
from isthmus.model.connectors.names_parts import Seen, token_labels
from isthmus.model.connectors.reading import Pieces, Reader, as_text
from isthmus.model.trust import trust

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape, RegionShape

SURE = 0.5
"""How likely there must be text in an image for it to be handed over."""


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
        region_others: Next likeliest names of a region, as `others`.
        dimensions: Of the discriminant analysis.
        region_concepts: Most concepts that can be named of a region.
        region_dimensions: Of the regions' analysis.
        free: Number of free tokens.
        heads: Attention heads of the free tokens but the first, each 64 wide.
        reader: Width of the reader of printed words; 0 for none.
        noise: In training, how far the place of an image in an analysis is moved at random.

    Attributes:
        names: (C, K) int64 word pieces of each concept, -1 in unused rows; saved with the weights.
        region_names: (region_concepts,) int64, the concept of each row of the regions' analysis,
            -1 in unused rows; saved with the weights.
        classes: (classes,) int64, the concept that each class of the encoder's is; -1 for none.
        nothing: (K,) int64 word pieces that say of a region that nothing is there.
        image: The analysis of a whole image.
        region: That of a region.
        presence: Whether anything is in a region.
        reader: Reads a printed word, or None. Trained by whoever knows words, and frozen.
        spelling: Its words in word pieces; nothing is read before `spelling.set`.
    """

    embeddings: Tensor
    names: Tensor
    region_names: Tensor
    classes: Tensor
    filler: Tensor
    nothing: Tensor

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
        region_others: int,
        dimensions: int,
        region_concepts: int,
        region_dimensions: int,
        free: int,
        heads: int,
        reader: int = 0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        if region_pieces > pieces or max(others, region_others) >= concepts:
            raise ConfigError(
                f"names: region_pieces is {region_pieces}, others {others} and region_others "
                f"{region_others}: expected at most {pieces}, the pieces of a name, and less than "
                f"{concepts}, the concepts"
            )
        self.shape, self.others, self.noise = regions, others, noise
        self.region_pieces, self.region_others = region_pieces, region_others
        self.region_tokens = (regions.count - 1) * (1 + region_pieces + region_others)
        self.num_tokens = pieces + 1 + others + self.region_tokens + free
        self.width = embeddings.shape[1]
        self.image = Discriminant(regions.stages, dimensions, concepts)
        self.region = Discriminant(regions.stages, region_dimensions, region_concepts)
        self.presence = Presence(regions.stages)
        self.sureness = nn.Linear(others + 2, self.width)
        self.other_sureness = nn.Linear(1, self.width)
        self.region_sureness = nn.Linear(2, self.width)
        self.places = nn.Parameter(torch.randn(regions.count - 1, self.width))
        self.alike = nn.Linear(dimensions, self.width, bias=False)
        self.norm = nn.LayerNorm(in_width)
        self.queries = nn.Parameter(torch.randn(free - 1, in_width) * in_width**-0.5)
        self.attention = MultiHeadAttention(
            in_width, in_width, heads=heads, head_dim=64, bias=True, out_width=self.width
        )
        self.out_norm = nn.LayerNorm(self.width)
        # tokens are as long as words are
        spread = float(embeddings.detach().float().norm(dim=-1).median())
        nn.init.constant_(self.out_norm.weight, spread / math.sqrt(self.width))
        longer = math.sqrt(max(1.0, dimensions / self.width))  # where dimensions are given up
        nn.init.orthogonal_(self.alike.weight, gain=spread * longer)
        nn.init.normal_(self.places, std=spread / math.sqrt(self.width))
        nn.init.normal_(self.sureness.weight, std=spread / math.sqrt(self.width))
        nn.init.zeros_(self.sureness.bias)
        for layer in (self.other_sureness, self.region_sureness):
            nn.init.zeros_(layer.weight)  # at first words are words
            nn.init.zeros_(layer.bias)
        self.register_buffer("embeddings", embeddings.detach(), persistent=False)
        self.register_buffer("names", torch.full((concepts, pieces), UNUSED))
        self.names[:, 0] = torch.arange(concepts) % embeddings.shape[0]
        self.register_buffer("region_names", torch.arange(region_concepts) % concepts)
        self.register_buffer("classes", torch.full((regions.classes,), UNUSED))
        self.register_buffer("filler", torch.zeros((), dtype=torch.long))
        self.register_buffer("nothing", torch.zeros(pieces, dtype=torch.long))
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
        self,
        names: Sequence[Sequence[int]],
        filler: int,
        classes: Sequence[int] = (),
        nothing: Sequence[int] = (),
        regions: Sequence[int] = (),
    ) -> None:
        """Says what each concept is called.

        Args:
            names: For each concept 1 to K word pieces; longer names are cut.
            filler: The word piece that stands behind a shorter name.
            classes: For each class of the encoder's classifier its concept, -1 for none.
            nothing: What stands for a region with nothing in it; fillers alone if not given.
            regions: The concept of each row of the regions' analysis; the first ones if not given.

        Raises:
            ConfigError: If there are more names than rows, an empty one, another number of
                classes, or a class or a region's name that is none of the concepts.
        """
        rows, length = self.names.shape
        if not 0 < len(names) <= rows or not all(names):
            raise ConfigError(
                f"names: got {len(names)} names, expected 1 to {rows} of at least one word piece: "
                "set connector.concepts"
            )
        if classes and len(classes) != len(self.classes):
            known = len(self.classes)
            raise ConfigError(f"names: got concepts of {len(classes)} classes, expected {known}")
        if odd := [c for c in classes if not UNUSED <= c < len(names)]:
            last = len(names) - 1
            raise ConfigError(
                f"names: got concept {odd[0]} of a class, expected 0 to {last}, or -1"
            )
        most = len(self.region_names)
        regions = regions or range(min(most, len(names)))
        if len(regions) > most or not all(0 <= c < len(names) for c in regions):
            raise ConfigError(
                f"names: got {len(regions)} concepts of regions, {min(regions)} to {max(regions)}: "
                f"expected at most {most} (connector.region_concepts), 0 to {len(names) - 1}"
            )

        filled = [torch.tensor([*o, *[filler] * length][:length]) for o in (*names, nothing)]
        self.names.fill_(UNUSED)
        self.region_names.fill_(UNUSED)
        self.region_names[: len(regions)] = torch.tensor(list(regions))
        self.names[: len(names)] = torch.stack(filled[:-1])
        self.filler.fill_(filler)
        self.nothing.copy_(filled[-1])
        if classes:
            self.classes.copy_(torch.tensor(list(classes)))

    def seen(self, features: Tensor) -> Seen:
        """What is in an image, of features (B, N + R rows, D_vision)."""
        _, stages, scores = self.shape.split(features)
        whole = self.image.vectors(stages[:, :1])
        there = self.presence(stages[:, 1:])
        trusted = trust(whole.norm(dim=-1), 1.0)
        trusted = trusted.masked_fill(~(self.classes != UNUSED).any(), 1.0)  # if nobody else knows
        noise = self.noise if self.training else 0.0
        of_regions = self.region_logits(moved(self.region.vectors(stages[:, 1:]), noise))
        logits = torch.cat([self.image.logits(moved(whole, noise)), of_regions], dim=1)
        shares = self.mixed(logits, scores, trusted.expand(-1, logits.shape[1]))
        return Seen(whole[:, 0], shares, trusted[:, 0], 1 - trusted * (1 - there))

    def region_logits(self, vectors: Tensor) -> Tensor:
        """(..., C): how near each concept is to vectors (..., width) of the regions' analysis."""
        return spread(self.region.logits(vectors), self.region_names, self.names.shape[0])

    def mixed(self, logits: Tensor, scores: Tensor, trusted: Tensor) -> Tensor:
        """How likely each concept is, of both who know.

        Args:
            logits: (..., C) of an analysis.
            scores: (..., classes) of the classifier.
            trusted: (...) trust in the analysis.
        """
        logits = logits.masked_fill(self.names[:, 0] == UNUSED, float("-inf"))
        # classes of no concept have no say, found without waiting for the device
        known = self.classes != UNUSED
        scores = scores.float().masked_fill(~known, torch.finfo(torch.float32).min)
        of_classes = scores.softmax(dim=-1).to(logits.dtype)
        said = torch.zeros_like(logits).index_add(-1, self.classes.clamp(min=0), of_classes)
        return trusted[..., None] * logits.softmax(dim=-1) + (1 - trusted)[..., None] * said

    def no_weight_decay(self) -> set[str]:
        """The queries of the free tokens, the places of regions and what says text: no maps."""
        return {"queries", "places"} | ({"text"} if self.reader is not None else set())

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N + R rows, D_vision)."""
        seen = self.seen(features)
        dtype = self.sureness.weight.dtype
        trusted = seen.trusted.to(dtype)
        likely, index = seen.shares[:, 0].topk(1 + self.others, dim=-1)
        likely = likely.to(dtype)
        words = self.embeddings[self.names[index].clamp(min=0)]  # (B, 1 + others, K, D)
        sure = self.sureness(torch.cat([likely, trusted[:, None]], dim=-1))[:, None]
        others = self._mean(words[:, 1:], self.names[index[:, 1:]])
        others = others + self.other_sureness(likely[:, 1:, None])
        regions = self._regions(seen)
        if self.reader is not None:
            is_read, pieces = self.words_in(features)
            sure = sure + is_read[:, None, None] * self.text
            regions = torch.where(is_read[:, None, None], self.embeddings[pieces], regions)
        alike = self.alike(F.normalize(seen.vector, dim=-1).to(dtype))[:, None]
        patches = self.norm(features[:, : self.shape.patches])
        queries = self.queries.expand(features.shape[0], -1, -1)
        free = self.out_norm(self.attention(queries, patches))
        tokens = [words[:, 0], sure, others, regions, alike, free]
        return torch.cat([t.to(dtype) for t in tokens], dim=1)

    def _regions(self, seen: Seen) -> Tensor:
        """What is in the regions (B, tokens, D): for each its place, a name, the next likeliest."""
        dtype = self.sureness.weight.dtype
        likely, which = seen.shares[:, 1:].topk(1 + self.region_others, dim=-1)
        there = seen.there
        names = torch.where(there[..., None, None] > 0.5, self.names[which], self.nothing)
        words = self.embeddings[names.clamp(min=0)]  # (B, R - 1, 1 + others, K, D)
        told = torch.stack([likely[..., 0], there], dim=-1).to(dtype)
        told = (self.region_sureness(told) + self.places)[:, :, None]
        others = self._mean(words[:, :, 1:], names[:, :, 1:])
        others = others + self.other_sureness(likely[..., 1:, None].to(dtype))
        name = words[:, :, 0, : self.region_pieces]
        return torch.cat([t.to(words.dtype) for t in (told, name, others)], dim=2).flatten(1, 2)

    def token_labels(self, features: Tensor) -> list[list[str]]:
        """What each visual token is, in words, for each image; features as in `forward`."""
        read = [False] * len(features)
        if self.reader is not None:
            read = self.words_in(features)[0].tolist()
        whole, part = (self.names.shape[1], self.others), (self.region_pieces, self.region_others)
        sizes = (self.shape.count - 1, *whole, *part, len(self.queries))
        return [token_labels(*sizes, letters=letters) for letters in read]

    @torch.no_grad()
    def words_in(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a word is printed in each image (B,), and its word pieces (B, places of regions).

        Args:
            features: (B, N + R rows + F, D_vision), with an early map.
        """
        assert self.reader is not None
        letters, text = self.reader.read(self.shape.fine_map(features))
        most = self.region_tokens
        told = [self.spelling.split(word)[:most] if word else [] for word in as_text(letters)]
        rows = torch.tensor([[*own, *[UNUSED] * (most - len(own))] for own in told])
        rows = rows.view(len(told), most).to(features.device)
        is_read = (text > SURE) & (rows[:, 0] != UNUSED)
        return is_read, torch.where(rows == UNUSED, self.filler, rows)

    def _mean(self, words: Tensor, names: Tensor) -> Tensor:
        """The mean (..., D) of the pieces (..., K, D) of names, their filling left out."""
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
    region_pieces: Count = 3
    """Word pieces of the name in a region."""
    region_others: NotNegative = 0
    """Next likeliest names in a region, a token each."""
    dimensions: Count = 512
    """Dimensions of the discriminant analysis."""
    region_concepts: Count = 1000
    """Most concepts that can be named of a region."""
    region_dimensions: Count = 128
    """Dimensions of the regions' own analysis."""
    free: Count = 3
    """Visual tokens that are no names: one of the analysis, the others gathered by attention."""
    heads: Count = 8
    """Attention heads of those others, each 64 wide."""
    reader: NotNegative = 0
    """Width of the reader of printed words, such as 128; 0 for none."""
    noise: Amount = 0.0
    """In training, how far an image's place in an analysis is moved at random, where 1 is as far as
    it lies from the middle: an analysis names what it was fitted to better than anything new."""

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
        small = replace(small, region_pieces=1, region_others=0, region_dimensions=4)
        return replace(small, region_concepts=16, reader=8 if self.reader else 0)
