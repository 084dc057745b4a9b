"""Wait for a condition, with a limit that only a hang reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 120.0
"""Reached only by a hang: a busy machine may take fifty times as long as an idle one."""


def wait_until(seen: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """What ``seen`` answers once it is truthy; the test fails with ``what`` if that never comes."""
    deadline = time.monotonic() + limit_s
    while not (found := seen()):
        assert time.monotonic() < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(0.005)
    return found
