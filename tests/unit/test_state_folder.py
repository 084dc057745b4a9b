"""The state folder: made, found again, set aside, taken up; one in a project is not trusted for its place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.project import QuickDisk, agent_of
from support.wait import wait_until
from yolo_supervisor.actions.notes import daemon
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import ProcessId
from yolo_supervisor.store import lines, state_folder
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.state_folder import UndecidedCode, adopt, begin_here, dismiss, enrol, last_seq, undecided
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.user_dirs import project_state_dir

DISK = QuickDisk()
LIMIT_S = 5.0


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate state directory for each test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def supervise(project: Path, notes: int = 1) -> Paths:
    """Open the project's store and write to its journal, as a daemon does."""
    store = Store(project, disk=DISK)
    store.open()
    for _ in range(notes):
        store.note(daemon("started", reason="test"), "daemon")
    store.close()
    return store.paths


def newest_seq(project: Path) -> int:
    return last_seq(DISK, Paths(project).folder)


def write_old_folder(project: Path, boot: str, notes: int = 7) -> Path:
    """The folder in the project that version 0.1.0 used, with the record of an agent."""
    paths = supervise(project, notes)
    agent = agent_of("dev", "red", ProcessId(4711, 12, boot))
    (paths.agents / own_files.agent_file(agent)).write_bytes(own_files.dump_agent(agent))
    paths.enrolment.unlink()
    paths.link.unlink()
    paths.folder.rename(paths.link)
    return paths.link


def make_again(project: Path) -> None:
    """Delete the project and make another one at its path."""
    project.rename(project.with_name("deleted"))
    (project / ".yolo-planning").mkdir(parents=True)


# -- the first start, and the next ones -------------------------------------------------------------------------------


def test_folder_lies_in_the_users_state_directory_and_the_project_links_to_it(project: Path, state_home: Path) -> None:
    paths = supervise(project)

    assert paths.folder.is_relative_to(state_home)
    assert paths.link.readlink() == paths.folder
    assert json.loads(paths.enrolment.read_text())["path"] == str(project)
    assert sorted(os.listdir(project)) == [".yolo-planning"]


def test_folder_survives_the_loss_of_everything_in_the_project(project: Path) -> None:
    before = supervise(project, notes=3)
    shutil.rmtree(before.planning)
    before.planning.mkdir()

    after = supervise(project)

    assert after.link.readlink() == after.folder
    assert newest_seq(project) == 4
    assert undecided(DISK, after) == []


def test_enrolment_is_not_written_again(project: Path) -> None:
    before = supervise(project).enrolment.stat()

    assert supervise(project).enrolment.stat().st_ino == before.st_ino


def test_missing_project_is_not_enrolled(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        enrol(DISK, Paths(tmp_path / "nowhere"), LIMIT_S)


@pytest.mark.parametrize("folder", ["yolo-supervisor", "yolo-supervisor/projects"])
def test_state_directory_that_others_may_write_to_is_refused(project: Path, state_home: Path, folder: str) -> None:
    (state_home / folder).mkdir(parents=True)
    (state_home / folder).chmod(0o777)

    with pytest.raises(Refused, match="can be written by all users"):
        supervise(project)


@pytest.mark.parametrize("folder", ["yolo-supervisor", "yolo-supervisor/projects"])
def test_state_directory_that_is_a_link_is_refused(
    project: Path, tmp_path: Path, state_home: Path, folder: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (state_home / folder).parent.mkdir(parents=True)
    (state_home / folder).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Refused, match="symbolic link"):
        supervise(project)
    assert os.listdir(tmp_path / "elsewhere") in ([], ["projects"])


def test_state_directory_may_be_kept_elsewhere(project: Path, tmp_path: Path, state_home: Path) -> None:
    (tmp_path / "disk").mkdir()
    state_home.symlink_to(tmp_path / "disk")

    assert supervise(project).folder.is_dir()
    assert newest_seq(project) == 1


def test_project_on_a_file_system_without_links_has_none(project: Path) -> None:
    class Linkless(QuickDisk):
        def symlink(self, target: Path, path: Path) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    paths = Paths(project)

    enrol(Linkless(), paths, LIMIT_S)

    assert not paths.link.is_symlink()
    assert paths.enrolment.exists()


# -- projects that were moved, copied, replaced -----------------------------------------------------------------------


def test_moved_project_keeps_its_state(project: Path, tmp_path: Path) -> None:
    before = supervise(project, notes=3)
    moved = project.rename(tmp_path / "moved")

    after = supervise(moved)

    assert newest_seq(moved) == 4
    assert not before.folder.exists()
    assert after.link.readlink() == after.folder


def test_copied_project_begins_with_another_state_folder(project: Path, tmp_path: Path) -> None:
    original = supervise(project, notes=3)
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, symlinks=True)

    made = supervise(copy)

    assert newest_seq(copy) == 1
    assert newest_seq(project) == 3
    assert made.link.readlink() == made.folder
    assert original.link.readlink() == original.folder


