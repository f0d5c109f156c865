"""What the store acknowledged is kept, what it refused leaves nothing, and nobody sees what is another's."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_webui.conversation import Attachment, Conversation
from qwen3vl_webui.errors import Conflict, MediaError, NotFound, StorageError
from qwen3vl_webui.media.values import Clip, Document, FramePlan, Image
from qwen3vl_webui.store.files import NAME_LENGTH, clean_name
from qwen3vl_webui.store.records import part_from, part_record
from qwen3vl_webui.store.store import Store
from tests import clips

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.png(tmp_path_factory.mktemp("png") / "a.png")


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def asked(store: Store, *attachments: Attachment, owner: str = "local", text: str = "What is this?") -> Conversation:
    return store.save(owner, Conversation().ask(text, attachments))


# Files


def test_a_picture_is_kept_under_its_digest(store: Store, png: Path) -> None:
    stored = store.add_file("local", "holiday.png", png)
    assert (stored.kind, stored.name, stored.size) == ("image", "holiday.png", png.stat().st_size)
    assert stored.path == store.path_of(stored.digest) and stored.path.read_bytes() == png.read_bytes()
    assert isinstance(stored.media, Image) and stored.media.path == stored.path
    assert store.file("local", stored.id) == stored
    assert store.media(stored.attachment) == store.media(stored.id) == stored.media


def test_a_video_and_a_pdf_are_known_by_content_and_survive_a_restart(tmp_path: Path) -> None:
    video = clips.colour_clip(tmp_path / "a.mp4", 2)
    pdf = clips.pdf(tmp_path / "b.pdf", ["one", "two"])
    store = Store(tmp_path / "data")
    film = store.add_file("local", "no name at all", video)
    paper = store.add_file("local", "film.mp4", pdf)
    store.close()
    store = Store(tmp_path / "data")
    assert store.file("local", film.id) == film and isinstance(film.media, Clip)
    assert store.file("local", paper.id) == paper and isinstance(paper.media, Document) and paper.media.pages == 2
    assert [file.id for file in store.files("local")] == [paper.id, film.id]
    store.close()


def test_equal_files_share_one_copy_until_the_last_goes(store: Store, png: Path) -> None:
    first = store.add_file("local", "a.png", png)
    second = store.add_file("somebody", "b.png", [png.read_bytes()])
    assert first.id != second.id and first.path == second.path
    store.remove_file("local", first.id)
    assert second.path.exists()
    store.remove_file("somebody", second.id)
    assert files_below(store.data_dir / "media") == []


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"hello, this is plain text", "text"), (b"%PDF-1.7 broken", "PDF")]
)
def test_a_refused_file_leaves_nothing(store: Store, content: bytes, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        store.add_file("local", "a.png", [content])
    assert files_below(store.data_dir / "media") == [] and store.files("local") == []


def test_a_file_over_the_limit_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, file_limit=1000)
    with pytest.raises(MediaError, match="larger than"):
        store.add_file("local", "a.png", [b"x" * 600, b"x" * 600])
    assert files_below(tmp_path / "media") == []
    store.close()


def test_visitors_have_a_quota_and_the_local_person_has_none(tmp_path: Path, png: Path) -> None:
    store = Store(tmp_path, quota=png.stat().st_size)
    store.add_file("visitor", "a.png", png)
    with pytest.raises(StorageError, match="Delete some conversations"):
        store.add_file("visitor", "b.png", png)
    for _ in range(3):
        store.add_file("local", "c.png", png)
    assert list((tmp_path / "media" / "incoming").iterdir()) == []
    store.close()


def test_a_broken_upload_leaves_nothing(store: Store) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"\x89PNG"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.add_file("local", "a.png", pieces())
    assert files_below(store.data_dir / "media") == []


def test_a_linked_file_is_not_copied_and_must_not_change(store: Store, tmp_path: Path) -> None:
    original = clips.png(tmp_path / "there.png")
    stored = store.add_file("local", "there.png", original, link=True)
    assert stored.path == original and files_below(store.data_dir / "media") == []
    assert store.used_bytes("local") == 0
    assert store.media(stored.attachment).path == original
    os.utime(original, (1, 1))
    for look in (lambda: store.media(stored.attachment), lambda: store.file("local", stored.id)):
        with pytest.raises(MediaError, match="changed"):
            look()
    original.unlink()
    with pytest.raises(MediaError, match="not in its folder"):
        store.media(stored.attachment)
    store.remove_file("local", stored.id)


def test_removing_a_linked_file_keeps_the_original(store: Store, tmp_path: Path) -> None:
    original = clips.png(tmp_path / "there.png")
    store.remove_file("local", store.add_file("local", "there.png", original, link=True).id)
    assert original.exists()


def test_a_path_that_is_not_there_is_a_sentence(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be read"):
        store.add_file("local", "a", tmp_path / "missing")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a.mp4", "a.mp4"),
        ("a\nb\0c\u202e.png", "a b c .png"),
        ("", "untitled"),
        ("\ud800.png", "?.png"),
        ("x" * 300, "x" * NAME_LENGTH),
    ],
)
def test_names_are_shown_without_folders_and_control_characters(given: str, shown: str) -> None:
    assert clean_name(given) == shown


def test_somebody_elses_file_is_not_found(store: Store, png: Path) -> None:
    stored = store.add_file("one", "a.png", png)
    for owner, file_id in (("two", stored.id), ("one", stored.id[:-1]), ("one", stored.digest), ("one", "")):
        with pytest.raises(NotFound):
            store.file(owner, file_id)
        with pytest.raises(NotFound):
            store.remove_file(owner, file_id)
    assert store.files("two") == []


# Conversations


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    film = store.add_file("local", "a.mp4", clips.colour_clip(tmp_path / "a.mp4", 2))
    paper = store.add_file("local", "b.pdf", clips.pdf(tmp_path / "b.pdf", ["one"]))
    assert isinstance(film.media, Clip) and isinstance(paper.media, Document)
    plan = FramePlan(film.media.between(0.1, 1.9), ((0.1, 0.1), (1 / 3, 0.7)), 64, 32)
    page = Image(paper.path, paper.digest, 1190, 1684, page=1).at(64, 96)
    conversation = Conversation().ask(
        "第一个问题 <|im_start|>", (film.attachment, paper.attachment), options={"fps": 2}
    )
    conversation = conversation.update(str(conversation.leaf), parts=(plan, "Page 1: ", page, "?"), task="ocr")
    conversation = conversation.answer()
    conversation = conversation.update(
        str(conversation.leaf),
        text="答案",
        thinking="hm",
        thinking_seconds=1.5,
        state="done",
        statistics={"reason": "stop"},
    )
    conversation = conversation.answer(instead_of=conversation.leaf)
    conversation = conversation.update(str(conversation.leaf), state="failed", note="Too long.")
    saved = store.save("local", conversation)
    assert saved == replace(conversation, version=1)
    assert store.load("local", saved.id) == saved
    store.close()
    store = Store(tmp_path / "data")
    assert store.load("local", saved.id) == saved
    store.close()


def test_parts_are_equal_after_json() -> None:
    clip = Clip(Path("/x"), "d", 0.0, 1e-7, 3, 4, "h264", "mov,mp4", 29.97, True)
    for part in ("text", Image(Path("/x"), "d", 1, 2), FramePlan(clip, ((0.1, 0.2),), 32, 32, ("said",))):
        assert part_from(part_record(part), lambda digest: Path("/x")) == part


def test_two_tabs_conflict(store: Store) -> None:
    first = asked(store)
    store.save("local", first.answer())
    with pytest.raises(Conflict, match="another tab"):
        store.save("local", first.ask("mine"))
    with pytest.raises(Conflict):
        store.save("local", replace(first, version=0))
    assert len(store.load("local", first.id).turns) == 2


def test_many_writers_lose_nothing(store: Store) -> None:
    conversation = asked(store)

    def add(number: int) -> None:
        while True:
            try:
                store.save("local", store.load("local", conversation.id).ask(str(number)))
                return
            except Conflict:
                time.sleep(0.001)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = store.load("local", conversation.id)
    assert {turn.text for turn in loaded.turns[1:]} == {str(number) for number in range(8)}
    assert loaded.version == 9


def test_an_answer_is_written_while_it_grows(store: Store) -> None:
    conversation = store.save("local", asked(store).answer())
    turn = conversation.turns[-1]
    version = store.save_turn("local", conversation.id, replace(turn, text="half", parts=None))
    loaded = store.load("local", conversation.id)
    assert loaded.turns[-1].text == "half" and loaded.version == version == conversation.version + 1
    with pytest.raises(Conflict):
        store.save("local", conversation)  # would have put the old text back
    with pytest.raises(NotFound):
        store.save_turn("other", conversation.id, turn)
    with pytest.raises(NotFound):
        store.save_turn("local", conversation.id, replace(turn, id="unknown"))


def test_half_written_answers_are_aborted_at_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    conversation = store.save("local", asked(store).answer())
    store.save_turn("local", conversation.id, replace(conversation.turns[-1], text="half"))
    store.close()
    store = Store(tmp_path)
    assert [(turn.state, turn.text) for turn in store.load("local", conversation.id).turns[1:]] == [("aborted", "half")]
    store.close()


def test_history_is_newest_first_and_searched_in_titles_and_texts(store: Store) -> None:
    first = asked(store, text="Alpha 100% [x]_y")
    second = asked(store, text="beta 你好")
    assert [summary.id for summary in store.conversations("local")] == [second.id, first.id]
    answered = first.answer()
    store.save("local", answered.update(str(answered.leaf), text="the gamma ray", state="done"))

    def found(words: str) -> list[str]:
        return [summary.id for summary in store.conversations("local", words)]

    assert found("") == [first.id, second.id]
    assert found("ALPHA") == found("gamma") == found("100%") == found("x]_y") == found("%") == [first.id]
    assert found("你好") == [second.id]
    assert found("a_b") == found("nothing") == []
    assert store.conversations("other") == []


def test_rename_and_delete(store: Store) -> None:
    conversation = asked(store)
    store.rename("local", conversation.id, "  A new\nname \ud800 ")
    assert store.load("local", conversation.id).title == "A new name ?"
    for owner_call in (
        lambda: store.rename("other", conversation.id, "x"),
        lambda: store.delete("other", conversation.id),
        lambda: store.load("other", conversation.id),
        lambda: store.save("other", replace(conversation, version=2)),
    ):
        with pytest.raises(NotFound):
            owner_call()
    store.delete("local", conversation.id)
    with pytest.raises(NotFound):
        store.load("local", conversation.id)
    with pytest.raises(NotFound):
        store.save("local", conversation)


def test_media_goes_with_the_last_conversation_that_shows_it(store: Store, png: Path) -> None:
    stored = store.add_file("local", "a.png", png)
    first, second = asked(store, stored.attachment), asked(store, stored.attachment)
    with pytest.raises(Conflict, match="shows this file"):
        store.remove_file("local", stored.id)
    store.playable_path(stored.digest).write_bytes(b"copy")
    thumb = store.data_dir / "pictures" / stored.digest / "1.webp"
    thumb.parent.mkdir(parents=True)
    thumb.write_bytes(b"thumb")
    store.delete("local", first.id)
    assert stored.path.exists()
    store.delete("local", second.id)
    assert files_below(store.data_dir / "media") == [] and not thumb.exists()
    with pytest.raises(NotFound):
        store.media(stored.attachment)


def test_a_forged_attachment_shows_nobody_elses_file(store: Store, png: Path) -> None:
    theirs = store.add_file("one", "a.png", png)
    asked(store, theirs.attachment, owner="two")
    store.remove_file("one", theirs.id)  # the other's conversation does not hold it
    assert store.files("one") == []


def test_lone_surrogates_do_not_stop_a_save(store: Store) -> None:
    saved = asked(store, text="a\ud800b")
    assert store.load("local", saved.id).turns[0].text == "a?b"


def test_what_was_attached_but_never_sent_goes_after_a_day(tmp_path: Path, png: Path) -> None:
    store = Store(tmp_path)
    unsent, sent = store.add_file("local", "a.png", png), store.add_file("local", "b.png", [png.read_bytes()])
    kept = store.add_file("local", "c.png", png, purpose="vision")
    asked(store, sent.attachment)
    store.close()
    with sqlite3.connect(tmp_path / "store.sqlite") as database:
        database.execute("UPDATE files SET created = created - 100000")
    database.close()
    store = Store(tmp_path)
    assert {file.id for file in store.files("local")} == {sent.id, kept.id} and unsent.id
    store.close()


# The data folder


def test_a_second_server_on_the_same_folder_is_refused(store: Store) -> None:
    with pytest.raises(StorageError, match="already uses"):
        Store(store.data_dir)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written.*--data-dir"):
        Store(tmp_path / "file" / "data")


def test_other_users_of_the_machine_cannot_look_in(store: Store) -> None:
    assert store.data_dir.stat().st_mode & 0o077 == 0


def test_a_newer_schema_is_refused_and_kept(tmp_path: Path) -> None:
    Store(tmp_path).close()
    database = sqlite3.connect(tmp_path / "store.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="newer version"):
        Store(tmp_path)


def test_a_damaged_database_is_a_sentence(tmp_path: Path) -> None:
    Store(tmp_path).close()
    (tmp_path / "store.sqlite").write_bytes(b"not a database " * 1000)
    with pytest.raises(StorageError, match="damaged"):
        Store(tmp_path)


def test_what_a_killed_server_left_is_swept(tmp_path: Path) -> None:
    Store(tmp_path).close()
    (tmp_path / "media" / "incoming" / "half").write_bytes(b"x")
    (tmp_path / "media" / "ab").mkdir()
    (tmp_path / "media" / "ab" / "abcd").write_bytes(b"no row")
    (tmp_path / "media" / "ab" / "abcd.play.mp4.part").write_bytes(b"half")
    Store(tmp_path).close()
    assert files_below(tmp_path / "media") == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from qwen3vl_webui.conversation import Conversation
from qwen3vl_webui.errors import StorageError
from qwen3vl_webui.store.store import Store

folder = Path(sys.argv[1])
store = Store(folder)
kept = store.save("local", Conversation().ask("kept"))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
for write in (
    lambda: store.add_file("local", "a.png", [b"x" * 100_000] * 20),
    lambda: store.save("local", kept.ask("y" * 2_000_000)),
):
    try:
        write()
        print("written")
    except StorageError as error:
        print(error.sentence)
print([path.name for path in (folder / "media").rglob("*") if path.is_file()])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(store.save("local", store.load("local", kept.id).ask("again")).version)
"""


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a full disk: both fail in the middle of a write."""
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 4, ran.stderr
    assert all("cannot be written" in line and "Free some space" in line for line in lines[:2])
    assert lines[2:] == ["[]", "2"]


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from qwen3vl_webui.conversation import Conversation
from qwen3vl_webui.store.store import Store

store = Store(Path(sys.argv[1]))
number = 0
while True:
    conversation = store.save("local", Conversation().ask(f"question {number}").answer())
    store.save_turn("local", conversation.id, replace(conversation.turns[-1], text=f"answer {number}"))
    print(conversation.id, number, flush=True)
    number += 1
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    acknowledged: list[tuple[str, str]] = []
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert writer.stdout is not None
        lines = []
        for line in writer.stdout:
            lines.append(line)
            if len(lines) == 40:
                writer.send_signal(signal.SIGKILL)
        writer.stdout.close()
        writer.wait()
        whole = [line.split() for line in lines if line.endswith("\n")]
        acknowledged += [(conversation, number) for conversation, number in whole]
    assert len(acknowledged) >= 120
    store = Store(tmp_path)
    for conversation_id, number in acknowledged:
        question, answer = store.load("local", conversation_id).turns
        assert (question.text, answer.text, answer.state) == (f"question {number}", f"answer {number}", "aborted")
    store.close()
