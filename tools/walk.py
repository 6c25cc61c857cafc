"""How far a request travels through the code: files, calls and moves between files.

    python tools/walk.py [ask|http ...] [--files]

`ask` is one `im.ask` of the shipped model about a photograph, up to the first adapter of the
language model. `http` is one request to `/v1/chat/completions`, in the same process, from the
request's first byte to the end of a reply of one token. Only functions of this package count. A
move is a call, in one thread, whose caller stands in another file of the package. The model is
loaded, the server built and a first request answered before a walk begins: what is counted is what
a request costs and not what a start costs.

It prints a line for each walk: `walk NAME files N calls N moves N threads N`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SRC = str(ROOT / "src" / "isthmus")
PHOTO = ROOT / "examples" / "coffee.jpg"
QUESTION = "What is in the picture?"


class Arrived(BaseException):
    """Ends a walk; no error handler of the package may catch it."""


class Walk:
    """Counts calls of the package's functions while it is open.

    Args:
        until: The qualified name of the function at which the walk ends; empty for never.
    """

    def __init__(self, until: str = "") -> None:
        self.until = until
        self.calls: Counter[str] = Counter()
        self.moves = 0
        self.threads: set[int] = set()
        self.counting = False
        self._last: dict[int, list[str]] = {}

    def see(self, frame: FrameType, event: str, argument: Any) -> None:
        """The profiler: told of every call and return of Python functions."""
        path = frame.f_code.co_filename
        if event not in ("call", "return") or not path.startswith(SRC) or not self.counting:
            return
        thread = threading.get_ident()
        stack = self._last.setdefault(thread, [])
        if event == "return":
            if stack:
                stack.pop()
            return
        if frame.f_code.co_name == "<module>":
            stack.append(path)  # an import is no walk, but what follows returns to it
            return
        self.threads.add(thread)
        self.calls[path] += 1
        self.moves += bool(stack) and stack[-1] != path
        stack.append(path)
        if self.until and frame.f_code.co_qualname == self.until:
            raise Arrived

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Counts what happens inside, in this thread and in those that begin in it."""
        threading.setprofile(self.see)
        sys.setprofile(self.see)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def told(self, name: str, files: bool) -> str:
        """The walk in one line, and below it its files, the busiest first."""
        line = (
            f"walk {name} files {len(self.calls)} calls {self.calls.total()} "
            f"moves {self.moves} threads {len(self.threads)}"
        )
        if not files:
            return line
        rows = [f"  {count:5d} {path[len(SRC) + 1 :]}" for path, count in self.calls.most_common()]
        return "\n".join([line, *rows])


def ask() -> Walk:
    """From a question to the first adapter."""
    import isthmus as im

    model = im.load("tiny")
    im.ask(model, str(PHOTO), QUESTION, max_new_tokens=1)  # what the first call alone does
    walk = Walk(until="LowRank.forward")
    walk.counting = True
    with walk.open(), contextlib.suppress(Arrived):
        im.ask(model, str(PHOTO), QUESTION, max_new_tokens=1)
    return walk


def http() -> Walk:
    """From a request to its reply of one token."""
    from starlette.testclient import TestClient

    import isthmus as im
    from isthmus.serving.app import create_app

    walk = Walk()
    image = base64.b64encode(PHOTO.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
        {"type": "text", "text": QUESTION},
    ]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
    }
    with (
        walk.open(),
        TestClient(create_app(im.load("tiny")), base_url="http://127.0.0.1") as client,
    ):
        body["model"] = client.get("/v1/models").json()["data"][0]["id"]
        client.post("/v1/chat/completions", json=body)
        walk.counting = True
        reply = client.post("/v1/chat/completions", json=body)
        walk.counting = False
    if reply.status_code != 200:
        raise SystemExit(f"the server answered {reply.status_code}: {reply.text}")
    return walk


def main() -> None:
    """Takes the walks that are named, or both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("walks", nargs="*", default=["ask", "http"])
    parser.add_argument("--files", action="store_true", help="list the files")
    options = parser.parse_args()
    takes = {"ask": ask, "http": http}
    for name in options.walks:
        if name not in takes:
            parser.error(f'got "{name}", expected one of {", ".join(takes)}')
        with contextlib.redirect_stdout(io.StringIO()):
            walk = takes[name]()
        print(walk.told(name, options.files))


if __name__ == "__main__":
    main()
