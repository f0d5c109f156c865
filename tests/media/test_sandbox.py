from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import children, confinement, sandbox
from qwen3vl_webui.media.confinement import Limits
from tests.media import confined

TRUSTED = ("qwen3vl_webui.media", "tests.media")


@pytest.fixture(scope="module")
def fork_server() -> Iterator[children.ForkServer]:
    os.environ["QWEN3VL_API_KEY"] = "a secret"
    server = children.ForkServer(TRUSTED)
    yield server
    server.close()
    del os.environ["QWEN3VL_API_KEY"]


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch, fork_server: children.ForkServer) -> None:
    monkeypatch.setattr(sandbox, "server", fork_server)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(b"hello world")
    return path


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def server_process(server: children.ForkServer) -> int:
    assert server.process is not None
    return server.process.pid


def test_a_function_reads_the_file_it_was_given(file: Path) -> None:
    assert sandbox.call(confined.first_bytes, file, 5) == b"hello"


def test_each_call_starts_at_the_beginning_of_the_file(file: Path) -> None:
    assert [sandbox.call(confined.first_bytes, file, 3) for _ in range(2)] == [b"hel", b"hel"]


def test_values_and_arrays_cross_both_ways(file: Path) -> None:
    array = np.arange(3_000_000, dtype=np.float32).reshape(3, -1)
    back = sandbox.call(confined.echo, file, {"a": [1, None, (2.5, "é")], "b": array})
    assert back["a"] == [1, None, (2.5, "é")]
    assert np.array_equal(back["b"], array) and back["b"].flags.writeable


def test_a_stream_comes_in_order_and_ends(file: Path) -> None:
    assert list(sandbox.stream(confined.count, file, 1000)) == list(range(1000))


def test_every_call_has_a_process_of_its_own(file: Path) -> None:
    assert sandbox.call(confined.process, file) != sandbox.call(confined.process, file)


@pytest.mark.parametrize("what", confined.ATTEMPTS)
def test_a_child_can_not(what: str, file: Path) -> None:
    assert sandbox.call(confined.attempt, file, what, str(file)) == "PermissionError"
    assert file.read_bytes() == b"hello world"
    assert [path.name for path in file.parent.iterdir()] == ["upload"]


@pytest.mark.parametrize("layer", ["_restrict_landlock", "_restrict_seccomp"])
def test_each_layer_alone_keeps_files_closed(layer: str, file: Path) -> None:
    if layer == "_restrict_landlock" and confinement.landlock_abi() == 0:
        pytest.skip("this kernel has no Landlock")
    code = f"""
import sys
from qwen3vl_webui.media import confinement as c
c._prctl(c.PR_SET_NO_NEW_PRIVS, 1)
c.{layer}()
try:
    open(sys.argv[1])
except PermissionError:
    print("closed")
"""
    ran = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "closed\n"


def test_a_child_may_start_threads_for_decoders_do(file: Path) -> None:
    assert sandbox.call(confined.in_thread, file) == [0, 1, 2]


def test_a_child_holds_only_the_file_and_the_way_back(file: Path) -> None:
    assert sandbox.call(confined.descriptors, file) == ["file", "null", "null", "null", "socket"]


def test_a_child_knows_no_secret_of_the_web_server(file: Path) -> None:
    assert "a secret" not in sandbox.call(confined.environment, file).values()


@pytest.mark.parametrize(("function", "says"), [(confined.spin, "takes too long"), (confined.stubborn_spin, "again")])
def test_a_child_that_computes_without_end_is_stopped(function: Callable[..., None], says: str, file: Path) -> None:
    with pytest.raises(MediaError, match=says):
        sandbox.call(function, file, limits=Limits(cpu_seconds=1, wall_seconds=60))


def test_a_child_that_waits_without_end_is_stopped(file: Path) -> None:
    with pytest.raises(MediaError, match="takes too long"):
        sandbox.call(confined.sleep, file, 60.0, limits=Limits(wall_seconds=0.3))