def test_state_of_another_project_at_the_path_is_set_aside_and_offered(project: Path) -> None:
    before = supervise(project, notes=3).folder.stat().st_ino
    make_again(project)

    paths = supervise(project)

    (older,) = undecided(DISK, paths)
    assert older.code is UndecidedCode.OFFERED
    assert older.folder.stat().st_ino == before
    assert newest_seq(project) > last_seq(DISK, older.folder) == 3


def test_project_that_was_restored_with_its_link_keeps_its_state(project: Path) -> None:
    link = supervise(project, notes=3).link.readlink()
    make_again(project)
    (project / ".yolo-planning" / ".supervisor").symlink_to(link)

    paths = supervise(project)

    assert newest_seq(project) == 4
    assert undecided(DISK, paths) == []


def test_link_into_another_home_is_refused_until_a_person_decides(project: Path, tmp_path: Path) -> None:
    paths = Paths(project)
    other = Paths(project, {"HOME": str(tmp_path / "other")})
    paths.link.symlink_to(other.folder)

    with pytest.raises(Refused, match="state adopt --new"):
        supervise(project)
    assert not other.folder.exists()

    begin_here(DISK, paths, LIMIT_S)
    supervise(project)
    assert paths.link.readlink() == paths.folder


# -- folders that lie in a project ------------------------------------------------------------------------------------


def test_folder_that_the_old_version_wrote_here_is_taken_up(project: Path) -> None:
    write_old_folder(project, backend().boot())

    paths = supervise(project)

    assert newest_seq(project) == 8
    assert len(os.listdir(paths.agents)) == 1
    assert undecided(DISK, paths) == []


def copy_again(folder: Path) -> None:
    """Replace all files by copies with their times, as a clone, an archive or a backup does."""
    folder.rename(folder.with_name("original"))
    shutil.copytree(folder.with_name("original"), folder)
    shutil.rmtree(folder.with_name("original"))


