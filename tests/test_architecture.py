"""The shape of the code base: who may import whom, how long a file may be, what is public."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import isthmus

SRC = Path(__file__).parent.parent / "src" / "isthmus"
MOST_LINES = 400

# Lowest first: a room imports its own layer and those before it. A room is a package or a file.
LAYERS = [
    {"errors"},
    {"files", "cpu", "machine", "config"},
    {"media", "prompts", "assets"},
    {"reports", "diagnosis"},
    {"model"},
    {"generation", "data", "released"},
    {"classification", "search", "reasoning"},
    {"demonstrations"},
    {"training", "testing", "evaluation", "exporting", "catalogue"},
    {"auditing", "explaining", "serving"},
    {"cli"},
]
LAYER_OF = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PURE = {name for names in LAYERS[:4] for name in names} | {"catalogue"}
HEAVY = {"torch", "transformers", "timm", "open_clip", "peft"}


def imports(path: Path, *, top_level_only: bool = False, for_types: bool = False) -> set[str]:
    """Dotted names that a file imports; under TYPE_CHECKING only with `for_types`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.update(a.name for a in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
                found.update(f"{node.module}.{a.name}" for a in node.names)
            elif (
                isinstance(node, ast.If)
                and "TYPE_CHECKING" in ast.unparse(node.test)
                and not for_types
            ) or (top_level_only and isinstance(node, ast.FunctionDef | ast.ClassDef)):
                continue
            else:
                for field in ("body", "orelse", "finalbody"):
                    visit(getattr(node, field, []))
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)

    visit(tree.body)
    return found


def layer_name(dotted: str) -> str | None:
    """The layer's member that `isthmus.x.y` belongs to; None for other packages."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "isthmus" and len(parts) > 1 else None


def violations(files: dict[str, set[str]]) -> list[str]:
    """Imports that point upwards."""
    bad = []
    for own, imported in files.items():
        for dotted in imported:
            other = layer_name(dotted)
            if other in LAYER_OF and LAYER_OF[other] > LAYER_OF[own]:
                bad.append(f"{own} imports {dotted}")
    return sorted(bad)


def sources() -> list[Path]:
    return [p for p in sorted(SRC.rglob("*.py")) if p != SRC / "__init__.py"]


def owner(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def test_every_module_has_a_layer() -> None:
    assert {owner(p) for p in sources()} == set(LAYER_OF)


def test_dependencies_point_one_way() -> None:
    found: dict[str, set[str]] = {}
    for path in sources():
        found.setdefault(owner(path), set()).update(imports(path))
    assert violations(found) == []


def test_the_direction_test_can_fail() -> None:
    assert violations({"errors": {"isthmus.model.vlm"}}) == ["errors imports isthmus.model.vlm"]


def module_name(path: Path) -> str:
    """The dotted name of a file; that of the package for an `__init__.py`."""
    parts = ("isthmus", *path.relative_to(SRC).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other, in order; empty where there are none."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_each_other() -> None:
    """Imports inside functions and for types count: a circle hidden is a circle."""
    files = {module_name(p): p for p in sources()}
    graph = {n: (imports(p, for_types=True) & set(files)) - {n} for n, p in files.items()}
    assert circle(graph) == []


def test_the_circle_test_can_fail() -> None:
    assert set(circle({"a": {"b"}, "b": {"a"}})) == {"a", "b"}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(SRC)))
def test_files_are_readable_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    "path", [p for p in sources() if owner(p) in PURE | {"cli"}], ids=lambda p: p.stem
)
def test_pure_modules_import_nothing_heavy_at_the_top(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    assert not roots & HEAVY


def loaded_modules(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after running some code."""
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


HELP = """
import contextlib, io
from isthmus.cli import app
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    app(["--help"])
"""


def test_help_and_the_package_import_no_torch() -> None:
    assert not loaded_modules(HELP) & HEAVY
    assert not loaded_modules("import isthmus") & HEAVY


def test_the_import_test_can_fail() -> None:
    assert "torch" in loaded_modules(HELP + "\nimport isthmus; isthmus.compose")


def test_every_public_name_resolves_and_is_listed_once() -> None:
    assert len(set(isthmus.__all__)) == len(isthmus.__all__)
    for name in isthmus.__all__:
        assert getattr(isthmus, name).__name__ == name or name == "Connector"
    assert set(isthmus._HOME_OF) == set(isthmus.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resampel'"):
        _ = isthmus.resampel


def test_no_public_name_is_a_module_s_too() -> None:
    # `isthmus.x` would be one or the other, whichever was imported last
    modules = {p.stem for p in SRC.glob("*.py")} | {p.name for p in SRC.iterdir() if p.is_dir()}
    assert not modules & set(isthmus.__all__)
    for name, home in isthmus._HOME_OF.items():
        assert home.rpartition(".")[2] != name, home


TWINS = {
    "ask": "ask",
    "chat": "open_chat",
    "audit": "audit",
    "classify": "classify_images",
    "search": "search_images",
    "train": "train",
    "eval": "evaluate",
    "info": "probe",  # and a model's own `summary`
    "list": "available",
    "assets": "fetch_asset",
    "features": "compute_features",
    "rationales": "write_rationales",
    "serve": "serve",
    "data": "check_data",
    "export": "export",
    "doctor": "diagnose",
    "explain": "explain",
}


def test_every_verb_has_a_python_twin() -> None:
    from isthmus.cli import app

    verbs = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    verbs |= {str(group.name) for group in app.registered_groups}
    assert verbs == set(TWINS)
    assert set(TWINS.values()) <= set(isthmus.__all__)


def test_the_verbs_hold_no_logic_of_their_own() -> None:
    """A verb parses, calls its twin and prints: it loads no model and computes nothing."""
    for path in (SRC / "cli").glob("*.py"):
        used = imports(path)
        assert not used & HEAVY, path
        assert not {name for name in used if name.startswith("isthmus.generation")}, path


def test_one_meaning_of_device_and_dtype() -> None:
    import inspect

    from isthmus.cli import app

    for command in app.registered_commands:
        assert command.callback is not None
        found = inspect.signature(command.callback).parameters
        name = command.name or command.callback.__name__
        if name in ("list", "assets", "doctor"):  # no model
            continue
        for option in ("device", "dtype"):
            assert found[option].default == "auto", name
        assert found["threads"].default is None, name
