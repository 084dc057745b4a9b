"""Wait for a condition, with a limit that only a hang reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 300.0
"""Seconds that only a hang reaches: a busy machine may take a hundred times as long as an idle one."""


def wait_until(seen: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Wait until ``seen`` is truthy; its value. The test fails with ``what`` if that never comes."""
    begun_s = time.monotonic()
    while not (found := seen()):
        waited_s = time.monotonic() - begun_s
        assert waited_s < limit_s, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(min(max(0.002, waited_s / 10), 0.1))  # others need the processor, too
    return found
