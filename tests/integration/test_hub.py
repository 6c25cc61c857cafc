"""A model goes to a hub and comes back, through `huggingface_hub` and real requests.

The hub is a small server of this test's. The program that talks to it is another process, since
`huggingface_hub` reads its address when it is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

pytestmark = pytest.mark.slow


class Hub(ThreadingHTTPServer):
    """Repositories with branches, as far as uploads and downloads of small files ask for them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.made: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.tokens: set[str] = set()


class Requests(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, told: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(told).encode(), Content_Type="application/json")

    def lacking(self, code: str) -> None:
        self.answer(404, b"{}", X_Error_Code=code, X_Error_Message=code)

    def do_POST(self) -> None:
        told = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        path = unquote(self.path.partition("?")[0])
        if path == "/api/repos/create":
            made = json.loads(told)
            self.server.made.append(made)
            name = f"{made['organization']}/{made['name']}" if made.get("organization") else ""
            self.server.branches.setdefault((name or made["name"], "main"), {})
            return self.json({"url": f"http://{self.headers['Host']}/{name}"})
        if path == "/api/validate-yaml":  # of the card's head
            yaml.safe_load(json.loads(told)["content"].split("---")[1])
            return self.json({"errors": [], "warnings": []})
        user, name, verb, revision = path.removeprefix("/api/models/").split("/")
        key = (f"{user}/{name}", revision)
        if verb == "branch":
            self.server.branches.setdefault(key, {})
            return self.json({})
        files = self.server.branches[key]
        if verb == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(told)["files"]
            ]
            return self.json({"files": modes})
        for line in map(json.loads, told.splitlines()):
            if line["key"] == "header":
                self.server.messages.append(line["value"]["summary"])
            else:
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        address = f"http://{self.headers['Host']}/{user}/{name}/commit/{commit(files)}"
        return self.json({"commitOid": commit(files), "commitUrl": address})

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if path[:2] == ["api", "models"]:
            return self.about(f"{path[2]}/{path[3]}", path[4:])
        key, wanted = f"{path[0]}/{path[1]}", "/".join(path[4:])
        files = self.files(key, path[3])
        if files is None:
            return self.lacking("RepoNotFound")
        if wanted not in files:
            return self.lacking("EntryNotFound")
        body = files[wanted]
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": commit(files)}
        return self.answer(200, body, **headers)

    do_HEAD = do_GET

    def about(self, repository: str, rest: list[str]) -> None:
        files = self.files(repository, rest[1] if len(rest) > 1 else "main")
        if files is None:
            return self.lacking("RepoNotFound")
        if rest[:1] == ["tree"]:
            listed = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            return self.json(listed)
        siblings = [{"rfilename": name} for name in files]
        told = {"id": repository, "modelId": repository, "sha": commit(files)}
        return self.json({**told, "siblings": siblings, "private": False, "tags": []})

    def files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        for (name, branch), files in self.server.branches.items():
            if name == repository and revision in (branch, commit(files)):
                return files
        return None


def commit(files: dict[str, bytes]) -> str:
    """A name that changes with the contents."""
    told = hashlib.sha1()
    for name, body in sorted(files.items()):
        told.update(name.encode() + body)
    return told.hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


START = """
import sys, warnings, torch
import isthmus as im
def made(seed=0):
    torch.manual_seed(seed)
    model = im.compose("tiny-vit", "tiny-lm", im.MLP(), device="cpu")
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.normal_()
    return model
def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
"""


def run(hub: Hub, home: Path, program: str, **settings: str) -> str:
    """What a program prints whose hub is this one."""
    told = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **settings,
    }
    command = [sys.executable, "-c", START + program]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_and_back(hub: Hub, tmp_path: Path) -> None:
    pushed = """
print(im.push_to_hub(made(), "me/strip", token="hf_secret", private=True, commit_message="First"))
"""
    out = run(hub, tmp_path / "one", pushed)
    files = hub.branches[("me/strip", "main")]
    assert out.strip().endswith(f"/me/strip/commit/{commit(files)}")
    assert set(files) == {"README.md", "isthmus.json", "model.safetensors"}
    assert b'im.from_pretrained("me/strip")' in files["README.md"]
    told = hub.made[0]
    assert told.get("visibility") == "private" or told.get("private")  # of older versions
    assert hub.messages == ["First"]
    assert hub.tokens == {"Bearer hf_secret"}

    fetched = """
model = made()
for again in (im.from_pretrained("me/strip"), im.load("hf:me/strip"), im.load("hf:me/strip")):
    print(same(model, again), again.config.connector)
"""
    lines = run(hub, tmp_path / "two", fetched).splitlines()
    assert lines == ["True MLP(depth=2, bias=True)"] * 3
    hub.branches.clear()  # and from the cache, with no hub at all
    assert run(hub, tmp_path / "two", fetched, HF_HUB_OFFLINE="1").splitlines() == lines


def test_revisions(hub: Hub, tmp_path: Path) -> None:
    program = """
im.push_to_hub(made(0), "me/strip")
im.push_to_hub(made(1), "me/strip", revision="next")
for name, seed in ((None, 0), ("next", 1)):
    print(same(im.from_pretrained("me/strip", revision=name), made(seed)))
print(same(im.from_pretrained("me/strip"), made(1)))
"""
    assert run(hub, tmp_path, program).splitlines() == ["True", "True", "False"]
    assert set(hub.branches) == {("me/strip", "main"), ("me/strip", "next")}


def test_a_card_that_somebody_wrote_there_is_kept(hub: Hub, tmp_path: Path) -> None:
    hub.branches[("me/strip", "main")] = {"README.md": b"# Mine"}
    run(hub, tmp_path, 'im.push_to_hub(made(), "me/strip")')
    files = hub.branches[("me/strip", "main")]
    assert files["README.md"] == b"# Mine"
    assert "model.safetensors" in files


def test_what_is_not_there(hub: Hub, tmp_path: Path) -> None:
    """One line each; a repository of another kind stays what it was."""
    hub.branches[("you/other", "main")] = {"README.md": b"# Other"}
    program = """
for name, options in (
    ("me/none", {}), ("me/none", {"revision": "v1"}), ("you/other", {}),
):
    try:
        im.from_pretrained(name, **options)
    except im.IsthmusError as error:
        print(type(error).__name__, str(error).partition("\\n")[0])
"""
    lines = run(hub, tmp_path, program).splitlines()
    assert [line.split()[0] for line in lines] == [
        "CheckpointError",
        "ConfigError",
        "CheckpointError",
    ]
    assert 'revision = "v1" of "hf:me/none"' in lines[1]


def test_a_hub_that_refuses(hub: Hub, tmp_path: Path) -> None:
    program = """
try:
    im.push_to_hub(made(), "me/strip", revision="a/b/c")
except im.CheckpointError as error:
    print(error)
"""
    hub.shutdown()  # nobody answers
    hub.server_close()
    out = run(hub, tmp_path, program)
    assert out.startswith("cannot upload to me/strip: ")
    assert out.count("\n") == 1
