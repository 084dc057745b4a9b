"""The folders that no other machine can have mounted."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolo_supervisor.fs import mounts

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:55 / /home rw,relatime shared:3 - nfs4 server:/home rw
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mountinfo")
@pytest.mark.parametrize(
    ("folder", "device", "expected"),
    [
        pytest.param("/srv", (254, 0), "ext4", id="by device"),
        pytest.param("/srv", (0, 55), "nfs4", id="a bind mount of another"),
        pytest.param("/home/anna", (0, 9), "nfs4", id="by path"),
        pytest.param("/homes", (0, 9), "ext4", id="the name begins like a mount point"),
    ],
)
def test_a_file_system_is_found_by_its_device_or_its_path(
    monkeypatch: pytest.MonkeyPatch, folder: str, device: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: MOUNTS)
    monkeypatch.setattr(os, "stat", lambda *_, **__: SimpleNamespace(st_dev=os.makedev(*device)))

    assert mounts.file_system(Path(folder)) == expected


def test_temporary_folders_are_local(tmp_path: Path) -> None:
    assert mounts.is_local(tmp_path)


def test_a_folder_that_is_not_there_is_not_local(tmp_path: Path) -> None:
    assert not mounts.is_local(tmp_path / "gone")


@pytest.mark.parametrize("shared", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "ceph", "gfs2"])
def test_a_folder_that_several_machines_can_mount_is_not_local(shared: str) -> None:
    assert shared not in mounts.LOCAL
