"""One record type for picture-text pairs and questions, read from JSONL. Pure: no torch.

One JSON object a line; paths are relative to the folder that `root` names:

    {"image": "a.jpg", "text": "a dog on a sofa"}                     a caption
    {"image": "a.jpg", "name": "dog", "names": ["dog", "puppy"]}      a name, and synonyms
    {"image": "a.jpg", "question": "How many?", "answer": "2"}        a question
    {"features": "a.npy", "question": "...", "answer": "..."}         features computed before

Other keys are kept in `extra` and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isthmus.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """A picture and what is to be said about it.

    Attributes:
        picture: Path of the picture, or of an `.npy` file of its features (N, D_vision).
        question: What is asked; empty for a caption.
        answer: What is right.
        names: Other answers that are also right; the answer itself is the first.
        extra: The other keys of the line.
    """

    picture: Path
    question: str
    answer: str
    names: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_features(self) -> bool:
        """Whether `picture` holds features and not pixels."""
        return self.picture.suffix == ".npy"


def _record(values: dict[str, Any], root: Path) -> Record:
    """A record from one line's object. Raises KeyError or TypeError if it is none."""
    picture = values.pop("features", None) or values.pop("image")
    names = tuple(values.pop("names", ()))
    name = values.pop("name", None)
    answer = values.pop("answer", None) or name or values.pop("text", None) or names[0]
    if not isinstance(answer, str) or not isinstance(picture, str):
        raise TypeError("the picture and the answer must be strings")
    return Record(
        picture=root / picture,
        question=str(values.pop("question", "")),
        answer=answer,
        names=names or (answer,),
        extra=values,
    )


def read_records(path: str | Path, root: str | Path | None = None) -> list[Record]:
    """Reads a JSONL file of records.

    Args:
        path: The file.
        root: What the pictures' paths are relative to; None is the file's own folder.

    Raises:
        ConfigError: If the file is missing, or a line is no record; the message names the line.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no records at {file}: expected a JSONL file")
    base = Path(root) if root is not None else file.parent
    records: list[Record] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                records.append(_record(json.loads(line), base))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise ConfigError(
                    f"{file}, line {number} is no record ({error!r}): expected "
                    '{"image": ..., "question": ..., "answer": ...} or {"image": ..., "text": ...}'
                ) from error
    if not records:
        raise ConfigError(f"{file} is empty: expected at least one record")
    return records


def with_questions(records: Sequence[Record], questions: Sequence[str]) -> list[Record]:
    """Gives records without a question one of `questions`, in turn."""
    if not questions:
        return list(records)
    return [
        r
        if r.question
        else Record(r.picture, questions[i % len(questions)], r.answer, r.names, r.extra)
        for i, r in enumerate(records)
    ]
