"""Actions on commands, MCP calls and circuit breakers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from yolo_supervisor.actions.base import Note, WriteFile


class Target(TypedDict):
    """The file of a circuit, and the content that the decision is based on."""

    key: str
    path: Path
    expected_digest: str | None


def opened(circuit: Target, data: bytes, reason: str, evidence: Mapping[str, Any]) -> WriteFile:
    """Open a circuit: calls are refused until the cool-down is over."""
    return WriteFile(kind="command", verb="circuit_opened", **circuit, data=data, reason=reason, evidence=evidence)


def half_opened(circuit: Target, data: bytes, reason: str) -> WriteFile:
    """Half-open a circuit: one call probes."""
    return WriteFile(kind="command", verb="circuit_half_opened", **circuit, data=data, reason=reason)


def closed(circuit: Target, reason: str) -> WriteFile:
    """Close a circuit: calls pass."""
    return WriteFile(kind="command", verb="circuit_closed", **circuit, data=None, reason=reason)


def command_timed_out(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that a command reached its time limit and was ended."""
    return Note(kind="command", verb="terminated", key=key, reason=reason, evidence=evidence)


def call_recovered(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that a call succeeded after a failure, or that a server was started again."""
    return Note(kind="command", verb="recovered", key=key, reason=reason, evidence=evidence, durable=False)
