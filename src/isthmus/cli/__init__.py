"""The command line: one file per verb, each the twin of a Python function.

Nothing heavy is imported here or at the top of a verb's file, so that `isthmus --help` answers at
once. Every error raised on purpose, and every one of the machine (a full disk, a folder that may
not be written), ends as one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys

import typer

from isthmus.cli.ask import ask
from isthmus.cli.assets import assets
from isthmus.cli.chat import chat
from isthmus.cli.classify import classify
from isthmus.cli.data import data
from isthmus.cli.eval import eval_
from isthmus.cli.features import features
from isthmus.cli.info import info
from isthmus.cli.list import list_
from isthmus.cli.rationales import rationales
from isthmus.cli.search import search
from isthmus.cli.serve import serve
from isthmus.cli.train import train

app = typer.Typer(
    name="isthmus",
    help="Join any vision encoder to any language model by training only the strip between them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(ask)
app.command()(chat)
app.command()(classify)
app.command()(search)
app.command()(train)
app.command("eval")(eval_)
app.command()(info)
app.command("list")(list_)
app.command()(assets)
app.command()(features)
app.command()(rationales)
app.command()(serve)
app.add_typer(data, name="data")


def main() -> None:
    """Runs the command line; the console script."""
    from isthmus.errors import IsthmusError, TrainingStopped

    try:
        app()
    except TrainingStopped as error:  # what a shell reports of a process ended by SIGTERM
        print(error, file=sys.stderr)
        raise SystemExit(143) from None
    except IsthmusError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # a full disk, a folder that cannot be made: the machine's, not ours
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
