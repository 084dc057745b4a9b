"""The plugin's ``.locks/*.lease`` and ``*.lock``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none
from yolo_supervisor.formats.plugin.execution_state import dump
from yolo_supervisor.models import Lease, from_iso

DEFAULT_TTL_S = 300
MAX_TTL_S = 366 * 86400
EPOCH, FOREVER = from_iso("1970-01-01"), from_iso("9999-01-01")


# -- .locks/*.lease and *.lock ----------------------------------------------------------------------------------


def lease(data: bytes, path: Path) -> Lease | None:
    """The lease or lock in a file of ``.locks/``; None if it cannot be read or names no owner.

    A missing ``ttl_secs`` means 300 s. A lease whose ``acquired_at`` is no time has expired.
    """
    raw = load_object(data)
    owner = text_or_none(raw.get("owner")) if raw else None
    if raw is None or owner is None:
        return None
    expires_at, ttl_s = None, 0.0
    if path.suffix == ".lease":
        ttl = raw.get("ttl_secs", DEFAULT_TTL_S)
        ttl_s = float(min(max(ttl, 0), MAX_TTL_S)) if isinstance(ttl, int | float) else DEFAULT_TTL_S
        acquired_at = time_or_none(raw.get("acquired_at")) or EPOCH
        try:
            expires_at = acquired_at + timedelta(seconds=ttl if isinstance(ttl, int | float) else DEFAULT_TTL_S)
        except (OverflowError, ValueError):
            expires_at = FOREVER
        if not EPOCH <= expires_at <= FOREVER:
            expires_at = EPOCH if expires_at < EPOCH else FOREVER
    resource = text_or_none(raw.get("resource")) or path.stem
    return Lease(resource=resource, owner=owner, path=path, expires_at=expires_at, ttl_s=ttl_s)


def lease_file(resource: str) -> str:
    """The file name of a lease on the resource.

    It is the plugin's, so ``a/b`` and ``a__b`` collide here, too. ValueError if the resource cannot be part of a file
    name.
    """
    name = resource.replace("/", "__").replace("\\", "__").replace(" ", "_")
    if not name.strip(".") or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > 200:
        raise ValueError(f"{resource!r} cannot name a lease")
    return f"{name}.lease"


def dump_lease(resource: str, owner: str, acquired_at: datetime, ttl_s: int) -> bytes:
    """A lease as ``lease-lock acquire`` writes it.

    A renewal is written in the same way, with a later time.
    """
    at = acquired_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return dump({"acquired_at": at, "owner": owner, "resource": resource, "ttl_secs": ttl_s, "type": "lease"})
