"""Settings of all tests."""

import os
from pathlib import Path

from hypothesis import settings

from qwen3vl_webui.media.forkserver import leave_out_onnxruntime

leave_out_onnxruntime()  # as in the server: its threads write a telemetry file while the tests run
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: its kernels run without a GPU
# Elsewhere each run draws new cases; the gate must not fail a change for what was there before it.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("gate")
