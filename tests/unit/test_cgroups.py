"""The cgroups in a ``/proc/PID/cgroup``."""

from __future__ import annotations

from pathlib import Path

from yolo_supervisor.system.cgroups import MOUNT, SYSTEMD_MOUNT, parse


def test_a_machine_with_version_2_only() -> None:
    assert parse("0::/user.slice/pane:1.scope\n") == [(MOUNT, Path("/sys/fs/cgroup/user.slice/pane:1.scope"))]


def test_a_machine_with_both_versions() -> None:
    text = "12:memory:/m\n1:name=systemd:/system.slice/x.service\n0::/system.slice/x.service\n"

    assert parse(text) == [
        (SYSTEMD_MOUNT, Path("/sys/fs/cgroup/systemd/system.slice/x.service")),
        (MOUNT, Path("/sys/fs/cgroup/system.slice/x.service")),
    ]


def test_the_root_is_the_mount_point_itself() -> None:
    assert parse("0::/\n") == [(MOUNT, MOUNT)]
