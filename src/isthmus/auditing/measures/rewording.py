"""Labels and templates in other words, to see whether a classifier's answers change.

A `Rewording` has as many labels as it was made of, in the same order, so predictions by their
numbers compare. Other words are listed in `words.toml`; what is not listed stays as it is and is
counted.

Letters: K labels, T templates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from isthmus.auditing.measures.words import (
    digits_to_words,
    dropped_letters,
    in_the_case_of,
    indefinite_article,
    lookup_form,
    transpositions,
    word_lists,
    words_to_digits,
)
from isthmus.classification.templates import (
    SLOT,
    Templates,
    checked_labels,
    prompts_of,
    resolved_templates,
)
from isthmus.errors import ConfigError, InputError, suggestion

Kind = Literal["wording", "synonym", "article", "case", "typo", "digits", "language"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ARTICLE = re.compile(r"\b(?:an?|the)\s+(?=\{\})", re.IGNORECASE)
"""The article right before the label."""
_UNCHANGED = {
    "wording": "no template holds a word that words.toml puts in other words",
    "synonym": "no label has a synonym in words.toml that is not another of the labels",
    "article": "no template has an article before {} that could be another",
    "case": "no label has a letter that could be of another case",
    "typo": "no label has a word of four letters or more, or each typo gives another of the labels",
    "digits": "no label holds a whole number from 0 to 100, in digits or in words",
    "language": "the templates are the Korean ones already",
}


@dataclass(frozen=True)
class Rewording:
    """Labels and templates of which some are in other words.

    `ZeroShotClassifier(model, labels, templates)` takes them as they are.

    Attributes:
        kind: What kind of change it is.
        name: Which change of its kind.
        labels: The labels (K,), each at its place.
        templates: The templates (T,). Where the article depends on the label, they are instead
            the texts of each label.
        changed: How many of the labels and templates differ from what was given.
        of: How many there are of those that this kind may change.
    """

    kind: Kind
    name: str
    labels: tuple[str, ...]
    templates: tuple[str, ...] | dict[str, tuple[str, ...]]
    changed: int
    of: int

    def prompts(self) -> list[list[str]]:
        """The prompts of each label, as `isthmus.classification.templates.prompts_of` gives them.

        Example:
            >>> rewordings(["owl"], ["a photo of a {}."], ["article"], 0)[0].prompts()
            [['a photo of an owl.']]
        """
        return prompts_of(self.labels, self.templates)


def rewordings(
    labels: Sequence[str], templates: Templates, kinds: Iterable[str] = KINDS, seed: int = 0
) -> tuple[Rewording, ...]:
    """Labels and templates in other words; what would change nothing is left out.

    No label becomes another one of the labels: it then stays as it is.

    - "wording": words of the templates, "a photo of a {}." as "a picture of a {}.".
    - "synonym": labels by another name, from the list in `words.toml` alone.
    - "article": the article before the label as a or an, whichever is right, as "the", or none.
    - "case": labels in lower case, in capitals, and with Initial Capitals.
    - "typo": in each label two neighbouring letters change places, or one is missing; never a
      word's first, and never in words of fewer than four letters. A label's typo depends on
      the label and the seed, and not on the labels beside it.
    - "digits": "7" as "seven", and the reverse, from 0 to 100.
    - "language": Korean templates, Korean names of labels where `words.toml` has one, and both.

    Args:
        labels: The labels (K,).
        templates: The name of a published set, a template with `{}`, several, or a file of them.
        kinds: Which kinds of change, of `KINDS`.
        seed: Seed of the typos.

    Raises:
        ConfigError: If a kind is unknown.
        InputError: If labels are none, empty or twice the same, a template has no `{}`, or the
            templates are descriptions of each label.

    Example:
        >>> for made in rewordings(["sofa", "owl"], ["a photo of a {}."], ["synonym", "case"]):
        ...     print(made.name, made.labels, made.changed)
        synonym 1 ('couch', 'owl') 1
        synonym 2 ('settee', 'owl') 1
        upper ('SOFA', 'OWL') 2
        title ('Sofa', 'Owl') 2
    """
    names, texts = tuple(checked_labels(labels)), _checked_templates(templates)
    before = prompts_of(names, texts)
    found: list[Rewording] = []
    for kind in _checked_kinds(kinds):
        seen = [(names, before)]
        for name, new_labels, new_templates in _MAKERS[kind](names, texts, seed):
            # Compared as prompts: texts by label may say what the templates said
            after = (new_labels, prompts_of(new_labels, new_templates))
            if after in seen:
                continue
            seen.append(after)
            changed = sum(old != new for old, new in zip(names, new_labels, strict=True))
            of = 0 if new_labels == names else len(names)
            if new_templates != texts:
                changed += _templates_changed(names, texts, new_templates)
                of += len(texts)
            found.append(Rewording(kind, name, new_labels, new_templates, changed, of))
    return tuple(found)


def left_out(
    labels: Sequence[str], templates: Templates, kinds: Iterable[str] = KINDS
) -> dict[str, str]:
    """The kinds of change that change nothing here, each with the reason.

    A single change that does nothing while others of its kind do (lower case, where labels are
    in lower case) is not among them; `rewordings` just has none of its name.

    Example:
        >>> left_out(["cat", "owl"], "one", ["digits", "case"])
        {'digits': 'no label holds a whole number from 0 to 100, in digits or in words'}
    """
    return {
        kind: _UNCHANGED[kind]
        for kind in _checked_kinds(kinds)
        if not rewordings(labels, templates, [kind])
    }


# --- Each kind of change ----------------------------------------------------------------------

_Texts = tuple[str, ...]
_Changes = list[tuple[str, _Texts, _Texts | dict[str, _Texts]]]


def _wordings(labels: _Texts, templates: _Texts, seed: int) -> _Changes:
    rules: dict[str, list[list[str]]] = word_lists()["wording"]
    return [
        (name, labels, tuple(_reworded(template, dict(pairs)) for template in templates))
        for name, pairs in rules.items()
    ]


def _reworded(template: str, pairs: dict[str, str]) -> str:
    """All pairs replaced at once, so that one replacement is not replaced again."""
    lefts = "|".join(re.escape(left) for left in sorted(pairs, key=len, reverse=True))

    def other(found: re.Match[str]) -> str:
        new = pairs[found["word"].casefold()]
        if found["article"] is None:
            return in_the_case_of(found["word"], new)
        article = in_the_case_of(found["article"], indefinite_article(new))
        return article + found["space"] + in_the_case_of(found["word"], new)

    pattern = rf"(?:\b(?P<article>an?)(?P<space>\s+))?(?<![\w-])(?P<word>{lefts})(?![\w-])"
    return re.sub(pattern, other, template, flags=re.IGNORECASE)


def _synonyms(labels: _Texts, templates: _Texts, seed: int) -> _Changes:
    listed: dict[str, list[str]] = word_lists()["synonyms"]
    known = [listed.get(lookup_form(label), []) for label in labels]
    options = [
        [in_the_case_of(label, word) for word in words]
        for label, words in zip(labels, known, strict=True)
    ]
    most = max(map(len, options))
    return [
        (f"synonym {i + 1}", _distinct(labels, [words[i : i + 1] for words in options]), templates)
        for i in range(most)
    ]


def _articles(labels: _Texts, templates: _Texts, seed: int) -> _Changes:
    def with_article(article: str, template: str) -> str:
        space = " " if article else ""
        return _ARTICLE.sub(lambda found: in_the_case_of(found[0][0], article) + space, template)

    fitting = {
        label: tuple(
            with_article(indefinite_article(label), template).replace(SLOT, label)
            for template in templates
        )
        for label in labels
    }
    return [
        ("a or an", labels, fitting),
        ("the", labels, tuple(with_article("the", template) for template in templates)),
        ("none", labels, tuple(with_article("", template) for template in templates)),
    ]


def _cases(labels: _Texts, templates: _Texts, seed: int) -> _Changes:
    def title(label: str) -> str:
        # Not str.title, which makes "Lay'S" of "lay's" and "Usb" of "USB"
        return " ".join(word[:1].upper() + word[1:] for word in label.split(" "))

    changes: dict[str, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper}
    changes["title"] = title
    return [
        (name, _distinct(labels, [[change(label)] for label in labels]), templates)
        for name, change in changes.items()
    ]


def _typos(labels: _Texts, templates: _Texts, seed: int) -> _Changes:
    def shuffled(name: str, label: str, texts: list[str]) -> list[str]:
        Random(f"{seed} {name} {label}").shuffle(texts)
        return texts

    changes = {"transposition": transpositions, "dropped letter": dropped_letters}
    return [
        (
            name,
            _distinct(labels, [shuffled(name, label, change(label)) for label in labels]),
            templates,
        )
        for name, change in changes.items()
    ]


def _digits(labels: _Texts, templates: _Texts, seed: int) -> _Changes:
    changes = {"digits to words": digits_to_words, "words to digits": words_to_digits}
    return [
        (name, _distinct(labels, [[change(label)] for label in labels]), templates)
        for name, change in changes.items()
    ]


def _languages(labels: _Texts, templates: _Texts, seed: int) -> _Changes:
    korean = word_lists()["korean"]
    there = tuple(korean["templates"][: len(templates)])
    names = [korean["names"].get(lookup_form(label)) for label in labels]
    translated = _distinct(labels, [[name] if name else [] for name in names])
    return [
        ("Korean templates", labels, there),
        ("Korean names", translated, templates),
        ("Korean templates and names", translated, there),
    ]


_MAKERS: dict[Kind, Callable[[_Texts, _Texts, int], _Changes]] = {
    "wording": _wordings,
    "synonym": _synonyms,
    "article": _articles,
    "case": _cases,
    "typo": _typos,
    "digits": _digits,
    "language": _languages,
}


def _distinct(labels: _Texts, options: Sequence[Sequence[str]]) -> _Texts:
    """Of each label the first option that is no other label, or else the label itself."""
    taken = Counter(lookup_form(label) for label in labels)
    chosen = []
    for label, texts in zip(labels, options, strict=True):
        taken[lookup_form(label)] -= 1
        new = next((text for text in texts if not taken[lookup_form(text)]), label)
        taken[lookup_form(new)] += 1
        chosen.append(new)
    return tuple(chosen)


def _templates_changed(labels: _Texts, old: _Texts, new: _Texts | dict[str, _Texts]) -> int:
    """How many of the old templates are not at their place any more."""
    if isinstance(new, tuple):
        return sum(new[i : i + 1] != (template,) for i, template in enumerate(old))
    return sum(
        any(new[label][i] != template.replace(SLOT, label) for label in labels)
        for i, template in enumerate(old)
    )


# --- Checks -----------------------------------------------------------------------------------


def _checked_templates(templates: Templates) -> _Texts:
    found = resolved_templates(templates)
    if isinstance(found, dict):
        raise InputError(
            "got descriptions of each label: expected templates that all labels share, as in "
            '["a photo of a {}."], since only those can be put in other words'
        )
    prompts_of(["label"], found)  # refuses none, and one without a place for the label
    return tuple(found)


def _checked_kinds(kinds: Iterable[str]) -> list[Kind]:
    found = [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
    for kind in found:
        if kind not in KINDS:
            raise ConfigError(f'unknown kind of rewording "{kind}": {suggestion(kind, KINDS)}')
    return [kind for kind in KINDS if kind in found]
