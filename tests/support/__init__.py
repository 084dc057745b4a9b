"""Shared parts of the tests: processes, projects, stand-ins."""

import pytest

ASSERTING = ("cli", "daemon", "processes", "relay_testbed", "team", "tmux", "wait")
pytest.register_assert_rewrite(*(f"support.{name}" for name in ASSERTING))
