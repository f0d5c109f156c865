"""Settings of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from qwen3vl_webui.media.forkserver import leave_out_onnxruntime

leave_out_onnxruntime()  # as in the server: its threads write a telemetry file while the tests run
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: its kernels run without a GPU
# Elsewhere each run draws new cases; the gate must not fail a change for what was there before it.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("gate")


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """No test leaves its process at real-time priority, which every later child inherits and starves the rest with."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
