"""What `isthmus doctor` prints: the installation as it is, and nothing of its user."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path

import pytest

from isthmus import cli, diagnosis
from isthmus.assets.registry import ASSETS
from isthmus.machine import probe


@pytest.fixture
def ada(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose name and folders are known; returns the home folder."""
    home = tmp_path / "people" / "ada-lovelace"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "ada-lovelace")
    monkeypatch.delenv("ISTHMUS_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert getpass.getuser() == "ada-lovelace"
    return home


def test_it_says_what_is_installed_and_what_auto_takes() -> None:
    import torch
    import transformers

    found = diagnosis.diagnose()
    assert found.packages["transformers"] == transformers.__version__
    assert found.machine["build"] == torch.__version__
    assert found.machine["auto"] == probe().as_dict()["auto"]
    assert set(found.assets) == set(ASSETS)
    assert found.free_gb is not None
    assert found.free_gb > 0
    assert str(probe()) in str(found)  # the lines of `isthmus info`, and no others


def test_a_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PACKAGES", ("numpy", "no-such-package"))
    found = diagnosis.diagnose()
    assert found.packages["no-such-package"] == ""
    assert "\nnot installed: no-such-package\n" in str(found)


def test_a_pytorch_that_does_not_load_is_a_line(ada: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """An import that fails as one of a missing library does."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch":
                raise ImportError(f"{ada}/lib/libtorch.so: no such file")

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    found = diagnosis.diagnose()
    assert found.machine == {"error": "ImportError: ~/lib/libtorch.so: no such file"}
    assert "PyTorch does not load: ImportError" in str(found)


@pytest.mark.parametrize("place", ["", "{home}/big/cache", "/srv/ada-lovelace/cache", "/srv/x"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_it_names_no_user_and_no_secret(
    ada: Path,
    place: str,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if place:
        monkeypatch.setenv("ISTHMUS_HOME", place.format(home=ada))
    monkeypatch.setenv("ISTHMUS_API_KEY", "a-secret")
    monkeypatch.setenv("ISTHMUS_PASSWORD", "a-secret")
    monkeypatch.setenv("ISTHMUS_INT8", "0")
    monkeypatch.setattr("sys.argv", ["isthmus", "doctor", *options])
    assert cli._run() == 0
    told = capsys.readouterr().out
    assert "ada-lovelace" not in told
    assert "a-secret" not in told
    expected = {"": "~/.cache/isthmus", "{home}/big/cache": "~/big/cache"}
    expected["/srv/ada-lovelace/cache"] = "/srv/USER/cache"
    assert expected.get(place, place) in told
    if options:
        found = json.loads(told)
        assert found["switches"]["ISTHMUS_INT8"] == "0"
        assert found["assets"] == dict.fromkeys(ASSETS, False)
    else:
        assert "not cached: efficientnet-lite2" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{home}", "~"),
        ("{home}/x", "~/x"),
        ("{home}-two/x", "{home}-two/x"),  # another's folder, of a longer name
        ("/mnt/ada-lovelace: full", "/mnt/USER: full"),
        ("ada-lovelace", "ada-lovelace"),  # a word and no folder
    ],
)
def test_what_is_masked(ada: Path, text: str, expected: str) -> None:
    masked = diagnosis.without_user(text.format(home=ada))
    assert masked == expected.format(home=ada)
