"""The SQLite file of a data folder: WAL, synchronous FULL, one connection for all threads."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3vl_webui.errors import StorageError
from qwen3vl_webui.store.files import refusal, writable

SCHEMA_VERSION = 1


class Database:
    """Open one per data folder, which must be there; a second one on the same folder is refused with a StorageError.

    Who reads more than once holds `lock` meanwhile.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.lock = threading.RLock()
        self._guard = open(data_dir / "lock", "a")  # noqa: SIM115  held until close
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._guard.close()
            raise StorageError(
                f"Another server already uses the data folder {data_dir}. Stop it, or choose another with --data-dir."
            ) from error
        with self.sentences():
            self._connection = self._open(data_dir / "store.sqlite")

    def _open(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            connection.close()
            raise StorageError(
                f"The data folder {self.data_dir} was written by a newer version of this program. "
                "Update it, or choose another folder with --data-dir."
            )
        if version == 0:
            schema = Path(__file__).with_suffix(".sql").read_text()
            connection.executescript(f"BEGIN; {schema} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        return connection

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Committed, durable, when the block ends; nothing happened when it raises."""
        with self.lock, self.sentences():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def sentences(self) -> Iterator[None]:
        """Turns what the disk refuses into a StorageError."""
        try:
            with writable(self.data_dir):
                yield
        except sqlite3.OperationalError as error:
            disk = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
            if error.sqlite_errorcode & 0xFF not in disk:
                raise
            raise refusal(self.data_dir, str(error)) from error
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise
            raise StorageError(
                f"{self.data_dir / 'store.sqlite'} is damaged. Restore it from a backup, or move it away to start anew."
            ) from error

    def close(self) -> None:
        with self.lock:
            self._connection.close()
            self._guard.close()
