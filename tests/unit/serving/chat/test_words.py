"""The page's texts: each language has all of them."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from isthmus.serving import chat
from isthmus.serving.chat.words import LANGUAGES, language_of, words_in

CHAT = Path(chat.__file__).parent


def slots(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_every_language_has_every_text(code: str) -> None:
    english, own = words_in("en"), words_in(code)
    assert own.keys() == english.keys()
    for key, text in own.items():
        assert text.strip()
        assert slots(text) == slots(english[key]), key


def test_every_text_is_said_somewhere() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in CHAT.glob("[!w]*.py"))
    said = set(re.findall(r"""["']([a-z_]+)["']""", source))
    assert set(words_in("en")) - said == set()


def test_korean_is_korean() -> None:
    same = {key for key, text in words_in("ko").items() if text == words_in("en")[key]}
    assert same == set()


@pytest.mark.parametrize(
    ("accepted", "code"),
    [
        ("", "en"),
        ("ko", "ko"),
        ("ko-KR,ko;q=0.9,en-US;q=0.8", "ko"),
        ("en-GB,en;q=0.9,ko;q=0.8", "en"),
        ("fr-FR, ko;q=0.2, en;q=0.1", "ko"),
        ("de;q=x, *", "en"),
        ("fr", "en"),
    ],
)
def test_the_browsers_language(accepted: str, code: str) -> None:
    assert language_of(accepted) == code
