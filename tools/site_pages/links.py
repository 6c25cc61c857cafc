"""Links that leave docs/, and the files of the repository that the site shows because of them.

The pages are read in the repository too, so their links are relative to their place there. A link
to a Markdown file, a configuration or an image outside of docs/ makes that file a part of the site,
at the same path. A link to anything else becomes its text. The README is the site's first page in
another form, so links to it lead there. `<img>`, which GitHub needs for a width, becomes Markdown:
MkDocs leaves the addresses of HTML as they are, and a page of the site lies one folder deeper.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^()\s#]+)(#[^()\s]*)?\)"
)
CODE = re.compile(r"^(`{3,}).*?^\1`*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
IMG = re.compile(r'<img src="([^"]+)" ((?:width|height)="\d+") alt="([^"]*)">')
SHOWN = (".md", ".toml", ".jpg", ".png", ".svg")
"""Endings of the files that become a part of the site."""


def rewritten(text: str, place: str, root: Path) -> tuple[str, set[str]]:
    """A page with the links that it has in the site.

    Args:
        text: The page.
        place: Its path in the repository, such as "docs/prompting.md".
        root: The repository.

    Returns:
        The text, and the paths in the repository of the files outside of docs/ that it links to.

    Example:
        >>> root = Path(__file__).parents[2]
        >>> rewritten("[card](../recipes/tiny/README.md#measured)", "docs/prompting.md", root)
        ('[card](recipes/tiny/README.md#measured)', {'recipes/tiny/README.md'})
    """
    shown: set[str] = set()
    here = posixpath.dirname(site_place(place))

    def replace(match: re.Match[str]) -> str:
        image, words, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        if path.startswith("docs/"):
            if place.startswith("docs/"):
                return match.group()
        elif path == "README.md":
            path = "docs/index.md"
        elif not (root / path).is_file() or not path.endswith(SHOWN):
            return match.group() if image else words
        else:
            shown.add(path)
        new = posixpath.relpath(site_place(path), here or ".")
        return f"{image}[{words}]({new}{anchor or ''})"

    def change(part: str) -> str:
        return LINK.sub(replace, IMG.sub(r"![\3](\1){ \2 }", part))

    return _outside_code(text, change), shown


def site_place(path: str) -> str:
    """Where a file of the repository stands in the site."""
    return path.removeprefix("docs/")


def reachable(starts: dict[str, str], root: Path) -> dict[str, str | None]:
    """Every file outside of docs/ that is part of the site, with its text there if it is a page.

    Args:
        starts: Pages by their path in the repository.
        root: The repository.
    """
    found: dict[str, str | None] = {}
    waiting = sorted({p for place, text in starts.items() for p in rewritten(text, place, root)[1]})
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        if path.endswith(".md"):
            text = (root / path).read_text(encoding="utf-8")
            found[path], linked = rewritten(text, path, root)
            waiting.extend(linked)
    return found


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with a change made to all that is no code."""
    parts, end = [], 0
    for match in CODE.finditer(text):
        parts += [change(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, change(text[end:])])
