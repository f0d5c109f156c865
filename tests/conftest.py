"""Settings of all tests."""

import os

from hypothesis import settings

from qwen3vl_webui.media.forkserver import leave_out_onnxruntime

leave_out_onnxruntime()  # as in the server: its threads write a telemetry file while the tests run
# Elsewhere each run draws new cases; the gate must not fail a change for what was there before it.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("gate")
