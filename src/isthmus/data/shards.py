"""Tar shards, read where they lie. Pure: no torch.

Two layouts are known, and may be mixed:

- pairs, as img2dataset writes them for LAION: `000.jpg`, `000.txt`, `000.json` are one sample
  (WebDataset's rule: the same name up to the first dot). The text is the `.txt`, or what the
  `.json` says; the rest of the `.json` is kept in `extra`.
- documents: one `.json` each, with its images in base64 (OpenFlamingo's converter) or as files
  beside it in the shard, found by `image_name`.

A shard's headers are scanned once; texts are read when a record is asked for, and images never:
a `FileRef` says which stretch of the shard it is, so any record of any shard is one seek away.
"""

from __future__ import annotations

import bisect
import glob
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from isthmus.data.records import LazyRecords, Record
from isthmus.data.rows import CHATS, to_record
from isthmus.errors import ConfigError
from isthmus.media.file_ref import FileRef
from isthmus.media.kinds import kind_named, kinds

log = logging.getLogger(__name__)

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
BLOCK = 512
"""Bytes of a tar header; an archive ends with blocks of zeros."""
TEXTS = (".txt", ".json")

Span = tuple[int, int]
"""First byte and number of bytes."""
Group = dict[str, Span]
"""Members of one key, by what follows it in their names."""


def expand(pattern: str) -> list[str]:
    """Names of a pattern with braces, as a shell would give them.

    Example:
        >>> expand("s/{000..002}.tar")
        ['s/000.tar', 's/001.tar', 's/002.tar']
        >>> expand("{a,b}{1..2}")
        ['a1', 'a2', 'b1', 'b2']
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inside = found[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        padded = any(n[0] == "0" and len(n) > 1 for n in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 0
        step = 1 if last >= first else -1
        choices = [f"{n:0{width}d}" for n in range(first, last + step, step)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise ConfigError(
            f"{pattern}: expected {{000..009}} or {{a,b}} in braces, got {{{inside}}}"
        )
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for choice in choices for name in expand(head + choice + tail)]


def find_files(pattern: str | Path) -> list[Path]:
    """The files of a name, a brace pattern or a glob; a file of exactly this name comes first.

    Raises:
        ConfigError: If one is missing, or a glob finds none.
    """
    if Path(pattern).exists():
        return [Path(pattern)]
    found: list[Path] = []
    missing: list[str] = []
    for name in expand(str(pattern)):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        found.extend(Path(m) for m in matches if Path(m).exists())
        if not matches or not Path(matches[0]).exists():
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"no records at {missing[0]}{more}: check the path")
    return found


@dataclass
class _Index:
    """What stands where in one shard."""

    path: Path
    samples: list[tuple[str, Group]] = field(default_factory=list)
    """Key and members of each sample, in the shard's order."""
    loose: Group = field(default_factory=dict)
    """Images that are no sample's, by their names: those of documents."""
    pairs: bool = False
    """Whether samples are images with their texts; a text alone has then lost its image."""

    @cached_property
    def base_names(self) -> dict[str, str]:
        """Full names of the loose images by their last part, where it is only one image's."""
        names = Counter(PurePosixPath(name).name for name in self.loose)
        return {base: full for full in self.loose if names[base := PurePosixPath(full).name] == 1}

    def image(self, name: str, key: str, members: Group) -> FileRef:
        """The image that a text names: the sample's own, one beside it, or the shard's only one.

        Raises:
            KeyError: If the shard has none of this name.
        """
        beside = str(PurePosixPath(key).parent / name)
        for full in (beside, name):
            span = members.get(full.removeprefix(key)) if full.startswith(key) else None
            span = span or self.loose.get(full)
            if span is not None:
                return FileRef(self.path, start=span[0], size=span[1], member=full)
        full = self.base_names[PurePosixPath(name).name]
        start, size = self.loose[full]
        return FileRef(self.path, start=start, size=size, member=full)


class Shards(LazyRecords):
    """The records of tar shards, in the shards' order.

    `shards[i]` raises ConfigError if a sample's text is not a record; it names shard and sample.

    Args:
        paths: The shards.

    Raises:
        ConfigError: If a shard is compressed or no tar, or there is no sample in any.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._shards = [_scan(Path(path)) for path in paths]
        self._ends = list(accumulate(len(shard.samples) for shard in self._shards))
        if not len(self):
            names = ", ".join(str(p) for p in paths[:3])
            raise ConfigError(
                f"no samples in {names}: expected images with a text of the same name (000.jpg, "
                "000.txt or 000.json), or documents (.json)"
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def record_at(self, index: int) -> Record:
        """A record, its text read now."""
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        return _record(shard, *shard.samples[index - self._ends[number]])


def _record(shard: _Index, key: str, members: Group) -> Record:
    """The record of one sample."""
    origin = f"{shard.path}, sample {key}"
    texts: dict[str, str] = {}
    try:
        with shard.path.open("rb") as file:
            for ending, (start, size) in members.items():
                if _kind(ending) in TEXTS:
                    file.seek(start)
                    texts[_kind(ending)] = file.read(size).decode("utf-8-sig")
        row: Any = json.loads(texts.get(".json", "{}"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{origin} is not a record: {error}") from error
    own = [key + ending for ending in members if _is_medium(ending)]
    extra: dict[str, Any] | None = None
    if ".txt" in texts:
        # The text file wins: the metadata tell of the crawl, and their "caption" may be another
        extra = row if isinstance(row, dict) else {}
        row = {"text": texts[".txt"].strip()}
    if isinstance(row, dict) and own and not row.keys() & {"text_list", "texts"}:
        several = len(own) > 1 or "images" in row
        there = {kind_named(name) or "image" for name in own}
        stale = {key for kind in there for key in kinds()[kind].keys}
        if "image" in there:
            stale |= {"images", "features"}
        for old in stale & row.keys():  # where it was before
            row.pop(old)
        row |= _by_key(own, several)
    record = to_record(row, lambda name: shard.image(name, key, members), origin)
    if shard.pairs and not own and not record.images and not _is_document(row):
        raise ConfigError(
            f"{origin} is not a record (no image): expected {key}.jpg, or the like, as the shard's "
            "other samples have"
        )
    return record if extra is None else replace(record, extra=extra)


def _is_medium(name: str) -> bool:
    """Whether a member is an attachment, or features of one."""
    return _kind(name) == ".npy" or kind_named(f"x{_kind(name)}") is not None


def _by_key(names: Sequence[str], several: bool) -> dict[str, Any]:
    """A sample's attachments as a row has them."""
    row: dict[str, Any] = {}
    for name in names:
        kind = kind_named(name) or "image"
        key = "images" if kind == "image" else kinds()[kind].keys[0]
        row.setdefault(key, []).append(name)
    if len(row) == len(names) == 1 and "images" in row and not several:
        return {"image": names[0]}
    return row


