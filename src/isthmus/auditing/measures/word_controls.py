"""Controls of what words do: labels that are in no picture, and templates that say nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from isthmus.auditing.measures.words import lookup_form, word_lists
from isthmus.classification.templates import SLOT, checked_labels
from isthmus.errors import InputError


def distractors(labels: Sequence[str], count: int, seed: int = 0) -> tuple[str, ...]:
    """Further labels, everyday things that none of the labels names.

    Left out is what shares a word with a label or with a synonym of one, in the plural too. That a
    label is a broader word for a distractor ("tool" and "screwdriver") is not known here: look at
    them before the numbers are believed.

    Args:
        labels: The labels.
        count: How many; fewer are the first of more, with the same seed.
        seed: Seed of the choice.

    Raises:
        InputError: If there are not as many, or labels are none, empty or twice the same.

    Example:
        >>> len(distractors(["cat", "umbrella"], 3))
        3
    """
    named = {same for label in checked_labels(labels) for same in _synonyms(lookup_form(label))}
    words = {word for name in named for word in _stems(name)}
    free = [noun for noun in word_lists()["distractors"]["nouns"] if not _stems(noun) & words]
    if not 0 <= count <= len(free):
        raise InputError(
            f"got {count} distractors: expected 0 to {len(free)}, the things in words.toml that "
            "none of the labels names"
        )
    Random(seed).shuffle(free)
    return tuple(free[:count])


def _synonyms(name: str) -> set[str]:
    """A label's name and every synonym of it, synonyms of synonyms too, whichever lists which."""
    groups = [
        {lookup_form(word) for word in (left, *rights)}
        for left, rights in word_lists()["synonyms"].items()
    ]
    found, before = {name}, set[str]()
    while found != before:
        before = found
        found = found.union(*(group for group in groups if group & found))
    return found


def _stems(name: str) -> set[str]:
    """The words of a name without their endings, so that singular and plural are the same.

    Words of different meaning may become the same, which leaves out a distractor too many.
    """
    found = set()
    for word in re.findall(r"[^\W_]+", lookup_form(name)):
        stem = re.sub(r"(?<=..)[es]+$", "", word)
        found.add(re.sub(r"v$", "f", re.sub(r"y$", "i", stem)))  # trophies, knives
    return found


def template_lengths(templates: Sequence[str]) -> tuple[int, ...]:
    """How many words each template has beside the label.

    Example:
        >>> template_lengths(["a photo of a {}.", "itap of a {}.", "{}"])
        (4, 3, 0)
    """
    return tuple(
        len(re.findall(r"[^\W_](?:\S*[^\W_])?", template.replace(SLOT, " ")))
        for template in templates
    )


def random_word_templates(
    count: int, words: int | Sequence[int], seed: int = 0, *, labels: Sequence[str] = ()
) -> tuple[str, ...]:
    """Templates of random everyday words around the label: the control of an ensemble's gain.

    An ensemble of templates that say nothing also gains (Roth et al. 2023, arXiv 2306.07282), so
    only what an ensemble gains beyond these is due to what its templates say. Words come from
    `words.toml`; the label stands at any place among them.

    Args:
        count: How many templates; they all differ.
        words: Words beside the label: of all templates, or of each, repeated as often as needed.
            See `template_lengths`.
        seed: Seed of words and places.
        labels: Labels whose words are not to be used.

    Raises:
        InputError: If a template would have no word, or there are not as many templates.

    Example:
        >>> random_word_templates(2, [3, 5], seed=0) == random_word_templates(2, [3, 5], seed=0)
        True
    """
    lengths = [words] if isinstance(words, int) else list(words)
    if not lengths or min(lengths) < 1:
        raise InputError(
            f"got templates of {words} words: expected at least 1 in each; leave out the template "
            "that is the label alone"
        )
    lists = word_lists()
    told = {word for label in labels for word in _stems(label)}
    pool = [
        word
        for word in lists["random"]["words"]
        + [noun for noun in lists["distractors"]["nouns"] if " " not in noun]
        if not _stems(word) & told
    ]
    if not 0 <= count <= len(pool) or max(lengths) > len(pool):
        raise InputError(
            f"got {count} templates of up to {max(lengths)} words: expected at most {len(pool)} "
            f"of each, as many as there are words in words.toml"
        )
    random, found = Random(seed), list[str]()
    while len(found) < count:
        length = lengths[len(found) % len(lengths)]
        chosen = random.sample(pool, length)
        chosen.insert(random.randint(0, length), SLOT)
        template = " ".join(chosen) + "."
        if template not in found:
            found.append(template)
    return tuple(found)