@pytest.mark.parametrize("boot", ["0123456789abcdef/boot/1", "", "/", "this machine"])
def test_folder_that_came_with_a_clone_is_left_alone_and_reported(
    project: Path, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = write_old_folder(project, backend().boot() if boot == "this machine" else boot)
    if boot == "this machine":
        monkeypatch.setattr(state_folder, "MADE_S", 0.5)
        wait_until(lambda: time.time() - (link / "store.lock").stat().st_ctime > 1, "another time")
        copy_again(link)
    before = sorted(path.stat().st_ino for path in link.rglob("*"))

    paths = supervise(project)

    assert undecided(DISK, paths) == [state_folder.Undecided(UndecidedCode.FOREIGN, link)]
    assert sorted(path.stat().st_ino for path in link.rglob("*")) == before
    assert os.listdir(paths.agents) == []
    assert newest_seq(project) > 7  # tokens grow


def test_numbers_of_a_journal_that_no_journal_reaches_are_not_believed(project: Path) -> None:
    link = write_old_folder(project, "")
    (link / "journal.mark").write_bytes(lines.seal({"seq": 2**62}))

    supervise(project)

    assert newest_seq(project) < 100


def test_folder_of_a_running_daemon_of_the_old_version_is_not_taken_up(project: Path) -> None:
    link = write_old_folder(project, backend().boot())
    with (link / "supervisor.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(Busy, match="stop it first"):
            supervise(project)

    assert link.is_dir()


def test_folder_on_another_file_system_is_copied(project: Path) -> None:
    class OtherDevice(QuickDisk):
        def rename(self, old: Path, new: Path) -> None:
            if old == Paths(project).link:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(old))
            super().rename(old, new)

    link = write_old_folder(project, backend().boot())

    enrol(OtherDevice(), Paths(project), LIMIT_S)

    assert newest_seq(project) == 7
    assert link.readlink() == Paths(project).folder


# -- a person decides -------------------------------------------------------------------------------------------------


def test_adopted_folder_replaces_the_one_in_use_which_is_kept(project: Path) -> None:
    link = write_old_folder(project, "")
    supervise(project, notes=5)
    in_use = newest_seq(project)

    replaced = adopt(DISK, Paths(project), link, LIMIT_S)

    paths = supervise(project)
    assert replaced is not None
    assert last_seq(DISK, replaced) == in_use
    assert newest_seq(project) > in_use
    assert len(os.listdir(paths.agents)) == 1
    assert paths.link.readlink() == paths.folder
    assert undecided(DISK, paths) == []


def test_adopted_offer_is_offered_no_more(project: Path) -> None:
    supervise(project, notes=3)
    make_again(project)
    (older,) = undecided(DISK, supervise(project))

    adopt(DISK, Paths(project), older.folder, LIMIT_S)

    assert undecided(DISK, supervise(project)) == []
    assert not older.folder.exists()


OF_STARTS = ("launches", "starts", "ended")
"""The folders that say how agents are to be started."""


@pytest.mark.parametrize("trusted", [None, b'mode = "observe"'])
def test_adopted_folder_has_no_say_in_trust_and_knows_no_processes(project: Path, trusted: bytes | None) -> None:
    link = write_old_folder(project, "")
    (link / "trusted.toml").write_text('[sessions]\non_detach = "terminate"')
    (link / "trees.json").write_text("{}")
    for name in OF_STARTS:
        (link / name).mkdir(exist_ok=True)
        (link / name / "dev.json").write_text("{}")
    paths = supervise(project)
    if trusted is not None:
        paths.trusted.write_bytes(trusted)

    adopt(DISK, paths, link, LIMIT_S)

    assert read_or_none(paths.trusted) == trusted
    assert not paths.trees.exists()
    assert not [path for name in OF_STARTS for path in (paths.folder / name).glob("*")]
    aside = {path.name.removesuffix("~set-aside-1") for path in paths.quarantine.glob("*-adopted*")}
    assert aside == {f"{name}-adopted" for name in ("trusted.toml", "trees.json", *OF_STARTS)}


def test_folder_that_leads_elsewhere_inside_is_not_adopted(project: Path, tmp_path: Path) -> None:
    link = write_old_folder(project, "")
    (link / "quarantine").rmdir()
    (link / "quarantine").symlink_to(tmp_path)

    with pytest.raises(Refused):
        adopt(DISK, supervise(project), link, LIMIT_S)


def test_dismissed_folders_are_kept_and_reported_no_more(project: Path) -> None:
    supervise(project, notes=3)
    make_again(project)
    link = write_old_folder_beside(project)

    kept = dismiss(DISK, supervise(project), LIMIT_S)

    assert len(kept) == 2
    assert all(folder.is_dir() for folder in kept)
    assert undecided(DISK, supervise(project)) == []
    assert link.readlink() == Paths(project).folder


def write_old_folder_beside(project: Path) -> Path:
    link = project / ".yolo-planning" / ".supervisor"
    link.mkdir()
    (link / "journal.jsonl").write_text("{}\n")
    return link


@pytest.mark.parametrize("what", ["a link", "missing", "a file", "writable by others"])
def test_only_a_private_folder_can_be_adopted(project: Path, tmp_path: Path, what: str) -> None:
    supervise(project)
    folder = tmp_path / "folder"
    if what == "a link":
        folder.symlink_to(tmp_path)
    elif what == "a file":
        folder.write_text("")
    elif what == "writable by others":
        folder.mkdir()
        folder.chmod(0o777)

    with pytest.raises((Refused, FileNotFoundError)):
        adopt(DISK, Paths(project), folder, LIMIT_S)

    assert newest_seq(project) == 1


def test_folder_that_a_daemon_uses_is_not_replaced(project: Path) -> None:
    link = write_old_folder(project, "")
    paths = supervise(project)
    with paths.supervisor_lock.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(Busy):
            adopt(DISK, paths, link, LIMIT_S)

    assert newest_seq(project) > 0


# -- crashes ----------------------------------------------------------------------------------------------------------


class Dying(QuickDisk):
    """A disk on which the process is killed before its change number ``at``."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._step()
        super().mkdir(path, mode)

    def symlink(self, target: Path, path: Path) -> None:
        self._step()
        super().symlink(target, path)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)


def kill_at_every_step(
    tmp_path: Path, prepare: Callable[[Path], object], do: Callable[[Dying, Path], Any]
) -> list[Path]:
    """Kill ``do`` at each of its changes, each time in a new project, and start again; the projects."""
    projects = []
    for at in range(200):
        project = tmp_path / f"project-{at}"
        (project / ".yolo-planning").mkdir(parents=True)
        prepare(project)
        projects.append(project)
        disk = Dying(at)
        try:
            do(disk, project)
        except KeyboardInterrupt:
            supervise(project)
        else:
            supervise(project)
            return projects
    raise AssertionError("it never ends")


def test_enrolment_that_is_killed_anywhere_loses_no_state_of_a_replaced_project(tmp_path: Path) -> None:
    def prepare(project: Path) -> None:
        supervise(project, notes=3)
        project.rename(project.with_name(f"{project.name}-deleted"))
        (project / ".yolo-planning").mkdir(parents=True)

    projects = kill_at_every_step(tmp_path, prepare, lambda disk, project: enrol(disk, Paths(project), LIMIT_S))

    assert len(projects) > 4
    for project in projects:
        aside = [*Paths(project).folder.parent.glob(f"{Paths(project).folder.name}~set-aside-*")]
        assert [last_seq(DISK, folder) for folder in aside] == [3]


def test_take_over_that_is_killed_anywhere_loses_no_line(tmp_path: Path) -> None:
    projects = kill_at_every_step(
        tmp_path,
        lambda project: write_old_folder(project, backend().boot()),
        lambda disk, project: enrol(disk, Paths(project), LIMIT_S),
    )

    assert len(projects) > 2
    assert {newest_seq(project) for project in projects} == {8}


def test_adoption_that_is_killed_anywhere_loses_neither_folder(tmp_path: Path) -> None:
    def prepare(project: Path) -> None:
        write_old_folder(project, "")
        supervise(project)

    projects = kill_at_every_step(
        tmp_path, prepare, lambda disk, project: adopt(disk, Paths(project), Paths(project).link, LIMIT_S)
    )

    assert len(projects) > 4
    for project in projects:
        paths = Paths(project)
        places = [paths.folder, *paths.folder.parent.glob(f"{paths.folder.name}~*")]
        if not paths.link.is_symlink():
            places.append(paths.link)
        assert any((place / "agents").is_dir() and os.listdir(place / "agents") for place in places)
        assert len([place for place in places if place.is_dir()]) >= 2
        seqs = [last_seq(DISK, place) for place in places if place not in (paths.folder, paths.link)]
        assert newest_seq(project) > max(seqs, default=0)


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from("ab-~/."), min_size=1, max_size=12).map(lambda text: "/" + text)


@given(NAMES, NAMES)
def test_two_projects_never_share_a_folder(one: str, other: str) -> None:
    environment = {"HOME": "/home/me"}

    assert (project_state_dir(one, environment) == project_state_dir(other, environment)) == (one == other)


@given(st.text(st.sampled_from("ab-~/ä"), min_size=150, max_size=900).map(lambda text: "/" + text))
def test_name_of_a_folder_fits_into_any_file_system(project: str) -> None:
    name = os.path.basename(project_state_dir(project, {"HOME": "/home/me"}))

    assert len(os.fsencode(f"{name}~set-aside-99999")) < 255
    assert name == os.path.basename(project_state_dir(project, {"HOME": "/home/me"}))


def test_cut_name_is_never_that_of_another_path() -> None:
    long = "/" + "a" * 158 + "~" + "b" * 300
    cut = os.path.basename(project_state_dir(long, {"HOME": "/home/me"}))
    forged = "/" + "a" * 158 + "~" + cut.rpartition("~")[2]

    assert os.path.basename(project_state_dir(forged, {"HOME": "/home/me"})) != cut
