"""The state of an agent's starts, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def restart_text(ident: str, restart: Mapping[str, Any]) -> str:
    """One short sentence about what comes next for the agent."""
    match restart["state"]:
        case "starting":
            return f"↻ starting again (try {restart['try']} of {restart['of']})"
        case "waiting":
            return f"waits {restart['in_s'] or 0:.0f} s to be started again: {restart['reason']}"
        case "given_up":
            return f"needs you: {restart['reason']}: agent reset {ident}, or agent start {ident}"
    return f"held: it is not started by itself until agent start {ident}, or agent reset {ident}"