def test_a_child_can_not_take_more_memory_than_its_limit(file: Path) -> None:
    assert sandbox.call(confined.allocate, file, 100 << 20) == 100 << 20
    with pytest.raises(MediaError, match="too much memory"):
        sandbox.call(confined.allocate, file, 3 << 30)


def test_a_crash_is_a_sentence_and_the_next_call_works(file: Path) -> None:
    with pytest.raises(MediaError, match="crashed"):
        sandbox.call(confined.crash, file)
    assert sandbox.call(confined.first_bytes, file, 5) == b"hello"


def test_a_refusal_keeps_its_sentence_as_one_plain_line(file: Path) -> None:
    with pytest.raises(MediaError) as caught:
        sandbox.call(confined.refuse, file)
    assert caught.value.sentence == "Try another  [31mfile." and caught.value.code == "too_odd"


@pytest.mark.parametrize("function", [confined.fail, confined.secret])
def test_any_other_error_is_a_general_sentence(function: Callable[..., object], file: Path) -> None:
    with pytest.raises(MediaError, match="damaged or incomplete"):
        sandbox.call(function, file)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        struct.pack("<cQ", b"V", 1 << 60),
        struct.pack("<cQ", b"V", 4) + b"abcd",
        struct.pack("<cQ", b"V", 1) + b"N" + struct.pack("<cQ", b"V", 1) + b"N",
        struct.pack("<cQ", b"D", 1) + b"N",
        struct.pack("<cQ", b"E", 1) + b"N",
    ],
    ids=["nothing", "nonsense", "huge", "no value", "two values", "no values", "no sentence"],
)
def test_forged_results_are_refused(raw: bytes, file: Path) -> None:
    with pytest.raises(MediaError):
        sandbox.call(confined.forge, file, raw)


def test_closing_a_stream_ends_its_child(file: Path) -> None:
    stream = sandbox.stream(confined.pictures, file)
    process, _ = next(stream)
    assert is_running(process)
    stream.close()
    assert not is_running(process)


def test_a_child_that_does_not_write_ends_on_close_too(file: Path) -> None:
    stream = sandbox.stream(confined.process_then_sleep, file)
    process = next(stream)
    stream.close()
    assert not is_running(process)


def test_a_slow_consumer_costs_no_memory_and_no_time_of_the_child(file: Path) -> None:
    stream = sandbox.stream(confined.pictures, file, limits=Limits(wall_seconds=2))
    process, _ = next(stream)
    sizes = []
    for _ in range(4):
        time.sleep(0.6)  # longer than the wall clock allows, all in all
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
        sizes.append(int(pages) * os.sysconf("SC_PAGE_SIZE"))
        next(stream)
    stream.close()
    assert max(sizes) - min(sizes) < 16 << 20  # it writes 3 MB pictures as fast as they are taken


def test_many_calls_at_once_get_their_own_answers(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: sandbox.call(confined.echo, file, number), range(80)))
    assert answers == list(range(80))


def test_a_stream_does_not_hold_up_other_calls(file: Path) -> None:
    stream = sandbox.stream(confined.pictures, file)
    next(stream)
    assert sandbox.call(confined.first_bytes, file, 5) == b"hello"
    stream.close()


def test_nothing_is_left_behind(file: Path, fork_server: children.ForkServer) -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()  # what other tests left to it
        server = server_process(fork_server)
        opened = [len(os.listdir(f"/proc/{process}/fd")) for process in (os.getpid(), server)]
        return opened[0], opened[1], threading.active_count()

    sandbox.call(confined.process, file)
    before = held()
    for _ in range(10):
        sandbox.call(confined.process, file)
        stream = sandbox.stream(confined.pictures, file)
        next(stream)
        stream.close()
        with pytest.raises(MediaError):
            sandbox.call(confined.fail, file)
    assert until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    server = server_process(fork_server)
    assert Path(f"/proc/{server}/task/{server}/children").read_text() == ""


