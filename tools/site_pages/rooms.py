"""The rooms of the package and who imports whom, read from the sources and the architecture test.

A room is a package or a file of `src/isthmus`. Which layer it is in is written in one place,
`tests/test_architecture.py`, whose test holds that imports point down.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "isthmus"


@dataclass(frozen=True)
class Room:
    """A package or a file.

    Attributes:
        name: Its name.
        layer: The number of its layer, the lowest first.
        row: Its row in a drawing: above every room that it imports.
        lines: Lines of its sources.
        about: The first line of its docstring.
        imports: The rooms that it imports and that no other room of these imports for it.
    """

    name: str
    layer: int
    row: int
    lines: int
    about: str
    imports: tuple[str, ...]


def layers() -> list[set[str]]:
    """The layers that the architecture test enforces, the lowest first."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            found: list[set[str]] = ast.literal_eval(node.value)
            return found
    raise ValueError("tests/test_architecture.py has no LAYERS")


def rooms() -> list[Room]:
    """Every room, the lowest layer first."""
    ranks = {name: rank for rank, names in enumerate(layers()) for name in names}
    direct = {name: _imports(name) & set(ranks) - {name} for name in ranks}
    rows: dict[str, int] = {}
    first = 0
    for names in layers():
        for name in _in_order(names, direct):
            below = [rows[other] + 1 for other in direct[name] & names if other in rows]
            rows[name] = max([first, *below])
        first = max(rows[name] for name in names) + 1
    return [
        Room(name, rank, rows[name], _lines(name), _about(name), _nearest(name, direct))
        for name, rank in ranks.items()
    ]


def _in_order(names: set[str], direct: dict[str, set[str]]) -> list[str]:
    """The rooms of one layer, each behind those that it imports."""
    found: list[str] = []
    while left := sorted(names - set(found)):
        found += [n for n in left if not direct[n] & set(left)] or left
    return found


def _nearest(name: str, direct: dict[str, set[str]]) -> tuple[str, ...]:
    """What a room imports, without what it has through another room that it imports."""
    through: set[str] = set()
    waiting = [other for first in direct[name] for other in direct[first]]
    while waiting:
        other = waiting.pop()
        if other not in through:
            through.add(other)
            waiting.extend(direct[other])
    return tuple(sorted(direct[name] - through))


def files_of(name: str) -> list[Path]:
    """The sources of a room."""
    single = SRC / f"{name}.py"
    return [single] if single.is_file() else sorted((SRC / name).rglob("*.py"))


def _imports(name: str) -> set[str]:
    """The rooms that the files of a room import, inside functions too, but not for types alone."""
    found: set[str] = set()
    for path in files_of(name):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in _run(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            parts = [name.split(".") for name in names]
            found.update(p[1] for p in parts if p[0] == "isthmus" and len(p) > 1)
    return found


def _run(tree: ast.AST) -> list[ast.AST]:
    """Every node that can run: all but what stands under `if TYPE_CHECKING`."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        found.append(node)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def _lines(name: str) -> int:
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in files_of(name))


def _about(name: str) -> str:
    single = SRC / f"{name}.py"
    path = single if single.is_file() else SRC / name / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
