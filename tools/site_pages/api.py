"""The API reference: a page for every public name of `isthmus`, and a table of them.

The text of each page is its docstring, which mkdocstrings reads; only the list is made here. Names
that differ in case alone (`audit`, `Audit`) stand in different folders, since not every file system
tells them apart.
"""

from __future__ import annotations

import ast
from pathlib import Path

import isthmus

FOLDER = "reference/api"
GROUPS = {
    "functions": "Functions",
    "classes": "Classes",
    "settings": "Configurations and settings",
    "errors": "Errors",
}


def public_names() -> dict[str, list[tuple[str, str]]]:
    """The public names by group, each with the first line of its docstring.

    The order is that of `isthmus._HOMES`: the one in which a newcomer meets them.
    """
    found: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
    for home, names in isthmus._HOMES.items():
        tree = ast.parse(_file(home).read_text(encoding="utf-8"))
        defined = {
            node.name: node
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for name in names:
            node = defined[name]
            about = (ast.get_docstring(node) or "").partition("\n")[0]
            found[_group(home, node)].append((name, about))
    return found


def _file(module: str) -> Path:
    """The file of a module, found without importing it."""
    path = Path(isthmus.__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _group(home: str, node: ast.stmt) -> str:
    if home == "isthmus.errors":
        return "errors"
    if not isinstance(node, ast.ClassDef):
        return "functions"
    bases = {ast.unparse(base) for base in node.bases}
    return "settings" if "Config" in bases or node.name == "ServerSettings" else "classes"


def pages() -> dict[str, str]:
    """Markdown of each page by its place in the site, the table of contents first."""
    found = {f"{FOLDER}/index.md": _contents()}
    for group, names in public_names().items():
        for name, _ in names:
            home = isthmus._HOME_OF[name]
            found[f"{FOLDER}/{group}/{name}.md"] = (
                f"---\ntitle: {name}\n---\n\n::: isthmus.{name}\n\n"
                f"Defined in `{home}`; `from isthmus import {name}`.\n"
            )
    return found


def navigation() -> list[dict[str, list[dict[str, str]]] | str]:
    """The pages as a part of the site's navigation."""
    groups: list[dict[str, list[dict[str, str]]] | str] = [f"{FOLDER}/index.md"]
    for group, names in public_names().items():
        groups.append({GROUPS[group]: [{n: f"{FOLDER}/{group}/{n}.md"} for n, _ in names]})
    return groups


def _contents() -> str:
    """The table of contents."""
    parts = [
        "# Python API",
        "Everything public is a name of the package: `import isthmus as im`, then `im.load`. "
        "Importing it costs nothing; a name's module is imported when it is first used.",
    ]
    for group, names in public_names().items():
        rows = [f"| [`{name}`]({group}/{name}.md) | {about} |" for name, about in names]
        parts.append("\n".join([f"## {GROUPS[group]}\n", "| name | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"
