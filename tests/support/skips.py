"""The reasons for skips of tests; any other skip fails a run with ``CI`` set or ``--no-unexpected-skips``."""

import re
import sys
from typing import Final

MACHINE: Final = (
    ("may (read|write) (anything|anywhere|everything)", "root ignores file modes"),
    (
        "^only root|this is about root|^no file system of our own|^no disk can be mounted",
        "needs, or must not have, root",
    ),
    ("^no systemd can be booted", "needs root, cgroup v2 and the right to make namespaces"),
    ("^systemd runs here", "the test is about a machine without systemd"),
    ("^this kernel does not", "older kernels"),
    ("^this git does not", "git before 2.45 has no reftable"),
    ("^the next pid cannot be chosen|always quicker to get the pid", "pid reuse cannot be forced in every container"),
)
"""Patterns of reasons that depend on the machine, and their meaning."""
OTHER_SYSTEM: Final = "Linux|/proc|pidfds|descriptors"
"""A reason that holds on systems other than Linux only."""


def is_expected(reason: str) -> bool:
    """Whether a test may be skipped for this reason."""
    if sys.platform != "linux" and re.search(OTHER_SYSTEM, reason):
        return True
    return any(re.search(pattern, reason) for pattern, _ in MACHINE)
