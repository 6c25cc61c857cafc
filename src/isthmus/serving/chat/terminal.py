"""A conversation in a shell."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from isthmus.errors import InputError, IsthmusError
from isthmus.media.image import open_image
from isthmus.serving.chat.session import Session
from isthmus.serving.completions import Service
from isthmus.serving.refusals import Refusal

HELP = """\
  anything          a question; images shown before belong to it
  /image PATH...    show images with the next question; "a name with spaces.jpg" in quotes
  /shot ANSWER      make a worked example of the last image and question
  /steps on|off     think step by step
  /new              a new conversation; worked examples stay
  /quit             leave (or Ctrl-D); Ctrl-C stops an answer"""


class Terminal:
    """Reads lines, writes answers.

    Args:
        service: Answers.
        lines: Where lines are read from.
        out: Where answers go; everything else goes to stderr.

    Attributes:
        session: The conversation.
        steps: Whether answers are reached in steps.
    """

    def __init__(self, service: Service, lines: TextIO, out: TextIO) -> None:
        self.service = service
        self.lines = lines
        self.out = out
        self.session = Session()
        self.steps = False
        self._shown: list[bytes] = []

    def run(self) -> None:
        """Until there are no more lines, or somebody leaves."""
        asked = self.lines.isatty()
        with asyncio.Runner() as runner:
            while True:
                if asked:
                    print("> ", end="", file=sys.stderr, flush=True)
                try:
                    line = self.lines.readline()
                except KeyboardInterrupt:
                    print(file=sys.stderr)
                    return
                if not line or not self._act(line.strip(), runner):
                    return

    def _act(self, line: str, runner: asyncio.Runner) -> bool:
        """Does what a line says; false to leave."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        commands: dict[str, Callable[[], None]] = {
            "/image": lambda: self._show(rest),
            "/shot": lambda: self._shot(rest),
            "/steps": lambda: self._switch(rest),
            "/new": self._anew,
            "/help": lambda: self._tell(HELP),
        }
        if command in ("/quit", "/exit"):
            return False
        if command in commands:
            commands[command]()
        elif command.startswith("/"):
            self._tell(f"there is no {command}; available:\n{HELP}")
        elif line:
            try:
                runner.run(self._answer(line))
            except KeyboardInterrupt:
                self.out.write("\n")
                self._tell("stopped")
            except (Refusal, IsthmusError) as error:
                self._tell(f"error: {error}")
        return True

    async def _answer(self, question: str) -> None:
        images, self._shown = list(self._shown), []
        told = thought = ""
        async for reply in self.session.ask(self.service, question, images, steps=self.steps):
            if reply.rationale != thought and not reply.done:
                print(reply.rationale[len(thought) :], end="", file=sys.stderr, flush=True)
                thought = reply.rationale
            if reply.answer != told and not reply.done:
                if thought and not told:
                    print(file=sys.stderr, flush=True)
                self.out.write(reply.answer[len(told) :])
                self.out.flush()
                told = reply.answer
        self.out.write("\n")
        self.out.flush()

    def _show(self, said: str) -> None:
        try:
            paths = _paths(said)
            for path in paths:
                open_image(path)
            self._shown += [path.read_bytes() for path in paths]
        except (IsthmusError, OSError) as error:
            self._tell(f"error: {error}")
            return
        self._tell(f"{len(self._shown)} shown with the next question")

    def _shot(self, answer: str) -> None:
        if self.session.add_shot(answer):
            self._tell(f"{len(self.session.shots)} worked examples")
        else:
            self._tell("ask about an image first, then say /shot and the right answer")

    def _switch(self, said: str) -> None:
        if said not in ("on", "off"):
            self._tell("say /steps on, or /steps off")
            return
        self.steps = said == "on"

    def _anew(self) -> None:
        self.session.start_anew()
        self._shown.clear()

    def _tell(self, what: str) -> None:
        print(what, file=sys.stderr, flush=True)


def _paths(said: str) -> list[Path]:
    """The paths in a line: one as it is if there is such a file, otherwise as a shell reads them.

    Raises:
        InputError: If there is none, or a quote is not closed.
    """
    whole = Path(said).expanduser()
    if said and whole.is_file():
        return [whole]
    try:
        parts = shlex.split(said)
    except ValueError as error:
        raise InputError(f"{said} cannot be read ({error}): close the quote") from error
    if not parts:
        raise InputError("no path: say /image and a file, in quotes if its name has spaces")
    return [Path(part).expanduser() for part in parts]
