"""What MkDocs calls while it builds the site (`hooks` in mkdocs.yml)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import lecture  # noqa: E402
from site_pages import api, commands, configuration, figure, links  # noqa: E402

MADE: dict[str, Callable[[], str]] = {
    "<!-- made: configuration -->": configuration.pages,
    "<!-- made: commands -->": commands.pages,
    "<!-- made: figure -->": lambda: f'<div class="drawing">\n{figure.drawing()}</div>',
}
"""Marks in pages, and what takes their place."""
HISTORY = ("decisions.md", "CHANGELOG.md", "results.md", "recipes/tiny/LOG.md")
WEIGHTS = {**dict.fromkeys(HISTORY, 0.02), "reference/commands.md": 2.0}
"""What a page counts for in a search: history mentions everything and explains little, and an
option is looked up where its command is."""


def on_config(config: Any) -> None:
    """Puts pages into the navigation, in place of their first one: of the API, of the lecture."""
    languages = {f"lecture/{name}/index.md": name for name in lecture.HEADS}
    for section in config["nav"]:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and "Python API" in entry:
                    entry["Python API"] = api.navigation()
                for name, place in entry.items() if isinstance(entry, dict) else ():
                    if isinstance(place, str) and place in languages:
                        own = [page.name for page in lecture.pages(languages[place])]
                        entry[name] = [place, *(place.replace("index.md", page) for page in own)]


def on_files(files: Files, config: Any) -> None:
    """Adds what is not in docs/: the pages of the API, and files that pages link to."""
    for place, text in api.pages().items():
        files.append(File.generated(config, place, content=text))
    root = Path(config["config_file_path"]).parent
    starts = {
        f"docs/{file.src_uri}": file.content_string
        for file in files.documentation_pages()
        if not file.generated_by
    }
    starts["mkdocs.yml"] = "\n".join(f"[]({place})" for place in outside(config["nav"]))
    for place, page in links.reachable(starts, root).items():
        if page is None:
            files.append(File.generated(config, place, abs_src_path=str(root / place)))
        else:
            files.append(File.generated(config, place, content=page))


def outside(nav: Any) -> list[str]:
    """The pages of the navigation that are files of the repository outside of docs/."""
    if isinstance(nav, str):
        return [nav] if (ROOT / nav).is_file() and not (ROOT / "docs" / nav).is_file() else []
    entries = nav.values() if isinstance(nav, dict) else nav
    return [place for entry in entries for place in outside(entry)]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fills marks in, and leads links out of docs/ to where the site has their files."""
    if not page.file.generated_by:
        root = Path(config["config_file_path"]).parent
        markdown, _ = links.rewritten(markdown, f"docs/{page.file.src_uri}", root)
    if page.file.src_uri in WEIGHTS:
        page.meta["search"] = {"boost": WEIGHTS[page.file.src_uri]}
    if page.file.src_uri.startswith("lecture/"):
        language = page.file.src_uri.split("/")[1]
        if lecture.MARK in markdown:
            markdown = markdown.replace(lecture.MARK, lecture.table(language))
        markdown = lecture.shown(markdown)
    for mark, make in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown
