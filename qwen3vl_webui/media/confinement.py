"""What a decoding child may still do once it is confined: compute, and read and write what is already open.

Three layers, each holding where another is missing: limits (memory, CPU seconds, file size), Landlock (no file by
name, no TCP, no signal to others) and a seccomp filter (no socket, program, process, tracing, nor file by name).
Linux on x86_64 and aarch64; elsewhere only the limits the system has.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass

if sys.platform != "win32":
    import resource

GIB = 1 << 30

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # the same number on every architecture
CAPSET = {"x86_64": 126, "aarch64": 91}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Name, number on x86_64, number on aarch64 ("-": the call does not exist there). From the kernel's unistd headers.
FORBIDDEN = """
open 2 -  openat 257 56  openat2 437 437  creat 85 -  open_by_handle_at 304 265  truncate 76 45
unlink 87 -  unlinkat 263 35  rename 82 -  renameat 264 38  renameat2 316 276  rmdir 84 -
link 86 -  linkat 265 37  symlink 88 -  symlinkat 266 36  mkdir 83 -  mkdirat 258 34  mknod 133 -  mknodat 259 33
chmod 90 -  fchmod 91 52  fchmodat 268 53  chown 92 -  fchown 93 55  lchown 94 -  fchownat 260 54
setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7  removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16
utime 132 -  utimes 235 -  utimensat 280 88  futimesat 261 -
chroot 161 51  pivot_root 155 41  mount 165 40  umount2 166 39  move_mount 429 429  open_tree 428 428
fsopen 430 430  fsconfig 431 431  fsmount 432 432  fspick 433 433  mount_setattr 442 442
inotify_init 253 -  inotify_init1 294 26  fanotify_init 300 262
socket 41 198  socketpair 53 199  connect 42 203  bind 49 200  listen 50 201  accept 43 202  accept4 288 242
execve 59 221  execveat 322 281  fork 57 -  vfork 58 -  unshare 272 97  setns 308 268
kill 62 129  tkill 200 130  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
pidfd_open 434 434  pidfd_send_signal 424 424  pidfd_getfd 438 438
ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  process_madvise 440 440  kcmp 312 272
bpf 321 280  io_uring_setup 425 425  io_uring_enter 426 426  io_uring_register 427 427  userfaultfd 323 282
perf_event_open 298 241  keyctl 250 219  add_key 248 217  request_key 249 218
memfd_create 319 279  memfd_secret 447 447  shmget 29 194  shmat 30 196  msgget 68 186  semget 64 190  mq_open 240 180
setrlimit 160 164  personality 135 92
"""
TGKILL = {"x86_64": 234, "aarch64": 131}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
PRLIMIT64 = {"x86_64": 302, "aarch64": 261}
NEWEST = 450  # later calls answer ENOSYS, as an older kernel would; so do x32 calls, whose numbers are far above


@dataclass(frozen=True)
class Limits:
    """What one child may use. `memory` is address space in bytes, `file_size` what it may write to a target.

    `wall_seconds` counts only while the caller waits for the child; None: twice `cpu_seconds`.
    """

    memory: int = 2 * GIB
    cpu_seconds: int = 20
    file_size: int = 0
    wall_seconds: float | None = None

    @property
    def wall(self) -> float:
        return 2.0 * self.cpu_seconds if self.wall_seconds is None else self.wall_seconds


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where there is none (or where a container forbids it)."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, _libc().syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def has_seccomp() -> bool:
    return sys.platform.startswith("linux") and platform.machine() in AUDIT_ARCH


def limit(limits: Limits) -> None:
    """Set the limits of this process for good. No RLIMIT_NPROC: the H.264 decoder could not start its threads."""
    if sys.platform == "win32":
        return
    wanted = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform.startswith("linux"):  # macOS counts hundreds of GiB of shared mappings as address space
        wanted[resource.RLIMIT_AS] = limits.memory
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        grace = 1 if kind == resource.RLIMIT_CPU and most != hard else 0  # SIGXCPU first: it says why, SIGKILL does not
        resource.setrlimit(kind, (most, most + grace))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, however it dies."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def confine() -> None:
    """Give up files by name, the network, other processes and every capability, for good.

    Call it in a single-threaded process, after the last import. Raises OSError where seccomp should work and does not.
    """
    _drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _restrict_landlock()
    if has_seccomp():
        _restrict_seccomp()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *arguments: int | ctypes.Structure) -> None:
    longs = [item if isinstance(item, int) else ctypes.addressof(item) for item in arguments]
    longs += [0] * (4 - len(longs))
    _checked(_libc().prctl(option, *(ctypes.c_ulong(item) for item in longs)), "prctl")


def _drop_capabilities() -> None:
    """A root child would otherwise pass rules that hold for everyone else."""
    number = CAPSET.get(platform.machine())
    if number is None:
        return
    header = struct.pack("<Ii", 0x20080522, 0)  # version 3, this process
    _checked(_libc().syscall(number, ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))), "capset")


def _restrict_landlock() -> None:
    abi = landlock_abi()
    if abi == 0:
        return
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1  # every right this version knows is handled: denied
    network = 0b11 if abi >= 4 else 0  # bind and connect TCP
    scoped = 0b11 if abi >= 6 else 0  # abstract unix sockets, signals
    ruleset = struct.pack("<QQQ", files, network, scoped)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    libc = _libc()
    descriptor = libc.syscall(
        LANDLOCK_CREATE_RULESET, ctypes.c_char_p(ruleset), ctypes.c_size_t(len(ruleset)), ctypes.c_uint(0)
    )
    _checked(descriptor, "landlock_create_ruleset")
    _checked(libc.syscall(LANDLOCK_RESTRICT_SELF, descriptor, ctypes.c_uint(0)), "landlock_restrict_self")
    os.close(descriptor)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
DENY = 0x00050000 | errno.EPERM
MISSING = 0x00050000 | errno.ENOSYS
NUMBER, ARCHITECTURE = 0, 4  # offsets in seccomp_data; argument n is at 16 + 8n, low half first


def forbidden(machine: str) -> list[int]:
    """Numbers of the calls that answer EPERM on this architecture."""
    words = FORBIDDEN.split()
    column = 1 if machine == "x86_64" else 2
    return [int(word) for word in words[column::3] if word != "-"]


def _filter(machine: str, process: int) -> bytes:
    """The filter as BPF: instructions of (code, skip if true, skip if false, constant)."""
    program: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, NEWEST + 1),
        (RETURN, 0, 0, MISSING),
        (EQUAL, 0, 1, CLONE3),  # its flags lie in memory: the C library then falls back to clone
        (RETURN, 0, 0, MISSING),
    ]
    for number in forbidden(machine):
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, DENY)]
    clone_thread, clone_new = 0x00010000, 0x7E020000
    program += [
        (EQUAL, 0, 5, CLONE[machine]),  # a thread is fine, a process or a namespace is not
        (LOAD, 0, 0, 16),
        (ANY_BIT, 0, 2, clone_thread),
        (ANY_BIT, 1, 0, clone_new),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, DENY),
        (EQUAL, 0, 6, PRLIMIT64[machine]),  # asking for a limit is fine, setting one is not
        (LOAD, 0, 0, 32),
        (EQUAL, 0, 3, 0),
        (LOAD, 0, 0, 36),
        (EQUAL, 0, 1, 0),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, DENY),
        (EQUAL, 0, 4, TGKILL[machine]),  # abort() signals the process itself
        (LOAD, 0, 0, 16),
        (EQUAL, 0, 1, process),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, DENY),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _restrict_seccomp() -> None:
    code = _filter(platform.machine(), os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, 2, program)


def close_all_but(kept: Iterable[int]) -> None:
    """Neither Landlock nor seccomp takes back a descriptor that is open already."""
    start = 0
    for end in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        if start < end:  # an empty range from 0 would close everything
            os.closerange(start, end)
        start = end + 1