def test_the_server_starts_again_after_it_died(file: Path, fork_server: children.ForkServer) -> None:
    stream = sandbox.stream(confined.process_then_sleep, file)
    process = next(stream)
    os.kill(server_process(fork_server), signal.SIGKILL)
    with pytest.raises(MediaError, match="please try again"):
        next(stream)
    assert until(lambda: not is_running(process))  # children die with their server
    assert sandbox.call(confined.first_bytes, file, 5) == b"hello"


def test_the_server_ends_with_the_web_server(file: Path) -> None:
    code = f"""
import os
from pathlib import Path
from qwen3vl_webui.media import children, sandbox
from tests.media import confined
sandbox.server = children.ForkServer({TRUSTED})
stream = sandbox.stream(confined.process_then_sleep, Path({str(file)!r}))
print(next(stream), sandbox.server.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    processes = [int(word) for word in ran.stdout.split()]
    assert len(processes) == 2
    assert until(lambda: not any(is_running(process) for process in processes))


def test_a_target_is_written_up_to_its_limit(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "result"
    limits = Limits(file_size=100_000)
    assert sandbox.call(confined.write, file, 100_000, target=target, limits=limits) == 100_000
    assert target.stat().st_size == 100_000


def test_a_target_beyond_its_limit_is_removed(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "result"
    with pytest.raises(MediaError, match="not enough room"):
        sandbox.call(confined.write, file, 200_000, target=target, limits=Limits(file_size=100_000))
    assert not target.exists()


def test_a_half_written_target_is_removed(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "result"
    with pytest.raises(MediaError):
        sandbox.call(confined.write_and_fail, file, target=target, limits=Limits(file_size=100_000))
    assert not target.exists()


def test_only_named_functions_of_trusted_packages_run(file: Path) -> None:
    with pytest.raises(ValueError, match="may not run"):
        sandbox.call(os.path.exists, file)
    with pytest.raises(ValueError, match="module level"):
        sandbox.call(lambda file: None, file)


def test_tests_are_not_trusted_by_default(file: Path) -> None:
    with pytest.raises(ValueError, match="may not run"):
        children.ForkServer().name(confined.echo)


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(MediaError, match="Only files"):
            sandbox.call(confined.process, path)
    for path in (tmp_path / "absent", Path("a\0b")):
        with pytest.raises(MediaError, match="no longer there"):
            sandbox.call(confined.process, path)


def test_a_call_costs_little(file: Path) -> None:
    sandbox.call(confined.process, file)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        sandbox.call(confined.process, file)
        times.append(time.perf_counter() - started)
    assert sorted(times)[10] < 0.1  # 3 ms on an idle machine


class TestWithoutFork:
    """What Windows and macOS have."""

    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch: pytest.MonkeyPatch, trusting: None) -> None:
        monkeypatch.setattr(sandbox, "server", children.PlainServer(TRUSTED))

    def test_calls_streams_and_targets_work(self, file: Path, tmp_path: Path) -> None:
        array = np.arange(300_000, dtype=np.uint8)
        assert np.array_equal(sandbox.call(confined.echo, file, array), array)
        assert list(sandbox.stream(confined.count, file, 5)) == [0, 1, 2, 3, 4]
        target = tmp_path / "result"
        sandbox.call(confined.write, file, 5000, target=target, limits=Limits(file_size=5000))
        assert target.stat().st_size == 5000

    def test_errors_crashes_and_limits_are_sentences(self, file: Path) -> None:
        with pytest.raises(MediaError, match="Try another"):
            sandbox.call(confined.refuse, file)
        with pytest.raises(MediaError, match="crashed"):
            sandbox.call(confined.crash, file)
        with pytest.raises(MediaError, match="takes too long"):
            sandbox.call(confined.spin, file, limits=Limits(cpu_seconds=1))

    def test_closing_a_stream_ends_its_process(self, file: Path) -> None:
        stream = sandbox.stream(confined.pictures, file)
        process, _ = next(stream)
        stream.close()
        assert not is_running(process)
