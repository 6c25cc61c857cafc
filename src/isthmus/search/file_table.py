"""What an index knows of files: where, how large, from when, and which content. SQLite.

Nothing counts before `commit`, so that an index is whole whenever the machine stops.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from isthmus.errors import CheckpointError

DATABASE = "files.sqlite"
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE contents (number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE);
CREATE TABLE files (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, time INTEGER NOT NULL,
    content INTEGER REFERENCES contents, broken TEXT
);
CREATE INDEX files_of ON files (content);
"""


class FileTable:
    """Files by path, and contents by the hash of their bytes; threads may share it.

    Args:
        folder: Where the database is, or is to be made.

    Raises:
        CheckpointError: If it cannot be opened, made, or read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> table = FileTable(Path(tempfile.mkdtemp()))
        >>> table.add_contents({b"hash": 1})
        >>> table.note(b"/a.png", 10, 0, content=1)
        >>> table.number(b"hash"), table.paths(1)
        (1, [b'/a.png'])
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / DATABASE
        self._lock = Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
            self._database.execute("PRAGMA journal_mode = WAL")  # searched while it is filled
            if not self._row("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
                self._database.executescript(f"BEGIN; {_TABLES} COMMIT;")
        except sqlite3.Error as error:
            if "already exists" in str(error):  # made by another process meanwhile
                return
            raise CheckpointError(
                f"cannot open {self.path}: {error}; if it is damaged, remove {folder} and index "
                "the images again"
            ) from error

    def close(self) -> None:
        """Lets go of the database, without what was not committed."""
        self._database.close()

    def commit(self) -> None:
        """Makes everything since the last time count, at once."""
        with self._lock:
            self._database.commit()

    # --- Facts about the index --------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """What was remembered under a name; None if nothing was."""
        row = self._row("SELECT value FROM meta WHERE name = ?", name)
        return None if row is None else json.loads(row[0])

    def remember(self, name: str, value: Any) -> None:
        """Remembers something that JSON can hold."""
        self._run("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(name, json.dumps(value))])

    # --- Files and contents -----------------------------------------------------------------

    def count(self) -> int:
        """How many different contents files have."""
        row = self._row("SELECT COUNT(DISTINCT content) FROM files WHERE content NOT NULL")
        return int(row[0]) if row else 0

    def unchanged(self, path: bytes, size: int, time: int) -> bool:
        """Whether a file is known, with this size and time of its last change."""
        return self._row("SELECT size, time FROM files WHERE path = ?", path) == (size, time)

    def number(self, digest: bytes) -> int | None:
        """The number of a content; None if it is not known."""
        row = self._row("SELECT number FROM contents WHERE hash = ?", digest)
        return None if row is None else int(row[0])

    def paths(self, number: int) -> list[bytes]:
        """Where the files of a content are, by name."""
        with self._lock:
            found = self._database.execute(
                "SELECT path FROM files WHERE content = ? ORDER BY path", (number,)
            )
            return [path for (path,) in found]

    def add_contents(self, numbers: dict[bytes, int]) -> None:
        """Notes the numbers of hashes."""
        rows = [(number, digest) for digest, number in numbers.items()]
        self._run("INSERT INTO contents VALUES (?, ?)", rows)

    def note(
        self,
        path: bytes,
        size: int,
        time: int,
        *,
        content: int | None = None,
        broken: str | None = None,
    ) -> None:
        """Notes a file, in place of what was known of its path."""
        row = (path, size, time, content, broken)
        self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", [row])

    def forget_gone(self, folders: Iterable[Path]) -> int:
        """Forgets files in folders that are not there any more; says how many."""
        starts = tuple(os.fsencode(os.path.join(folder, "")) for folder in folders)
        with self._lock:
            known = self._database.execute("SELECT path FROM files").fetchall()
        gone = [(p,) for (p,) in known if p.startswith(starts) and not os.path.isfile(p)]
        self._run("DELETE FROM files WHERE path = ?", gone)
        return len(gone)

    def live(self) -> set[int]:
        """Numbers of the contents that files have."""
        with self._lock:
            rows = self._database.execute("SELECT DISTINCT content FROM files").fetchall()
        return {number for (number,) in rows if number is not None}

    def forget_contents(self) -> None:
        """Forgets contents that no file has."""
        self._run(
            "DELETE FROM contents WHERE number NOT IN "
            "(SELECT content FROM files WHERE content NOT NULL)",
            [()],
        )

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with self._lock:
            found: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        return found

    def _run(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        with self._lock:
            self._database.executemany(query, rows)
