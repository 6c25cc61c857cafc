"""Demonstrations in a file: what is written comes back, and a slip is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isthmus.demonstrations.example_file import read_examples, read_worked, write_examples
from isthmus.demonstrations.rationales import Worked
from isthmus.errors import InputError
from isthmus.media.image import open_image
from isthmus.prompts.prompt import Example

LATEX = st.text(st.sampled_from('\\"nut\n'), max_size=12)
"""Short texts of what must be escaped, which texts of any characters hardly ever have together."""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | LATEX


@given(question=TEXT, rationale=st.none() | TEXT, answer=TEXT)
def test_whatever_the_text_it_comes_back(
    tmp_path_factory: pytest.TempPathFactory, question: str, rationale: str | None, answer: str
) -> None:
    path = tmp_path_factory.mktemp("file") / "shots.toml"
    example = Example((), question, answer, rationale)
    worked = Worked(example, {"by": answer, "seed": 3, "temperature": 1e-07, question: 2})
    write_examples(path, [example, worked])
    assert read_examples(path) == [example, example]
    assert read_worked(path) == [Worked(example, {}), worked]


@pytest.mark.parametrize(
    "text", ["x \\neq 3\nso", 'a\n"""', 'a\n\\"""', "a\\\nb", '"\n"', "a\r\nb", "\n", '"" "\n.']
)
def test_latex_and_quotes_in_several_lines(tmp_path: Path, text: str) -> None:
    example = Example((), "?", "1", text)
    write_examples(tmp_path / "shots.toml", [example])
    assert read_examples(tmp_path / "shots.toml") == [example]


def test_quotes_and_hangul_can_be_read(tmp_path: Path) -> None:
    write_examples(tmp_path / "shots.toml", [Example((), "?", "둘", 'Sie sagt "zwei".\n둘이다.')])
    assert 'rationale = """\nSie sagt "zwei".\n둘이다."""\n' in (tmp_path / "shots.toml").read_text(
        encoding="utf-8"
    )


def test_a_file_that_an_editor_saved_its_own_way(tmp_path: Path) -> None:
    lines = '[[example]] # first\nanswer = "1"\nrationale = """\na\nb"""\n'
    (tmp_path / "shots.toml").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    assert read_examples(tmp_path / "shots.toml") == [Example((), "", "1", "a\nb")]


def test_the_file_is_pleasant_to_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "cats.png")
    example = Example(tmp_path / "cats.png", 'How "many"?', "2", "One on the sofa.\nOne below.")
    write_examples(tmp_path / "shots.toml", [Worked(example, {"by": "auto-cot", "cluster": 3})])
    assert (tmp_path / "shots.toml").read_text() == (
        '[[example]]\nimages = ["cats.png"]\nquestion = "How \\"many\\"?"\n'
        'rationale = """\nOne on the sofa.\nOne below."""\nanswer = "2"\n'
        'made = { by = "auto-cot", cluster = 3 }\n'
    )
    [read] = read_examples(tmp_path / "shots.toml")
    assert open_image(read.images[0]).size == (4, 4)
    assert (read.question, read.rationale) == (example.question, example.rationale)


def test_a_image_in_memory_is_written_beside_the_file(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), "red")
    write_examples(tmp_path / "shots.toml", [Example(image, "?", "red")] * 2)
    first, second = read_examples(tmp_path / "shots.toml")
    assert open_image(first.images[0]).tobytes() == image.tobytes()
    assert first == second


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[example]]\nquestion = "?"\n', r"line 1: a demonstration needs an answer"),
        ('\n[[example]]\nanswer = "1"\n\n[[example]]\nanswer = 2\n', r"line 5: answer must be"),
        ('[[example]]\nanswer = "1\n', r"not TOML.*line 2"),
        ('[[example]]\nanswer = "1"\nquestoin = "?"', r'line 1: unknown key "questoin"'),
        ('[[example]]\nanswer = "1"\nimages = "a.png"', r"line 1: images must be a list"),
        ('[[example]] # a\nanswer = "1"\n[[ example ]]\nanser = "1"\n', r"line 3: unknown key"),
        (
            '[[example]]\nanswer = "1"\nrationale = """\n[[example]]"""\n[[example]]\n',
            r"example 2: a demonstration needs",
        ),
        ('[[example]]\nanswer = "1"\nimages = ["cat.png"]', r"line 1: no image at .*cat.png"),
        (
            '[[example]]\nanswer = "1"\nimages = ["https://a.org/b.png"]',
            r"line 1: https://a.org/b.png is an address",
        ),
        ('[[example]]\nanswer = "1"\nmade = "by hand"', r"line 1: made must be like"),
        ('example = ["1"]', r"example 1: expected an \[\[example\]\] table"),
        ('answer = "1"', r"expected \[\[example\]\] tables"),
        ("", "has nothing"),
    ],
)
def test_a_slip_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "shots.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_examples(tmp_path / "shots.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_examples(tmp_path / "none.toml")


def test_what_cannot_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "shots.toml"
    with pytest.raises(InputError, match='"How many" has no answer'):
        write_examples(path, [Example((), "How many")])
    with pytest.raises(InputError, match="is an address"):
        write_examples(path, [Example("https://example.com/a.png", "?", "1")])
    with pytest.raises(InputError, match="at least one"):
        write_examples(path, [])
    assert list(tmp_path.iterdir()) == []
