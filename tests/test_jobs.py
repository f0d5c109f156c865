"""An answer is written into the store while pages watch, come and go."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen3vl_webui.conversation import Conversation, Turn
from qwen3vl_webui.engine.contract import GenerationRequest, Message
from qwen3vl_webui.errors import Conflict, EngineError, NotFound, Overloaded, TooLong
from qwen3vl_webui.jobs import JOBS_PER_OWNER, SAVE_SECONDS, Job, Jobs
from qwen3vl_webui.store.store import Store
from tests.scripted_engine import Gate, ScriptedEngine
from tests.served import in_new_loop

REQUEST = GenerationRequest((Message("user", ("hello",)),))
Start = Callable[..., Job]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine("one two three")


@pytest.fixture
def jobs(engine: ScriptedEngine, store: Store) -> Iterator[Jobs]:
    jobs = Jobs(engine, store)
    yield jobs
    jobs.close()


@pytest.fixture
def start(jobs: Jobs, store: Store) -> Start:
    def start(owner: str = "local") -> Job:
        conversation = store.save(owner, Conversation().ask("hello").answer())
        return jobs.start(owner, conversation.id, str(conversation.leaf), REQUEST)

    return start


def stored(store: Store, job: Job) -> Turn:
    return store.load(job.owner, job.conversation_id).turn(job.turn_id)


def test_a_whole_answer_is_done_and_stored(store: Store, start: Start, engine: ScriptedEngine) -> None:
    engine.note = "Read again."
    job = start()
    assert job.join(10)
    progress, turn = job.snapshot(), stored(store, job)
    assert (progress.state, progress.text, progress.note) == ("done", "one two three", "Read again.")
    assert turn.note == "Read again."
    assert (turn.state, turn.text, turn.parent) == (
        "done",
        "one two three",
        store.load("local", job.conversation_id).turns[0].id,
    )
    assert turn.statistics == progress.statistics
    assert progress.statistics["reason"] == "stop" and progress.statistics["completion_tokens"] > 0
    assert progress.prefill.done == progress.prefill.total > 0


def test_reasoning_is_kept_apart_with_its_duration(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.thinking, engine.pace = "let me see", 0.01
    job = start()
    assert job.join(10)
    turn = stored(store, job)
    assert (turn.thinking, turn.text) == ("let me see", "one two three")
    assert 0 < turn.thinking_seconds < 5 and job.snapshot().thinking_seconds == turn.thinking_seconds


def test_the_first_token_is_stored_at_once(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.gate = Gate(after=1)
    job = start()
    assert engine.gate.reached.wait(10)
    turn = stored(store, job)
    assert turn.state == "partial" and turn.text == job.snapshot().text == "one"
    engine.gate.release()
    assert job.join(10)


@pytest.mark.parametrize("gate", [Gate(prefill=True), Gate(after=2)], ids=["prefill", "decode"])
def test_stop_keeps_the_text_and_frees_the_engine(
    gate: Gate, engine: ScriptedEngine, store: Store, start: Start
) -> None:
    gate.hold_again()
    engine.gate = gate
    job = start()
    assert gate.reached.wait(10)
    job.stop()
    assert job.join(10)
    assert engine.running is None and engine.stopped == [REQUEST]
    turn = stored(store, job)
    assert turn.state == job.snapshot().state == "aborted"
    assert turn.text == job.snapshot().text == ("" if gate.prefill else "one two")


def test_a_refused_prompt_fails_with_its_sentence(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.refuse = TooLong("The prompt has 9 tokens; the model reads 5.")
    job = start()
    assert job.join(10)
    turn = stored(store, job)
    assert (turn.state, turn.note) == ("failed", "The prompt has 9 tokens; the model reads 5.")


def test_an_engine_that_fails_keeps_what_was_said(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.fail, engine.fail_after = EngineError("The engine failed."), 1
    job = start()
    assert job.join(10)
    turn = stored(store, job)
    assert (turn.state, turn.note, turn.text) == ("failed", "The engine failed.", "one")


def test_a_bug_in_the_engine_is_a_sentence(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.script = lambda request: 1 / 0  # type: ignore[assignment,return-value]
    job = start()
    assert job.join(10)
    assert stored(store, job).state == "failed" and "log has the cause" in job.snapshot().note


def test_one_answer_at_a_time_in_a_conversation(engine: ScriptedEngine, jobs: Jobs, store: Store, start: Start) -> None:
    engine.gate = Gate(prefill=True)
    job = start()
    with pytest.raises(Conflict, match="still being written"):
        jobs.start("local", job.conversation_id, job.turn_id, REQUEST)
    engine.gate.release()
    assert job.join(10)
    conversation = store.load("local", job.conversation_id)
    again = store.save("local", conversation.answer(instead_of=job.turn_id))
    assert jobs.start("local", again.id, str(again.leaf), REQUEST).join(10)


def test_too_many_answers_of_one_owner_are_refused(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.gate = Gate(prefill=True)
    for _ in range(JOBS_PER_OWNER):
        start()
    with pytest.raises(Overloaded):
        start()
    refused = store.load("local", store.conversations("local")[0].id).turns[-1]
    assert refused.state == "failed" and "Wait for one" in refused.note
    start("somebody else")
    engine.gate.release()


def test_only_a_turn_of_ones_own_is_written(jobs: Jobs, store: Store) -> None:
    conversation = store.save("local", Conversation().ask("hello").answer())
    with pytest.raises(NotFound):
        jobs.start("other", conversation.id, str(conversation.leaf), REQUEST)
    with pytest.raises(NotFound):
        jobs.start("local", conversation.id, "unknown", REQUEST)


def test_a_finished_job_is_found_for_a_minute(jobs: Jobs, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start()
    assert job.join(10)
    assert jobs.find(job.conversation_id) is job
    monkeypatch.setattr("qwen3vl_webui.jobs.KEEP_SECONDS", -1.0)
    assert jobs.find(job.conversation_id) is None


def test_a_deleted_conversation_ends_its_answer(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.gate = Gate(after=1)
    job = start()
    assert engine.gate.reached.wait(10)
    store.delete("local", job.conversation_id)
    job.stop()
    assert job.join(10) and job.snapshot().state == "aborted"


def test_closing_stops_every_answer(engine: ScriptedEngine, store: Store, jobs: Jobs, start: Start) -> None:
    engine.endless, engine.pace = True, 0.01
    running = [start() for _ in range(3)]
    jobs.close()
    assert [stored(store, job).state for job in running] == ["aborted"] * 3
    assert engine.running is None


def test_watchers_see_every_change_and_the_end(engine: ScriptedEngine, start: Start) -> None:
    """Ten pages watch one answer; one leaves early; none polls, none misses the end."""
    engine.pace = 0.002

    async def watch(job: Job) -> list[str]:
        seen, version = [], -1
        while True:
            version = await job.changed(version)
            progress = job.snapshot()
            seen.append(progress.text)
            if progress.state != "partial":
                return seen

    async def scene() -> list[list[str]]:
        engine.gate = Gate(after=1)
        job = start()
        leaving = asyncio.create_task(watch(job))
        watching = [asyncio.create_task(watch(job)) for _ in range(10)]
        await asyncio.to_thread(engine.gate.reached.wait, 10)
        leaving.cancel()
        engine.gate.release()
        seen = await asyncio.wait_for(asyncio.gather(*watching), 20)
        assert await asyncio.wait_for(job.changed(10**9), 1) > 0  # an ended job never makes one wait
        return seen

    for seen in in_new_loop(scene()):
        assert seen[-1] == "one two three"
        assert all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))


def test_an_answer_outlives_the_event_loop_that_watched(engine: ScriptedEngine, store: Store, start: Start) -> None:
    engine.gate = Gate(after=1)
    job = start()

    async def glance() -> None:
        version = await job.changed(-1)
        waiting = asyncio.create_task(job.changed(version + 10**6))
        await asyncio.sleep(0)
        waiting.cancel()

    in_new_loop(glance())
    engine.gate.release()
    assert job.join(10) and stored(store, job).state == "done"


def test_two_hundred_stops_leave_no_thread(engine: ScriptedEngine, start: Start) -> None:
    before = threading.active_count()
    engine.endless = True
    for _ in range(200):
        job = start()
        job.stop()
        assert job.join(10)
    assert threading.active_count() <= before and engine.running is None and engine.waiting == 0


ANSWERING = """
import sys, time
from pathlib import Path
from qwen3vl_webui.conversation import Conversation
from qwen3vl_webui.engine.contract import GenerationRequest, Message
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.store.store import Store
from tests.scripted_engine import ScriptedEngine
from tests.served import in_new_loop
from tests.served import in_new_loop

store = Store(Path(sys.argv[1]))
jobs = Jobs(ScriptedEngine("la ", endless=True, pace=0.01), store)
conversation = store.save("local", Conversation().ask("sing").answer())
job = jobs.start("local", conversation.id, conversation.leaf, GenerationRequest((Message("user", ("sing",)),)))
while True:
    print(conversation.id, len(job.snapshot().text), flush=True)
    time.sleep(0.01)
"""


def test_kill_9_costs_at_most_the_last_second_of_an_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANSWERING, str(tmp_path)]
    seen: list[tuple[float, int]] = []  # when the server was seen to have written how much
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        for line in server.stdout:
            conversation_id, length = line.split()
            seen.append((time.monotonic(), int(length)))
            if seen[-1][0] - seen[0][0] > 2.5:
                break
        server.kill()
    store = Store(tmp_path)
    question, answer = store.load("local", conversation_id).turns
    store.close()
    assert question.text == "sing" and answer.state == "aborted"
    old = [length for moment, length in seen if moment < seen[-1][0] - 2 * SAVE_SECONDS]
    assert len(answer.text) >= max(old) and answer.text
