"""The seccomp filter, run by a small interpreter, so that each architecture is tested on every machine."""

from __future__ import annotations

import struct

import pytest

from qwen3vl_webui.media import confinement

PROCESS = 4321
READ_AND_WRITE = {
    "x86_64": [0, 1, 3, 8, 9, 11, 12, 17, 202, 231],
    "aarch64": [63, 64, 57, 62, 222, 215, 214, 67, 98, 94],
}
THREAD = 0x003D0F00  # the flags with which the C library starts a thread
CHILD = 0x01200011  # and those of fork


def run(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter answers to a system call: a struct seccomp_data goes in."""
    architecture = confinement.AUDIT_ARCH[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("<HBBI", confinement._filter(machine, PROCESS)))
    at = value = 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        match code:
            case confinement.LOAD:
                (value,) = struct.unpack_from("<I", data, constant)
            case confinement.RETURN:
                return constant
            case confinement.EQUAL:
                at += if_true if value == constant else if_false
            case confinement.AT_LEAST:
                at += if_true if value >= constant else if_false
            case confinement.ANY_BIT:
                at += if_true if value & constant else if_false
            case _:
                raise AssertionError(code)


@pytest.fixture(params=list(confinement.AUDIT_ARCH))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_table_has_a_name_and_two_numbers_per_call() -> None:
    words = confinement.FORBIDDEN.split()
    assert len(words) % 3 == 0 and len(set(words[::3])) == len(words) // 3
    assert all(word.isdigit() or word == "-" for column in (1, 2) for word in words[column::3])
    for name, x86_64, aarch64 in zip(words[::3], words[1::3], words[2::3], strict=True):
        if x86_64 != "-" and int(x86_64) >= 424:  # from here on all architectures share their numbers
            assert x86_64 == aarch64, name


def test_forbidden_calls_are_denied(machine: str) -> None:
    numbers = confinement.forbidden(machine)
    assert len(numbers) == len(set(numbers)) > 70
    assert all(run(machine, number) == confinement.DENY for number in numbers)


def test_computing_reading_and_writing_is_allowed(machine: str) -> None:
    assert all(run(machine, number) == confinement.ALLOW for number in READ_AND_WRITE[machine])


def test_a_thread_is_allowed_and_a_process_or_a_namespace_is_not(machine: str) -> None:
    clone = confinement.CLONE[machine]
    assert run(machine, clone, THREAD) == confinement.ALLOW
    assert run(machine, clone, CHILD) == run(machine, clone, 17) == confinement.DENY
    for namespace in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(machine, clone, THREAD | namespace) == confinement.DENY
    assert run(machine, confinement.CLONE3, 0) == confinement.MISSING


def test_limits_may_be_asked_for_but_not_set(machine: str) -> None:
    number = confinement.PRLIMIT64[machine]
    assert run(machine, number, 0, 7, 0, 0x7FFF_0000_1000) == confinement.ALLOW
    assert run(machine, number, 0, 7, 0x1000) == run(machine, number, 0, 7, 0x7FFF_0000_0000) == confinement.DENY


def test_a_process_may_signal_only_itself(machine: str) -> None:
    number = confinement.TGKILL[machine]
    assert run(machine, number, PROCESS, PROCESS, 6) == confinement.ALLOW
    assert run(machine, number, 1, 1, 6) == confinement.DENY


@pytest.mark.parametrize("number", [451, 462, 999, 0x40000000 + 41, 0xFFFFFFFF])
def test_unknown_and_x32_calls_do_not_exist(machine: str, number: int) -> None:
    assert run(machine, number) == confinement.MISSING


def test_calls_of_another_architecture_end_the_process(machine: str) -> None:
    assert run(machine, 0, architecture=0x40000003) == confinement.KILL
