"""`concept_bottleneck`: expected word embeddings of the likeliest names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from isthmus.errors import ConfigError
from isthmus.model.connectors.concept_bottleneck import ConceptBottleneckConnector

NAMES = [[1, 2], [3, 4], [5, 6], [7, 8]]


def bottleneck(width: int = 10, **options: Any) -> ConceptBottleneckConnector:
    """Four named concepts in six rows, over a vocabulary of 40 words."""
    words = torch.randn(40, width, generator=torch.Generator().manual_seed(1))
    sizes = {"concepts": 6, "length": 2, "top": 3, "free": 2, "heads": 2}
    made = ConceptBottleneckConnector(12, words, **{**sizes, **options})
    made.set_names(NAMES)
    return made


def test_the_expected_embedding_by_hand() -> None:
    made, features = bottleneck(), torch.randn(2, 5, 12)
    tokens, logits = made(features), made.logits(features)
    for image in range(2):
        likely = logits[image].tolist()
        best = sorted(range(4), key=lambda c: -likely[c])[:3]
        weights = torch.tensor([likely[c] for c in best]).exp()
        weights = weights / weights.sum()
        for k in range(2):
            words = torch.stack([made.embeddings[NAMES[c][k]] for c in best])
            torch.testing.assert_close(tokens[image, k], weights @ words)


def test_logits_by_hand() -> None:
    made, features = bottleneck(), torch.randn(2, 5, 12)
    mean = features.mean(dim=1)
    root = made.norm(mean.sign() * mean.abs().sqrt())
    cosine = torch.nn.functional.cosine_similarity(root[:, None], made.classifier[None], dim=-1)
    torch.testing.assert_close(made.logits(features)[:, :4], 20 * cosine[:, :4])


def test_a_sure_classifier_says_the_name() -> None:
    """One concept alone: the tokens are its words, bit for bit the language model's rows."""
    made = bottleneck(top=1)
    features = torch.randn(3, 5, 12)
    for image, concept in enumerate(made.logits(features).argmax(dim=-1).tolist()):
        rows = made.embeddings[torch.tensor(NAMES[concept])]
        torch.testing.assert_close(made(features)[image, :2], rows)


def test_names_lie_in_the_hull_of_the_words() -> None:
    """With each word a direction of its own, a token's entries are the shares of the words."""
    made = ConceptBottleneckConnector(
        12, torch.eye(40), concepts=6, length=2, top=3, free=0, heads=2
    )
    made.set_names(NAMES)
    shares = made(torch.randn(8, 5, 12)).detach()
    assert shares.min() >= 0
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(8, 2))
    assert shares[:, 0, [1, 3, 5, 7]].sum() == pytest.approx(8)  # first pieces only
    assert shares[:, 1, [2, 4, 6, 8]].sum() == pytest.approx(8)


def test_rows_without_a_name_are_never_said() -> None:
    made = bottleneck(top=6)  # more than have names
    logits = made.logits(torch.randn(2, 5, 12))
    assert logits[:, 4:].isneginf().all()
    assert logits[:, :4].isfinite().all()
    assert made(torch.randn(2, 5, 12)).isfinite().all()


def test_free_tokens_are_as_long_as_words() -> None:
    made = bottleneck(width=64)
    free = made(torch.randn(2, 5, 12))[:, 2:]
    typical = made.embeddings.norm(dim=-1).median()
    torch.testing.assert_close(free.norm(dim=-1), typical.expand(2, 2), rtol=1e-3, atol=0)


def test_the_words_are_neither_trained_nor_saved_and_the_names_are_saved() -> None:
    made = bottleneck()
    assert "embeddings" not in made.state_dict()
    assert not made.embeddings.requires_grad
    assert "embeddings" not in dict(made.named_parameters())
    fresh = bottleneck()
    fresh.set_names([[9, 9]])
    fresh.load_state_dict(made.state_dict())
    features = torch.randn(2, 5, 12)
    assert torch.equal(fresh(features), made(features))


@pytest.mark.parametrize("names", [[[1, 2]] * 7, [[1, 2, 3]], [[1]]], ids=["rows", "long", "short"])
def test_names_that_do_not_fit(names: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 6 of 2 word pieces"):
        bottleneck().set_names(names)
