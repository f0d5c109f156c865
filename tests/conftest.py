"""Settings of all tests."""

import os

from hypothesis import settings

# Elsewhere each run draws new cases; the gate must not fail a change for what was there before it.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("gate")
