"""Actions on commands, MCP calls and circuit breakers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from yolo_supervisor.actions.base import NO_EVIDENCE, Note, Verb, WriteFile


class Target(TypedDict):
    """The file of a circuit, and the content that the decision is based on."""

    key: str
    path: Path
    expected_digest: str | None


def opened(
    *,
    key: str,
    path: Path,
    expected_digest: str | None,
    data: bytes,
    reason: str,
    evidence: Mapping[str, Any] = NO_EVIDENCE,
) -> WriteFile:
    """Open a circuit: calls are refused until the cool-down is over."""
    return _circuit("circuit_opened", key, path, expected_digest, data, reason, evidence)


def half_opened(*, key: str, path: Path, expected_digest: str | None, data: bytes, reason: str) -> WriteFile:
    """Half-open a circuit: one call probes."""
    return _circuit("circuit_half_opened", key, path, expected_digest, data, reason)


def closed(*, key: str, path: Path, expected_digest: str | None, reason: str) -> WriteFile:
    """Close a circuit: calls pass."""
    return _circuit("circuit_closed", key, path, expected_digest, None, reason)


def _circuit(
    verb: Verb,
    key: str,
    path: Path,
    expected_digest: str | None,
    data: bytes | None,
    reason: str,
    evidence: Mapping[str, Any] = NO_EVIDENCE,
) -> WriteFile:
    return WriteFile(
        kind="command",
        verb=verb,
        key=key,
        path=path,
        expected_digest=expected_digest,
        data=data,
        reason=reason,
        evidence=evidence,
    )


def command_timed_out(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that a command reached its time limit and was ended."""
    return Note(kind="command", verb="terminated", key=key, reason=reason, evidence=evidence)


def call_recovered(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that a call succeeded after a failure, or that a server was started again."""
    return Note(kind="command", verb="recovered", key=key, reason=reason, evidence=evidence, durable=False)