def _is_document(row: Any) -> bool:
    """Whether a row says itself which images it has, and be it none."""
    return any(row.get(key) is not None for key in ("text_list", "texts", *CHATS))


def _kind(name: str) -> str:
    """A name's last ending, in small letters."""
    return PurePosixPath(f"x{name}" if name.startswith(".") else name).suffix.lower()


def _scan(path: Path) -> _Index:
    """The index of one shard; what is left out of it is named in a warning."""
    members, cut = _members(path)
    groups: dict[str, Group] = {}
    for name, span in members:
        folder, slash, base = name.removeprefix("./").rpartition("/")
        stem = base.partition(".")[0]
        known = _is_medium(base) or _kind(base) in TEXTS
        if stem and known:  # no stem: a hidden file
            groups.setdefault(folder + slash + stem, {})[base[len(stem) :]] = span
    if cut:
        lost = ""
        whole, last = next(iter(groups.values()), {}), next(reversed(groups), "")
        if groups and groups[last].keys() < whole.keys():
            del groups[last]
            lost = f"; sample {last} is not whole and left out"
        log.warning(
            "%s is cut short or damaged%s: %d whole samples are kept%s",
            path,
            cut,
            sum(map(_has_text, groups.values())),
            lost,
        )
    index = _Index(path)
    lonely: list[str] = []
    for key, group in groups.items():
        for part, rest in _split(key, group).items():
            shown = any(map(_is_medium, rest))
            if _has_text(rest):
                index.samples.append((part, rest))
                index.pairs |= shown
                lonely += [part] * (not shown and ".txt" in map(_kind, rest))
            else:
                index.loose |= {part + ending: span for ending, span in rest.items()}
    if index.pairs and lonely:
        log.warning(
            "%s: %d texts without an image of the same name, left out: %s",
            path,
            len(lonely),
            ", ".join(lonely[:3]),
        )
        left_out = set(lonely)
        index.samples = [sample for sample in index.samples if sample[0] not in left_out]
    if index.pairs and index.loose:
        log.warning(
            "%s: %d images without a text of the same name, left out unless a document "
            "names them: %s",
            path,
            len(index.loose),
            ", ".join([*index.loose][:3]),
        )
    return index


def _has_text(group: Group) -> bool:
    return any(_kind(ending) in TEXTS for ending in group)


def _split(key: str, group: Group) -> dict[str, Group]:
    """The samples of one key: several if it has several texts (`a.b.txt` and `a.c.txt`)."""
    kinds = [_kind(ending) for ending in group if _kind(ending) in TEXTS]
    if len(kinds) == len(set(kinds)):
        return {key: group}
    parts: dict[str, Group] = {}
    for ending, span in group.items():
        middle, dot, last = ending.rpartition(".")
        parts.setdefault(key + middle, {})[dot + last] = span
    return parts


def _members(path: Path) -> tuple[list[tuple[str, Span]], str]:
    """Names and places of the files in a shard, and where it is cut; "" if it is whole."""
    found: list[tuple[str, Span]] = []
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            for magic, name in MAGIC.items():
                if head.startswith(magic):
                    raise ConfigError(
                        f"{path} is compressed ({name}): expected a plain tar, in which an image "
                        "is one seek away; unpack it first"
                    )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while True:
                    try:
                        info = tar.next()
                    except tarfile.ReadError:
                        return found, f" at byte {length}"
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
                    if info is None:
                        break
                    if info.offset_data + info.size > length:
                        return found, f" within {info.name}"
                    if info.isreg() and not info.issparse():
                        found.append((info.name, (info.offset_data, info.size)))
                # tarfile ends quietly at anything that is no header: only zeros are a proper end
                file.seek(tar.offset)
                end = file.read(BLOCK)
                return found, "" if end == bytes(BLOCK) else f" at byte {tar.offset}"
    except tarfile.ReadError as error:
        raise ConfigError(f"{path} is not a tar file: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
