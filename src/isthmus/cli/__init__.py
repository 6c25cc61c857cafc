"""The command line: one file per verb, each the twin of a Python function.

A new file here is a new verb.

Nothing heavy is imported here or at the top of a verb's file, so that `isthmus --help` answers at
once. Every error raised on purpose, and every one of the machine (a full disk, a folder that may
not be written), ends as one line on stderr and exit code 2. Exit code 1 says that a part failed
and the rest was done, or that the reader of the output left; 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

INTERRUPTED, TERMINATED = 130, 143  # as shells report SIGINT and SIGTERM

app = typer.Typer(
    name="isthmus",
    help="Join any vision encoder to any language model by training only the strip between them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FIRST = ("ask", "chat", "classify", "search", "train", "eval")
"""What a newcomer looks for, and so the head of the help."""
NO_VERBS = {"__main__", "options", "output"}


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"isthmus {version('isthmus')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _add_verbs() -> None:
    """Adds the verb of each file here: what is named as the file, with a "_" where Python has it.

    A function is a command; a `typer.Typer` is a group of commands.
    """
    files = {module.name for module in pkgutil.iter_modules(__path__)} - NO_VERBS
    for name in (*FIRST, *sorted(files - set(FIRST))):
        file = importlib.import_module(f"{__name__}.{name}")
        verb = getattr(file, name, None) or getattr(file, f"{name}_")
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=name)
        else:
            app.command(name)(verb)


_add_verbs()


def main() -> None:
    """Runs the command line; the console script."""
    from isthmus.cli.output import prepare_streams
    from isthmus.machine import wait_briefly

    wait_briefly()  # before anything loads torch
    prepare_streams()
    raise SystemExit(_run())


def _run() -> int:
    """Runs the verb; the exit code."""
    from isthmus.cli.output import print_error
    from isthmus.errors import IsthmusError, TrainingStopped

    try:
        with _ended_in_order():
            try:
                app()
            finally:
                sys.stdout.flush()  # here, where a reader that has gone is no surprise
        return 0
    except SystemExit as ended:  # Typer's way, also of a misspelt option, a reader that left
        if ended.code == INTERRUPTED:
            print("stopped", file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else 0
    except TrainingStopped as error:
        print(error, file=sys.stderr)
        return TERMINATED
    except IsthmusError as error:
        print_error(error)
        return 2
    except BrokenPipeError:  # `isthmus ... | head`: enough was read
        _abandon_stdout()
        return 1
    except OSError as error:  # a full disk, a folder that cannot be made: the machine's, not ours
        place = f"{error.filename}: " if error.filename else ""
        print_error(f"{place}{error.strerror or error}")
        return 2
    except UnicodeEncodeError as error:  # bytes of another encoding where a text is expected
        print_error(f'"{error.object}" is not valid UTF-8: expected text in UTF-8')
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except _Terminated:
        print("stopped", file=sys.stderr)
        return TERMINATED


class _Terminated(BaseException):
    """SIGTERM came where no verb has a handler of its own."""


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends a verb as Ctrl-C does, so that what is open is closed; then verbs may differ."""

    def end(number: int, frame: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: whoever runs us there has handlers of their own
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _abandon_stdout() -> None:
    """Sends what is still buffered nowhere, or the interpreter complains of it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
