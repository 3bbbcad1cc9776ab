"""What a restart must not lose: analyses, streams, their events, idempotency keys. One SQLite file, one owner.

Only the desk opens it; the other processes ask the desk. A process that is killed loses nothing that was written
(write-ahead log). The addresses of streams may hold passwords, which are needed to connect again: the file is readable
by its owner alone, and they leave this module only by `StreamRecord.url`.
"""

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unmask.errors import StorageError

__all__ = ["AnalysisRecord", "Event", "Store", "StreamRecord"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS analyses (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, input TEXT NOT NULL, created_s REAL NOT NULL, finished_s REAL,
    request TEXT NOT NULL, result TEXT);
CREATE TABLE IF NOT EXISTS streams (
    id TEXT PRIMARY KEY, url TEXT NOT NULL, created_s REAL NOT NULL, settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, kind TEXT NOT NULL, at_s REAL NOT NULL,
    data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of ON events (owner, id);
CREATE INDEX IF NOT EXISTS events_at ON events (at_s);
CREATE TABLE IF NOT EXISTS keys (
    key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, owner TEXT NOT NULL, at_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, data TEXT NOT NULL);
"""
_VERSION = 1
# How long a predecessor may take to let go of the file.
_HANDOVER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisRecord:
    """One upload or URL: what was asked, how far it is, what came out."""

    id: str
    state: str
    """queued, running, done or cancelled."""
    input: str
    """As it may be shown."""
    created_s: float
    request: Mapping[str, Any]
    """What is needed to run it (again); not for callers' eyes."""
    finished_s: float | None = None
    result: Mapping[str, Any] | None = None
    """As `unmask score --json` prints it, once it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord:
    """One stream that shall run until it is removed."""

    id: str
    url: str
    """With its password, if it has one. Never shown, never logged."""
    created_s: float
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an analysis or a stream. Ids rise, over all owners and restarts."""

    id: int
    owner: str
    kind: str
    at_s: float
    data: Mapping[str, Any]


class Store:
    """The embedded store. For several threads; a context manager.

    Args:
        path: The file, made where it is not there; its folder too.
        keep_events_s: How long events are kept.
        keep_analyses_s: How long finished analyses and idempotency keys are kept.
        most_events: Of one owner; the oldest go first.

    Raises:
        StorageError: The file cannot be made or read, or a newer version wrote it.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_events_s: float = 24 * 3600.0,
        keep_analyses_s: float = 7 * 24 * 3600.0,
        most_events: int = 20_000,
    ) -> None:
        self._path, self._lock = path, threading.Lock()
        self._owned = -1
        self._keep_events_s, self._keep_analyses_s, self._most_events = keep_events_s, keep_analyses_s, most_events
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._own()
            path.chmod(0o600)  # the log beside it gets the same mode from SQLite
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10.0)
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None
        try:
            self._open()
        except sqlite3.Error as error:
            self.close()
            raise self._failed(error) from None
        except BaseException:
            self.close()
            raise

    def _own(self) -> None:
        """Be the only one: two services on one store would each undo what the other does."""
        self._owned = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        deadline = time.monotonic() + _HANDOVER_S
        while True:
            try:
                fcntl.flock(self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > deadline:
                    os.close(self._owned)
                    message = f"{self._path} belongs to a service that runs already; give another --state folder"
                    raise StorageError(message) from None
            time.sleep(0.1)

    def _open(self) -> None:
        # One owner needs no memory shared with others, which network file systems do not have (sqlite.org/wal.html).
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StorageError(f"{self._path} was written by another version of Unmask; give another --state folder")
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA user_version={_VERSION}")

    def _failed(self, error: Exception) -> StorageError:
        return StorageError(f"{self._path} cannot be opened ({error}); check it, or give another --state folder")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. What was written is on disk."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()
        if self._owned >= 0:
            os.close(self._owned)
            self._owned = -1

    # Analyses.

    def put_analysis(self, record: AnalysisRecord) -> None:
        """Write an analysis, new or changed."""
        self._write(
            "INSERT OR REPLACE INTO analyses (id, state, input, created_s, finished_s, request, result) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                record.id, record.state, record.input, record.created_s, record.finished_s,
                _text(record.request), None if record.result is None else _text(record.result),
            ),
        )  # fmt: skip

    def analysis(self, analysis_id: str) -> AnalysisRecord | None:
        """An analysis; None where there is none of this id."""
        return next(iter(self._analyses("WHERE id = ?", (analysis_id,))), None)

    def analyses(self, state: str | None = None, limit: int = 100) -> list[AnalysisRecord]:
        """The newest analyses, in order of age, the newest first; those in one state where it is given."""
        where = "" if state is None else "WHERE state = ?"
        values = (limit,) if state is None else (state, limit)
        return self._analyses(f"{where} ORDER BY created_s DESC, id LIMIT ?", values)

    def with_callback(self, state: str) -> list[AnalysisRecord]:
        """Finished analyses whose callback is in a state, in order of age, the newest first."""
        where = "WHERE finished_s NOT NULL AND json_extract(request, '$.callback') = ? ORDER BY created_s DESC"
        return self._analyses(where, (state,))

    def _analyses(self, where: str, values: Sequence[Any]) -> list[AnalysisRecord]:
        names = "id, state, input, created_s, finished_s, request, result"
        return [
            AnalysisRecord(
                id=row[0], state=row[1], input=row[2], created_s=row[3], finished_s=row[4], request=json.loads(row[5]),
                result=None if row[6] is None else json.loads(row[6]),
            )
            for row in self._read(f"SELECT {names} FROM analyses {where}", values)  # noqa: S608  (constant texts)
        ]  # fmt: skip

    # Streams.

    def put_stream(self, record: StreamRecord) -> None:
        """Write a stream, new or changed."""
        self._write(
            "INSERT OR REPLACE INTO streams (id, url, created_s, settings) VALUES (?, ?, ?, ?)",
            (record.id, record.url, record.created_s, _text(record.settings)),
        )

    def streams(self) -> list[StreamRecord]:
        """All streams, the oldest first."""
        rows = self._read("SELECT id, url, created_s, settings FROM streams ORDER BY created_s, id", ())
        return [StreamRecord(id=r[0], url=r[1], created_s=r[2], settings=json.loads(r[3])) for r in rows]

    # What both have.

    def delete(self, owner: str) -> bool:
        """Forget an analysis or a stream, with its events. Whether there was one."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            found = sum(
                self._db.execute(f"DELETE FROM {table} WHERE id = ?", (owner,)).rowcount  # noqa: S608
                for table in ("analyses", "streams")
            )
            self._db.execute("DELETE FROM events WHERE owner = ?", (owner,))
            self._db.execute("DELETE FROM keys WHERE owner = ?", (owner,))
            self._db.execute("DELETE FROM notes WHERE key = ?", (owner,))
        return found > 0

    def note(self, key: str) -> Mapping[str, Any] | None:
        """What was last written under a key: a stream's snapshot, the table of models."""
        rows = self._read("SELECT data FROM notes WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def put_note(self, key: str, data: Mapping[str, Any]) -> None:
        """Write something under a key."""
        self._write("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, _text(data)))

    def append(self, events: Iterable[Event], notes: Mapping[str, Mapping[str, Any]] | None = None) -> list[Event]:
        """Add events, all or none; their ids are given here.

        Args:
            events: In order; the id of each is not read.
            notes: What is written under these keys along with them.

        Returns:
            The same with their ids.
        """
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for key, data in (notes or {}).items():
                self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, _text(data)))
            return [replace(event, id=self._insert(event)) for event in events]

    def _insert(self, event: Event) -> int:
        done = self._db.execute(
            "INSERT INTO events (owner, kind, at_s, data) VALUES (?, ?, ?, ?)",
            (event.owner, event.kind, event.at_s, _text(event.data)),
        )
        assert done.lastrowid is not None
        return done.lastrowid

    def events(self, owner: str, *, after: int = 0, limit: int = 500) -> list[Event]:
        """The events of one owner whose ids are above `after`, in order."""
        sql = "SELECT id, owner, kind, at_s, data FROM events WHERE owner = ? AND id > ? ORDER BY id LIMIT ?"
        return [Event(r[0], r[1], r[2], r[3], json.loads(r[4])) for r in self._read(sql, (owner, after, limit))]

    def last_events(self, owner: str, limit: int) -> list[Event]:
        """The newest events of one owner, in order."""
        sql = "SELECT id, owner, kind, at_s, data FROM events WHERE owner = ? ORDER BY id DESC LIMIT ?"
        rows = self._read(sql, (owner, limit))
        return [Event(r[0], r[1], r[2], r[3], json.loads(r[4])) for r in reversed(rows)]

    def claimed(self, key: str) -> tuple[str, str] | None:
        """Whose an idempotency key is, and the fingerprint of that request; None where it is free."""
        rows = self._read("SELECT owner, fingerprint FROM keys WHERE key = ?", (key,))
        return (rows[0][0], rows[0][1]) if rows else None

    def claim(self, key: str, fingerprint: str, owner: str) -> tuple[str, bool]:
        """Bind an idempotency key to a new owner, or learn whose it is.

        Returns:
            The owner: the new one, or the one that had the key before; and whether the request was the same then.
        """
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            known = self._db.execute("SELECT owner, fingerprint FROM keys WHERE key = ?", (key,)).fetchone()
            if known is not None:
                return known[0], known[1] == fingerprint
            self._db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (key, fingerprint, owner, time.time()))
        return owner, True

    def prune(self, now_s: float | None = None) -> int:
        """Forget what is older than it is kept. Streams, and analyses that are not finished, stay.

        Returns:
            How many rows went.
        """
        now_s = time.time() if now_s is None else now_s
        old_s = now_s - self._keep_analyses_s
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            done = [
                self._db.execute("DELETE FROM events WHERE at_s < ?", (now_s - self._keep_events_s,)),
                self._db.execute("DELETE FROM analyses WHERE finished_s < ?", (old_s,)),
                self._db.execute("DELETE FROM keys WHERE at_s < ?", (old_s,)),
                *map(self._prune_owner, self._crowded()),
            ]
        return sum(cursor.rowcount for cursor in done)

    def _crowded(self) -> list[str]:
        sql = "SELECT owner FROM events GROUP BY owner HAVING COUNT(*) > ?"
        return [row[0] for row in self._db.execute(sql, (self._most_events,)).fetchall()]

    def _prune_owner(self, owner: str) -> sqlite3.Cursor:
        return self._db.execute(
            "DELETE FROM events WHERE owner = ?1 AND id <= "
            "(SELECT id FROM events WHERE owner = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (owner, self._most_events),
        )

    def _write(self, sql: str, values: Sequence[Any]) -> None:
        with self._lock:
            self._db.execute(sql, values)

    def _read(self, sql: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()


def _text(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, allow_nan=False, separators=(",", ":"))
