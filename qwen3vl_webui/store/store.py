"""Conversations (SQLite) and media (files by content digest) on disk: what a method acknowledged survives kill -9.

    data_dir/store.sqlite          WAL, synchronous FULL: committed when a method returns
    data_dir/media/ab/abcd…        a file under its sha256; beside it `abcd….play.mp4`, its playable copy, and
                                   `abcd….storyboard.json` and `abcd….speech.json`, what is known of it
    data_dir/media/incoming/       files on their way in
    data_dir/pictures/             thumbnails and page images, made again when missing

Every read and write names its owner; what belongs to somebody else is not found. All methods may be called from any
thread, and block: call them from a worker thread, not from an event loop.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

from qwen3vl_webui.conversation import Attachment, Conversation, Turn, new_id
from qwen3vl_webui.errors import Conflict, MediaError, NotFound, StorageError
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Media
from qwen3vl_webui.store.database import Database
from qwen3vl_webui.store.files import (
    Receiving,
    Room,
    Stored,
    check_unchanged,
    clean,
    clean_name,
    sync_folder,
)
from qwen3vl_webui.store.records import media_from, media_record, turn_from, turn_record

LOCAL = "local"  # the owner of everything where one person uses the server
FILE_LIMIT = 8 * 10**9  # bytes of one file
QUOTA = 40 * 10**9  # bytes of all files of one owner; LOCAL has none, the disk is theirs
CHUNK = 1 << 20
UNSENT_SECONDS = 24 * 3600.0  # a file attached but never sent is removed after a day


@dataclass(frozen=True)
class Summary:
    """A line of the history: `updated` in seconds since the epoch."""

    id: str
    title: str
    updated: float


class Store:
    """Open one per data folder; a second one on the same folder is refused with a StorageError."""

    def __init__(self, data_dir: Path, *, file_limit: int = FILE_LIMIT, quota: int = QUOTA) -> None:
        self.data_dir = data_dir
        self.file_limit = file_limit
        self.quota = quota
        self._media: dict[str, Media] = {}
        self._incoming = data_dir / "media" / "incoming"
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)  # what people say is nobody else's on this machine
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._database = Database(data_dir)
        except OSError as error:
            raise StorageError(
                f"The data folder {data_dir} cannot be written ({error.strerror}). Choose another with --data-dir."
            ) from error
        with self._database.sentences():
            self._sweep()

    def _sweep(self) -> None:
        """What a killed server left: answers half written, files half received, media without a row."""
        with self._database.transaction() as database:
            database.execute("UPDATE turns SET state = 'aborted' WHERE state = 'partial'")
        for path in self._incoming.iterdir():
            path.unlink()
        self.remove_unsent(time.time() - UNSENT_SECONDS)
        known = {digest for (digest,) in self._database.execute("SELECT digest FROM media")}
        for path in (self.data_dir / "media").glob("??/*"):
            if path.name.split(".")[0] not in known or path.suffix == ".part":
                path.unlink()

    def close(self) -> None:
        self._database.close()

    # Files

    def receive(self, owner: str, name: str, *, purpose: str = "") -> Receiving:
        """For a file that arrives in pieces: `write` each, then `finish`, or `discard`."""
        left = None if owner == LOCAL else self.quota - self.used_bytes(owner)

        def keep(path: Path, digest: str, size: int, purpose: str) -> Stored:
            return self._keep(owner, name, digest, size, path, purpose)

        room = Room(self.file_limit, self.quota, left)
        return Receiving(self._incoming / new_id(), self.data_dir, room, keep, purpose)

    def add_file(
        self, owner: str, name: str, source: Iterable[bytes] | Path, *, link: bool = False, purpose: str = ""
    ) -> Stored:
        """Keeps a file, given in pieces or as a path, and says what it holds. Raises MediaError when it is refused.

        With `link` the file at the path is not copied: it must stay where it is.
        """
        if isinstance(source, Path):
            try:
                file = open(source, "rb")  # noqa: SIM115  closed below
            except OSError as error:
                raise MediaError(f"{source.name} cannot be read: {error.strerror}.") from error
            with file:
                if link:
                    return self._link(owner, name, source.resolve(), file, purpose)
                return self.add_file(owner, name, iter(lambda: file.read(CHUNK), b""), purpose=purpose)
        receiving = self.receive(owner, name, purpose=purpose)
        try:
            for chunk in source:
                receiving.write(chunk)
            return receiving.finish()
        finally:
            receiving.discard()

    def _link(self, owner: str, name: str, path: Path, file: BufferedReader, purpose: str) -> Stored:
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        media = open_upload(path, digest)
        with self._database.transaction() as database:
            if (row := self._media_row(digest)) is None or row[1] is not None:
                database.execute(
                    "INSERT INTO media VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest) "
                    "DO UPDATE SET linked = excluded.linked, modified = excluded.modified",
                    (digest, before.st_size, json.dumps(media_record(media)), str(path), before.st_mtime_ns),
                )
                self._media.pop(digest, None)
            return self._add_row(database, owner, name, digest, purpose)

    def _keep(self, owner: str, name: str, digest: str, size: int, path: Path, purpose: str) -> Stored:
        """Takes over a received file: looks into it, renames it to its digest, commits its row."""
        media = open_upload(path, digest)
        target = self.path_of(digest)
        with self._no_orphan(digest), self._database.transaction() as database:
            row = self._media_row(digest)
            if row is None or row[1] is not None or not target.exists():
                target.parent.mkdir(exist_ok=True)
                os.rename(path, target)
                sync_folder(target.parent)
                sync_folder(target.parent.parent)
                database.execute(
                    "INSERT INTO media VALUES (?, ?, ?, NULL, NULL) ON CONFLICT (digest) "
                    "DO UPDATE SET linked = NULL, modified = NULL",
                    (digest, size, json.dumps(media_record(media))),
                )
                self._media.pop(digest, None)
            return self._add_row(database, owner, name, digest, purpose)

    @contextmanager
    def _no_orphan(self, digest: str) -> Iterator[None]:
        """A file whose row could not be committed does not stay on disk."""
        try:
            yield
        except BaseException:
            with self._database.lock:
                self._erase([digest])
            raise

    def _add_row(self, database: sqlite3.Connection, owner: str, name: str, digest: str, purpose: str) -> Stored:
        file_id = new_id()
        row = (file_id, owner, digest, clean_name(name), purpose, time.time())
        database.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", row)
        return self._file(owner, file_id)

    def _media_row(self, digest: str) -> tuple[str, str | None, int | None, int] | None:
        select = "SELECT record, linked, modified, size FROM media WHERE digest = ?"
        return self._database.execute(select, (digest,)).fetchone()

    def path_of(self, digest: str) -> Path:
        """Where our copy of a file lies, or would lie."""
        return self.data_dir / "media" / digest[:2] / digest

    def playable_path(self, digest: str) -> Path:
        """Where the copy a browser can play lies, or would lie."""
        return self.data_dir / "media" / digest[:2] / f"{digest}.play.mp4"

    def _path_of_row(self, digest: str) -> Path:
        row = self._media_row(digest)
        return Path(row[1]) if row is not None and row[1] is not None else self.path_of(digest)

    def _media_of(self, digest: str) -> Media:
        media = self._media.get(digest)
        if media is None:
            row = self._media_row(digest)
            if row is None:
                raise NotFound("This file is no longer kept here. Upload it again.")
            media = media_from(json.loads(row[0]), self._path_of_row)
            self._media[digest] = media
        return media

    def file(self, owner: str, file_id: str) -> Stored:
        """Raises NotFound when there is no such file of this owner, MediaError when a linked file changed."""
        stored = self._file(owner, file_id)
        self.media(file_id)
        return stored

    def _file(self, owner: str, file_id: str) -> Stored:
        select = (
            "SELECT files.id, files.digest, name, size, created, purpose FROM files JOIN media USING (digest) "
            "WHERE files.id = ? AND owner = ?"
        )
        with self._database.lock:
            row = self._database.execute(select, (file_id, owner)).fetchone()
            if row is None:
                raise NotFound("There is no such file here. Upload it again.", code="file_not_found")
            return self._stored(row)

    def _stored(self, row: tuple[str, str, str, int, float, str]) -> Stored:
        file_id, digest, name, size, created, purpose = row
        media = self._media_of(digest)
        return Stored(file_id, digest, name, media.path, media, size, created, purpose)

    def files(self, owner: str) -> list[Stored]:
        """Newest first."""
        select = (
            "SELECT files.id, files.digest, name, size, created, purpose FROM files JOIN media USING (digest) "
            "WHERE owner = ? ORDER BY created DESC, files.rowid DESC"
        )
        with self._database.lock:
            return [self._stored(row) for row in self._database.execute(select, (owner,)).fetchall()]

    def media(self, attachment: Attachment | str) -> Media:
        """What a file holds, by attachment or file id. Raises NotFound, or MediaError when a linked file changed."""
        file_id = attachment if isinstance(attachment, str) else attachment.id
        with self._database.lock:
            row = self._database.execute("SELECT digest FROM files WHERE id = ?", (file_id,)).fetchone()
            if row is None:
                raise NotFound("This file is no longer kept here. Upload it again.", code="file_not_found")
            media = self._media_of(row[0])
            media_row = self._media_row(row[0])
        if media_row is not None and media_row[1] is not None:
            check_unchanged(media.path, media_row[2])
        return media

    def remove_file(self, owner: str, file_id: str) -> None:
        """Raises Conflict while a conversation shows it."""
        with self._database.transaction() as database:
            stored = self._file(owner, file_id)
            if database.execute("SELECT 1 FROM shown WHERE file = ?", (file_id,)).fetchone():
                raise Conflict("A conversation shows this file. Delete the conversation to remove it.")
            database.execute("DELETE FROM files WHERE id = ?", (file_id,))
            unused = self._forget_unused(database, [stored.digest])
        self._erase(unused)

    def remove_unsent(self, before: float) -> None:
        """Files attached on the page earlier than `before` (epoch seconds) and never sent."""
        unsent = "purpose = '' AND created < ? AND id NOT IN (SELECT file FROM shown)"
        with self._database.transaction() as database:
            select = f"SELECT DISTINCT digest FROM files WHERE {unsent}"
            digests = [digest for (digest,) in database.execute(select, (before,))]
            database.execute(f"DELETE FROM files WHERE {unsent}", (before,))
            unused = self._forget_unused(database, digests)
        self._erase(unused)

    def _forget_unused(self, database: sqlite3.Connection, digests: Iterable[str]) -> list[str]:
        """Drops the media rows no file names any more; the files on disk go after the commit (`_erase`)."""
        unused = []
        for digest in digests:
            if database.execute("SELECT 1 FROM files WHERE digest = ?", (digest,)).fetchone() is None:
                database.execute("DELETE FROM media WHERE digest = ?", (digest,))
                self._media.pop(digest, None)
                unused.append(digest)
        return unused

    def _erase(self, digests: Iterable[str]) -> None:
        with self._database.lock, self._database.sentences():
            for digest in digests:
                if self._media_row(digest) is not None:  # uploaded again meanwhile
                    continue
                for path in (self.data_dir / "media" / digest[:2]).glob(f"{digest}*"):
                    path.unlink(missing_ok=True)
                shutil.rmtree(self.data_dir / "pictures" / digest, ignore_errors=True)

    def used_bytes(self, owner: str) -> int:
        """Disk space of an owner's files; linked files cost none."""
        select = (
            "SELECT coalesce(sum(size), 0) FROM media WHERE linked IS NULL AND digest IN "
            "(SELECT digest FROM files WHERE owner = ?)"
        )
        with self._database.lock:
            (used,) = self._database.execute(select, (owner,)).fetchone()
        return int(used)

    # Conversations

    def conversations(self, owner: str, search: str = "") -> list[Summary]:
        """Newest first; with `search`, those whose title or any text holds those letters."""
        select = "SELECT id, title, updated FROM conversations WHERE owner = :owner"
        if search.strip():
            select += (
                " AND (title LIKE :pattern ESCAPE '\\' OR EXISTS (SELECT 1 FROM turns "
                "WHERE conversation = conversations.id AND text LIKE :pattern ESCAPE '\\'))"
            )
        escaped = clean(search.strip()).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        with self._database.lock:
            rows = self._database.execute(
                select + " ORDER BY updated DESC, rowid DESC", {"owner": owner, "pattern": f"%{escaped}%"}
            ).fetchall()
        return [Summary(*row) for row in rows]

    def load(self, owner: str, conversation_id: str) -> Conversation:
        """Raises NotFound when there is no such conversation of this owner."""
        with self._database.lock:
            title, leaf, version = self._conversation_row(owner, conversation_id)
            rows = self._database.execute(
                "SELECT id, state, text, thinking, record FROM turns WHERE conversation = ? ORDER BY position",
                (conversation_id,),
            ).fetchall()
            turns = tuple(
                turn_from(turn_id, state, text, thinking, record, path_of=self._path_of_row)
                for turn_id, state, text, thinking, record in rows
            )
        return Conversation(conversation_id, title, turns, leaf, version)

    def _conversation_row(self, owner: str, conversation_id: str) -> tuple[str, str | None, int]:
        select = "SELECT title, leaf, version FROM conversations WHERE id = ? AND owner = ?"
        row = self._database.execute(select, (conversation_id, owner)).fetchone()
        if row is None:
            raise NotFound("This conversation is not here any more.", code="conversation_not_found")
        return row

    def save(self, owner: str, conversation: Conversation) -> Conversation:
        """Writes the whole tree; durable when it returns. The answer has the new version.

        Raises Conflict when it was saved elsewhere since it was loaded, NotFound when it was deleted.
        """
        version = conversation.version + 1
        title, now = clean(conversation.title), time.time()
        with self._database.transaction() as database:
            if conversation.version == 0:
                taken = database.execute("SELECT owner FROM conversations WHERE id = ?", (conversation.id,)).fetchone()
                if taken is not None:
                    raise Conflict("This conversation was changed in another tab. Reload it, then try again.")
                database.execute(
                    "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?)",
                    (conversation.id, owner, title, conversation.leaf, version, now),
                )
            else:
                *_, current = self._conversation_row(owner, conversation.id)
                if current != conversation.version:
                    raise Conflict("This conversation was changed in another tab. Reload it, then try again.")
                database.execute(
                    "UPDATE conversations SET title = ?, leaf = ?, version = ?, updated = ? WHERE id = ?",
                    (title, conversation.leaf, version, now, conversation.id),
                )
            self._write_turns(database, owner, conversation)
        return replace(conversation, title=title, version=version)

    def _write_turns(self, database: sqlite3.Connection, owner: str, conversation: Conversation) -> None:
        for position, turn in enumerate(conversation.turns):
            database.execute(
                "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (conversation, id) DO UPDATE SET "
                "position = excluded.position, state = excluded.state, text = excluded.text, "
                "thinking = excluded.thinking, record = excluded.record "
                "WHERE (position, state, text, thinking, record) IS NOT "
                "(excluded.position, excluded.state, excluded.text, excluded.thinking, excluded.record)",
                (conversation.id, turn.id, position, *turn_columns(turn)),
            )
            for attachment in turn.attachments:
                database.execute(
                    "INSERT OR IGNORE INTO shown SELECT ?, id FROM files WHERE id = ? AND owner = ?",
                    (conversation.id, attachment.id, owner),
                )
        kept = json.dumps([turn.id for turn in conversation.turns])
        database.execute(
            "DELETE FROM turns WHERE conversation = ? AND id NOT IN (SELECT value FROM json_each(?))",
            (conversation.id, kept),
        )

    def save_turn(self, owner: str, conversation_id: str, turn: Turn) -> int:
        """Writes one turn of a saved conversation; the new version. Raises NotFound when it was deleted."""
        with self._database.transaction() as database:
            *_, version = self._conversation_row(owner, conversation_id)
            changed = database.execute(
                "UPDATE turns SET state = ?, text = ?, thinking = ?, record = ? WHERE conversation = ? AND id = ?",
                (*turn_columns(turn), conversation_id, turn.id),
            ).rowcount
            if not changed:
                raise NotFound("This answer is not in its conversation any more.", code="turn_not_found")
            database.execute(
                "UPDATE conversations SET version = ?, updated = ? WHERE id = ?",
                (version + 1, time.time(), conversation_id),
            )
        return version + 1

    def rename(self, owner: str, conversation_id: str, title: str) -> None:
        with self._database.transaction() as database:
            *_, version = self._conversation_row(owner, conversation_id)
            database.execute(
                "UPDATE conversations SET title = ?, version = ? WHERE id = ?",
                (" ".join(clean(title).split())[:200], version + 1, conversation_id),
            )

    def delete(self, owner: str, conversation_id: str) -> None:
        """And the files that only this conversation shows."""
        with self._database.transaction() as database:
            self._conversation_row(owner, conversation_id)
            select = "SELECT file, digest FROM shown JOIN files ON files.id = shown.file WHERE conversation = ?"
            files = database.execute(select, (conversation_id,)).fetchall()
            database.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
            for file_id, _ in files:
                database.execute(
                    "DELETE FROM files WHERE id = ? AND purpose = '' AND id NOT IN (SELECT file FROM shown)", (file_id,)
                )
            unused = self._forget_unused(database, {digest for _, digest in files})
        self._erase(unused)


def turn_columns(turn: Turn) -> tuple[str, str, str, str]:
    return turn.state, clean(turn.text), clean(turn.thinking), turn_record(turn)
