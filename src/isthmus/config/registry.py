"""Names of parts: built-in ones, those of installed packages, and `package.module:Class`. No torch.

A part (a connector, a fusion, an evaluation task) can be named in three ways, wherever a name is
taken: in a configuration file, on the command line and in a saved model.

    resampler                  built in: registered by a file of the registry's own package
    mean                       an entry point of an installed package
    my_package.module:Mean     a class or function that this environment can import

A built-in part registers itself where it is defined, so its file is all there is to it:

    @CONNECTORS.register("linear")
    @dataclass(frozen=True, kw_only=True)
    class Linear(Config): ...

Another package offers a part by an entry point in its `pyproject.toml`:

    [project.entry-points."isthmus.connectors"]
    mean = "my_package.module:Mean"

To resolve a name of the second or third kind is to run code. Isthmus imports what the environment
has installed and nothing else: it downloads no code, and a saved model brings none.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from isthmus.errors import ConfigError, suggestion

T = TypeVar("T")


class Registry:
    """The parts of one kind, by name.

    Args:
        kind: What a part is, for messages ("connector").
        package: The package whose files register the built-in parts; imported on first use.
        group: The group of entry points in which other packages offer parts.
        method: What a part must have (the configuration of a connector has `build`).

    Example:
        >>> shapes = Registry("shape", package="isthmus.reports", group="isthmus.shapes")
        >>> @shapes.register("square")
        ... class Square: ...
        >>> shapes.find("square").__name__, shapes.name_of(Square)
        ('Square', 'square')
    """

    def __init__(self, kind: str, *, package: str, group: str, method: str = "__call__") -> None:
        self.kind, self.package, self.group, self.method = kind, package, group, method
        self._built_in: dict[str, Any] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that gives a part its name.

        Raises:
            ConfigError: If another part has the name.
        """

        def decorate(part: T) -> T:
            other = self._built_in.get(name, part)
            if _path(other) != _path(part):  # a reloaded module may define its part anew
                raise ConfigError(f'the {self.kind} "{name}" is there twice: {other} and {part}')
            self._built_in[name] = part
            return part

        return decorate

    def built_in(self) -> dict[str, Any]:
        """The built-in parts by name; imports the files that register them."""
        if not self._complete:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._complete = True
        return dict(sorted(self._built_in.items()))

    def offered(self) -> dict[str, str]:
        """What installed packages offer: the name of each entry point, and what it points to."""
        return {e.name: e.value for e in metadata.entry_points(group=self.group)}

    def package_of(self, name: str) -> str:
        """The installed package that offers a part by an entry point; "" if none does."""
        found = metadata.entry_points(group=self.group, name=name)
        return next((e.dist.name for e in found if e.dist is not None), "")

    def names(self) -> list[str]:
        """All names that need no colon, in order."""
        return sorted({*self.built_in(), *self.offered()})

    def find(self, name: str, *, untrusted: Path | None = None) -> Any:
        """The part of a name.

        Args:
            name: "resampler", an entry point's name, or "package.module:Class".
            untrusted: A folder from which no code is imported, where the name was read from a
                file in it.

        Raises:
            ConfigError: If there is no such part, or its code cannot be imported or is no part.

        Example:
            >>> CONNECTORS.find("resampel")
            Traceback (most recent call last):
            ...
            isthmus.errors.ConfigError: unknown connector "resampel": did you mean "resampler"? ...
        """
        if name in self._built_in:
            return self._built_in[name]
        target = name if ":" in name else self.offered().get(name)
        if target is not None and name not in self.built_in():
            part = self._imported(name, target, untrusted)
            if not callable(getattr(part, self.method, None)):
                raise ConfigError(
                    f'"{name}" is no {self.kind}: {part!r} has no method "{self.method}"'
                )
            return part
        built_in = self.built_in()
        if name not in built_in:
            known = suggestion(name, self.names())
            raise ConfigError(f'unknown {self.kind} "{name}": {known}, package.module:Class')
        return built_in[name]

    def _imported(self, name: str, target: str, untrusted: Path | None) -> Any:
        """What an entry point, or a name with a colon, points to."""
        module, _, attribute = target.partition(":")
        if not module or not attribute:
            raise ConfigError(f'the {self.kind} "{name}": expected package.module:Class')
        remedy = (
            "install the package that defines it, or name its folder in PYTHONPATH "
            "(it is code, which a configuration or a saved model does not bring along)"
        )
        try:
            if untrusted is not None and _lies_in(module, untrusted):
                raise ConfigError(
                    f'the {self.kind} "{name}" is code that lies beside the saved model in '
                    f"{untrusted}: it is not run; if you trust it, move it elsewhere and {remedy}"
                )
            part: Any = importlib.import_module(module)
            for step in attribute.split("."):
                part = getattr(part, step)
        except ConfigError:
            raise
        except Exception as error:  # whatever foreign code raises, there is no part
            raise ConfigError(
                f'cannot import the {self.kind} "{name}" '
                f"({type(error).__name__}: {error}): {remedy}"
            ) from error
        return part

    def name_of(self, part: Any) -> str:
        """The name that `find` takes for a part.

        Raises:
            ConfigError: If there is none, as for a class that was defined inside a function.
        """
        for name, other in self._built_in.items():
            if other is part:
                return name
        path = _path(part)
        for name, target in self.offered().items():
            if target.replace(" ", "") == path:
                return name
        if "<" in path:
            raise ConfigError(
                f"the {self.kind} {path} has no name by which it can be imported: define it at "
                "the top of a module"
            )
        return path


def _path(part: Any) -> str:
    return f"{part.__module__}:{part.__qualname__}"


def _lies_in(module: str, folder: Path) -> bool:
    """Whether the top-level package of a module would be imported from inside a folder."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else []
    places += list(spec.submodule_search_locations or ())
    return any(Path(p).resolve().is_relative_to(folder.resolve()) for p in places)


CONNECTORS = Registry(
    "connector", package="isthmus.model.connectors", group="isthmus.connectors", method="build"
)
"""Configurations of connectors: `build(shape, width, embeddings)` makes the module."""

FUSIONS = Registry(
    "fusion", package="isthmus.model.fusion", group="isthmus.fusions", method="build"
)
"""Configurations of fusions."""

MEDIA = Registry("medium", package="isthmus.model.media", group="isthmus.media", method="build")
"""Configurations of media besides images and clips: `build(parts)` makes the medium."""

RELEASED = Registry(
    "family of released models",
    package="isthmus.released",
    group="isthmus.released",
    method="parts",
)
"""Families of released vision-language models, by Transformers' model type."""

CHECKPOINTS = Registry(
    "reader of checkpoints",
    package="isthmus.released",
    group="isthmus.checkpoints",
    method="load",
)
"""Readers of other projects' checkpoints, which become models of parts of our own."""

TASK_MAKERS = Registry("task", package="isthmus.evaluation.tasks", group="isthmus.tasks")
"""Functions that make an evaluation task, from a seed or from a path. The built-in ones stand in
`evaluation.tasks.TASKS`."""
