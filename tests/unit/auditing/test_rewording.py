"""Each kind of rewording by example, and what none may do: merge classes or change nothing."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from isthmus.auditing.measures.rewording import KINDS, Rewording, left_out, rewordings
from isthmus.auditing.measures.words import dropped_letters, transpositions
from isthmus.classification.templates import prompts_of, template_sets
from isthmus.errors import ConfigError, InputError, PromptError

LABELS = ["car", "Sofa", "owl", "hour hand", "unicorn", "7 of hearts", "great white shark"]
TEMPLATES = ["a photo of a {}.", "A bad photo of the {}.", "itap of my {}.", "a origami {}."]


def of_kind(kind: str, labels: list[str] = LABELS, **options: object) -> dict[str, Rewording]:
    templates = options.pop("templates", TEMPLATES)
    found = rewordings(labels, templates, [kind], **options)  # type: ignore[arg-type]
    assert {one.kind for one in found} <= {kind}
    return {one.name: one for one in found}


def test_templates_in_other_words() -> None:
    found = of_kind("wording")
    assert found["picture"].templates == (
        "a picture of a {}.",
        "A bad picture of the {}.",
        *TEMPLATES[2:],
    )
    assert (found["picture"].changed, found["picture"].of) == (2, 4)
    assert found["image"].templates[:2] == ("an image of a {}.", "A bad image of the {}.")
    assert found["showing"].templates[0] == "an image showing a {}."
    assert found["adjectives"].templates == (
        TEMPLATES[0],
        "A poor photo of the {}.",
        *TEMPLATES[2:],
    )
    assert all(one.labels == tuple(LABELS) for one in found.values())
    # Both at once: the large one does not become large again
    swapped = of_kind("wording", templates=["a big {} by a large photo"])["adjectives"]
    assert swapped.templates == ("a large {} by a big photo",)
    assert of_kind("wording", templates=["Photo of {}"])["image"].templates == ("Image of {}",)
    assert "picture" not in of_kind("wording", templates=["{} in photos"])


def test_labels_by_another_name() -> None:
    found = of_kind("synonym")
    assert found["synonym 1"].labels == ("automobile", "Couch", *LABELS[2:])
    assert found["synonym 2"].labels == ("motorcar", "Settee", *LABELS[2:])
    assert (found["synonym 1"].changed, found["synonym 1"].of) == (2, 7)
    # A synonym that is a label itself would merge two classes
    assert [one.labels for one in of_kind("synonym", ["car", "automobile"]).values()] == [
        ("motorcar", "automobile")
    ]
    assert of_kind("synonym", ["Passion-Fruit"])["synonym 1"].labels == ("Passionfruit",)


def test_articles() -> None:
    found = of_kind("article")
    first = {prompts[0] for prompts in found["a or an"].prompts()}
    assert first == {
        f"a photo of {words}."
        for words in (
            "a car",
            "a Sofa",
            "an owl",
            "an hour hand",
            "a unicorn",
            "a 7 of hearts",
            "a great white shark",
        )
    }
    # "a" is wrong before two labels alone, "the" differs from "a" and "an" everywhere
    assert (found["a or an"].changed, found["a or an"].of) == (2, 4)
    assert found["a or an"].prompts()[2][1] == "A bad photo of an owl."
    assert found["the"].templates == ("a photo of the {}.", *TEMPLATES[1:])
    assert found["none"].templates == ("a photo of {}.", "A bad photo of {}.", *TEMPLATES[2:])
    assert of_kind("article", templates=["A {} here"])["the"].templates == ("The {} here",)
    assert "a or an" not in of_kind("article", ["cat", "dog"], templates=["a {}"])


def test_cases() -> None:
    found = of_kind("case", ["Lay's chips", "USB stick"])
    assert {name: one.labels for name, one in found.items()} == {
        "lower": ("lay's chips", "usb stick"),
        "upper": ("LAY'S CHIPS", "USB STICK"),
        "title": ("Lay's Chips", "USB Stick"),
    }
    assert list(of_kind("case", ["cat"])) == ["upper", "title"]


def test_typos() -> None:
    found = of_kind("typo", seed=5)
    assert list(found) == ["transposition", "dropped letter"]
    for name, makes in (("transposition", transpositions), ("dropped letter", dropped_letters)):
        made = found[name]
        for old, new in zip(LABELS, made.labels, strict=True):
            assert new in makes(old) or (new == old and not makes(old))
            assert new[0] == old[0]
        assert made.changed == sum(bool(makes(label)) for label in LABELS) == 5
        # A label's typo does not depend on its neighbours
        assert of_kind("typo", LABELS[::-1], seed=5)[name].labels == made.labels[::-1]
    assert of_kind("typo", seed=6)["dropped letter"].labels != found["dropped letter"].labels


def test_typos_merge_no_classes() -> None:
    labels = ["bird", "brid", "bidr", "brd"]
    for seed in range(20):
        for made in rewordings(labels, "one", ["typo"], seed):
            assert len(set(made.labels)) == 4
            assert made.labels[0] not in labels[1:]


def test_digits() -> None:
    found = of_kind("digits", ["7", "eight", "platform 42", "Boeing 747"])
    assert found["digits to words"].labels == ("seven", "eight", "platform forty-two", "Boeing 747")
    assert found["words to digits"].labels == ("7", "8", "platform 42", "Boeing 747")
    assert (found["digits to words"].changed, found["words to digits"].changed) == (2, 1)
    assert of_kind("digits", ["7", "seven"]) == {}


def test_korean() -> None:
    found = of_kind("language", ["cat", "Sweet-Potato", "ukelele"], templates=["a {}.", "the {}."])
    assert list(found) == ["Korean templates", "Korean names", "Korean templates and names"]
    alone, names, both = found.values()
    assert alone.prompts()[0] == ["cat의 사진", "cat 사진"]
    assert names.labels == both.labels == ("고양이", "고구마", "ukelele")
    assert names.templates == ("a {}.", "the {}.")
    assert both.prompts()[0] == ["고양이의 사진", "고양이 사진"]
    assert [(one.changed, one.of) for one in found.values()] == [(2, 2), (2, 3), (4, 5)]
    # Two things of one name in Korean: the second keeps its own
    assert of_kind("language", ["pear", "ship"])["Korean names"].labels == ("배", "ship")


@pytest.mark.parametrize("templates", ["imagenet-80", "cifar", "digits", TEMPLATES])
def test_what_holds_for_all(templates: str | list[str]) -> None:
    labels = [*LABELS, "automobile", "7", "seven", "OWLS", "couch", "pear", "ship"]
    texts = template_sets()[templates]["templates"] if isinstance(templates, str) else templates
    before = prompts_of(labels, texts)
    found = rewordings(labels, templates, seed=1)
    assert len({(one.kind, one.name) for one in found}) == len(found)
    for one in found:
        assert len(one.labels) == len({label.casefold() for label in one.labels}) == len(labels)
        assert (list(one.labels), one.prompts()) != (labels, before)
        assert 0 < one.changed <= one.of
        assert one.prompts() == prompts_of(one.labels, one.templates)
        asdict(one)
    assert found == rewordings(labels, templates, seed=1)
    kinds = {one.kind for one in found}
    assert kinds | set(left_out(labels, templates)) == set(KINDS)
    assert not kinds & set(left_out(labels, templates))


def test_reasons() -> None:
    reasons = left_out(["ox", "鹿"], ["鹿 {}"])
    assert list(reasons) == ["wording", "synonym", "article", "typo", "digits"]
    assert left_out(["7"], "digits", ["case", "digits"]).keys() == {"case"}


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r'"synonim".*did you mean "synonym"'):
        rewordings(["a"], "one", ["synonim"])
    with pytest.raises(InputError, match="descriptions of each label"):
        rewordings(["a"], {"a": ["an a"]})
    with pytest.raises(PromptError, match=r"has no \{\}"):
        rewordings(["a"], ["no place"])
    with pytest.raises(InputError, match="more than once"):
        rewordings(["a", "a"], "one")
