"""The uncommitted work of a dead agent is saved, on real git repositories, and nothing else of them changes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import anyio
import psutil
import pytest

from support.budget import budget
from support.processes import Children
from support.wait import LIMIT_S, wait_until
from test_commit import Repo, clean_git_environment, git_config
from yolo_supervisor.commits.rescue_refs import REFS_KEPT
from yolo_supervisor.commits.salvage import MAX_BYTES, PROGRAM, Saved, SaveOutcome, save_work

__all__ = ["clean_git_environment", "git_config"]


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repository with two commits and a stash entry."""
    return new_repo(tmp_path / "repo")


def new_repo(folder: Path, *options: str) -> Repo:
    subprocess.run(["git", "init", "-q", *options, folder], check=True)
    repo = Repo(folder)
    for number, name in enumerate(("one", "two", "three")):
        repo.put(name, f"{name}\n" * 10, f"commit {number}")
    repo.write("one", "stashed\n")
    repo.git("stash", "push", "-q")
    return repo


def make_dirty(repo: Repo) -> None:
    """A staged change with another one on top, a deleted file, an untracked and an ignored one."""
    repo.write("one", "staged\n", add=True)
    repo.write("one", "staged\nunstaged\n")
    (repo.folder / "two").unlink()
    repo.write("folder/new ü\n", "untracked\n")
    repo.write(repo.git("rev-parse", "--path-format=absolute", "--git-path", "info/exclude"), "*.log\n")
    repo.write("build.log", "ignored\n")


def save(folder: Path | Repo, name: str = "dev-1", limit_s: float = LIMIT_S, max_bytes: int = MAX_BYTES) -> Saved:
    at = folder.folder if isinstance(folder, Repo) else folder
    return anyio.run(save_work, at, name, limit_s, max_bytes)


def show(repo: Repo, revision: str) -> str:
    return repo.git("show", revision) + "\n"


def names(repo: Repo, tree: str) -> set[str]:
    return {*repo.git("ls-tree", "-r", "-z", "--name-only", tree).split("\0")} - {""}


def facts(repo: Repo) -> dict[str, bytes]:
    """The content of the repository and the work tree, without objects and rescue refs."""
    found = {}
    for path in repo.folder.rglob("*"):
        name = path.relative_to(repo.folder).as_posix()
        if not name.startswith((".git/objects", ".git/refs/yolo-supervisor", ".git/yolo-supervisor")):
            stamp = str(path.lstat().st_mtime_ns).encode() if path.is_file() else b""
            found[name] = stamp + (path.read_bytes() if path.is_file() else b"")
    return found


def refs(repo: Repo) -> list[str]:
    return repo.git("for-each-ref", "--format=%(refname)", "refs/yolo-supervisor").split()


# -- what is saved ---------------------------------------------------------------------------------------------------


def test_work_is_in_the_ref_and_nothing_else_has_changed(repo: Repo) -> None:
    make_dirty(repo)
    before = facts(repo)

    saved = save(repo)

    assert (saved.outcome, saved.files, saved.omitted) == (SaveOutcome.SAVED, 3, ())
    assert saved.ref is not None
    assert saved.ref.endswith("-agent-dev-1")
    assert show(repo, f"{saved.ref}:one") == "staged\nunstaged\n"
    assert show(repo, f"{saved.ref}^2:one") == "staged\n"
    assert names(repo, saved.ref) == {"one", "three", "folder/new ü\n"}
    assert facts(repo) == before
    assert [*(repo.folder / ".git" / "yolo-supervisor").iterdir()] == []
    repo.git("fsck", "--strict")


def test_same_content_makes_no_second_ref(repo: Repo) -> None:
    make_dirty(repo)
    first = save(repo)

    again = save(repo, "dev-2")
    repo.git("add", "three", "folder")
    restaged = save(repo)

    assert (again.outcome, again.ref) == (SaveOutcome.SAME, first.ref)
    assert restaged.outcome is SaveOutcome.SAVED
    assert refs(repo) == [first.ref, restaged.ref]


def test_clean_work_tree_makes_no_ref(repo: Repo) -> None:
    os.utime(repo.folder / "three")  # git has to compare it

    assert save(repo).outcome is SaveOutcome.CLEAN
    assert refs(repo) == []


@pytest.mark.parametrize("folder", [".", "in/gone"])
def test_folder_without_a_work_tree_has_nothing_to_save(tmp_path: Path, folder: str) -> None:
    new_repo(tmp_path / "in")

    assert save(tmp_path / folder).outcome is SaveOutcome.NO_REPOSITORY


# -- repositories of all kinds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--object-format=sha256", "--ref-format=reftable"])
def test_work_is_saved_in_every_storage_format(tmp_path: Path, option: str) -> None:
    made = subprocess.run(["git", "init", "-q", option, tmp_path / "probe"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("this git does not know reftable")
    repo = new_repo(tmp_path / "repo", option)
    make_dirty(repo)

    saved = save(repo)

    assert saved.outcome is SaveOutcome.SAVED
    assert show(repo, f"{saved.ref}:one") == "staged\nunstaged\n"


def test_work_before_the_first_commit_is_saved(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "repo")
    subprocess.run(["git", "init", "-q", repo.folder], check=True)
    empty = save(repo)
    repo.write("staged", add=True)
    repo.write("untracked")

    saved, again = save(repo), save(repo)

    assert empty.outcome is SaveOutcome.CLEAN
    assert (saved.outcome, saved.files) == (SaveOutcome.SAVED, 2)
    assert (names(repo, f"{saved.ref}"), names(repo, f"{saved.ref}^1")) == ({"staged", "untracked"}, {"staged"})
    assert again.outcome is SaveOutcome.SAME


@pytest.mark.parametrize("bare", [False, True])
def test_work_in_a_linked_work_tree_is_saved_alone(tmp_path: Path, bare: bool) -> None:
    repo = new_repo(tmp_path / "repo")
    if bare:  # all work trees are linked ones beside the repository, which is in a folder .bare
        (repo.folder / ".git").rename(repo.folder / ".bare")
        (repo.folder / ".git").write_text("gitdir: ./.bare\n")
        repo.git("config", "core.bare", "true")
    repo.git("worktree", "add", "-q", "-b", "dev", "trees/dev")
    linked = Repo(repo.folder / "trees" / "dev")
    make_dirty(linked)
    for main in (repo.folder, repo.folder / "trees"):
        (main / "of the main work tree").touch()

    saved = save(linked.folder / "folder")
    of_main = save(repo)

    assert (saved.outcome, saved.root) == (SaveOutcome.SAVED, linked.folder)
    assert names(linked, f"{saved.ref}") == {"one", "three", "folder/new ü\n"}
    if bare:
        assert of_main.outcome is SaveOutcome.NO_REPOSITORY
    else:
        assert (of_main.outcome, dict(of_main.nested)) == (SaveOutcome.SAVED, {})
        assert not any("trees/dev" in name for name in names(repo, f"{of_main.ref}"))


def test_repositories_inside_the_work_tree_keep_their_own_copies(tmp_path: Path) -> None:
    repo, library = new_repo(tmp_path / "repo"), new_repo(tmp_path / "library")
    repo.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library.folder), "lib")
    repo.git("commit", "-qm", "submodule")
    submodule, clone = Repo(repo.folder / "lib"), new_repo(repo.folder / "other" / "clone")
    new_repo(repo.folder / "unchanged")
    subprocess.run(["git", "init", "-q", repo.folder / "without a commit"], check=True)
    for inner in (submodule, clone):
        inner.write("one", "changed\n")

    saved = save(repo)
    repo.write("three", "changed\n")
    both = save(repo)

    assert (saved.outcome, saved.ref) == (SaveOutcome.SAVED, None)
    assert {*saved.nested} == {"lib", "other/clone"}
    for inner in (submodule, clone):
        assert show(inner, f"{saved.nested[inner.folder.relative_to(repo.folder).as_posix()]}:one") == "changed\n"
    assert (both.outcome, both.nested) == (SaveOutcome.SAVED, saved.nested)
    assert names(repo, f"{both.ref}") == {*names(repo, "HEAD")}


@pytest.mark.parametrize("options", [["--cone"], ["--cone", "--sparse-index"], ["--no-cone"]])
def test_sparse_checkout_is_no_deletion(repo: Repo, options: list[str]) -> None:
    for name in ("in/file", "out/file", "out/deep/file"):
        repo.put(name, "text\n")
    repo.git("sparse-checkout", "set", *options, "in")
    assert not (repo.folder / "out").exists()
    repo.write("in/file", "changed\n")
    repo.write("out/new", "beyond the checkout\n")

    saved = save(repo)

    assert (saved.outcome, saved.files) == (SaveOutcome.SAVED, 2)
    assert names(repo, f"{saved.ref}") == {*names(repo, "HEAD"), "out/new"}


def test_objects_of_a_partial_clone_are_not_fetched(repo: Repo, tmp_path: Path) -> None:
    repo.put("out/file", "text\n")
    repo.git("config", "uploadpack.allowFilter", "true")
    clone = ["git", "clone", "-q", "--filter=blob:none", "--sparse", f"file://{repo.folder}", tmp_path / "clone"]
    subprocess.run(clone, check=True)
    partial = Repo(tmp_path / "clone")
    missing = partial.git("rev-parse", "HEAD:out/file")
    partial.write("one", "changed\n", add=True)
    partial.git(
        "update-index", "--add", "--cacheinfo", f"100644,{missing},wanted"
    )  # git fetches what it writes a tree of

    saved = save(partial)

    assert show(partial, f"{saved.ref}:one") == "changed\n"
    assert f"?{missing}" in partial.git("rev-list", "--objects", "--missing=print", "HEAD")


@pytest.mark.parametrize("is_split", [True, False])
def test_no_shared_index_is_made(repo: Repo, is_split: bool) -> None:
    if is_split:
        repo.git("update-index", "--split-index")
    make_dirty(repo)
    repo.git("config", "core.splitIndex", "true")
    before = facts(repo)

    assert save(repo).outcome is SaveOutcome.SAVED
    assert {*facts(repo)} == {*before}
    assert repo.git("diff", "--name-only", "--cached") == "one"


def test_work_in_a_conflict_is_saved(repo: Repo) -> None:
    repo.git("switch", "-qc", "other")
    repo.put("one", "theirs\n")
    repo.git("switch", "-q", "-")
    repo.put("one", "ours\n")
    assert subprocess.run(["git", "merge", "-q", "other"], cwd=repo.folder, check=False, capture_output=True).returncode
    repo.git("add", "--intent-to-add", repo.write("promised"))
    before = facts(repo)

    saved, again = save(repo), save(repo)

    assert (saved.outcome, again.outcome) == (SaveOutcome.SAVED, SaveOutcome.SAME)
    assert "<<<<<<<" in show(repo, f"{saved.ref}:one")
    assert show(repo, f"{saved.ref}:promised") == "new\n"
    assert facts(repo) == before


def test_held_lock_of_the_index_does_not_matter(repo: Repo) -> None:
    make_dirty(repo)
    lock = repo.write(".git/index.lock", "")

    assert save(repo).outcome is SaveOutcome.SAVED
    assert lock.exists()


def test_work_on_a_broken_branch_is_saved(repo: Repo) -> None:
    branch = repo.git("symbolic-ref", "HEAD")
    repo.write(f".git/{branch}", "1" * 40 + "\n")

    saved = save(repo)

    assert saved.outcome is SaveOutcome.SAVED
    assert names(repo, f"{saved.ref}") == {"one", "two", "three"}


# -- nothing runs, nothing is fetched --------------------------------------------------------------------------------


def test_no_program_of_the_project_runs(repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    program = f"sh -c 'echo $0 >> {ran}; cat'"
    repo.write(".gitattributes", "* filter=a=b\nthree filter=process\n", add=True)
    make_dirty(repo)
    repo.write("three", "changed\n")
    for hook in ("post-index-change", "reference-transaction", "pre-commit", "post-commit", "fsmonitor-watchman"):
        repo.hook(hook, f"echo {hook} >> {ran}")
    repo.git("config", "core.hooksPath", str(repo.folder / ".git" / "hooks"))
    for key in ("filter.a=b.clean", "filter.a=b.smudge", "filter.process.process", "filter.ü x.clean"):
        repo.git("config", "filter.a=b.required", "true")
        repo.git("config", key, program)
    for key in ("core.fsmonitor", "gpg.program", "core.sshCommand", "diff.external", "core.alternateRefsCommand"):
        repo.git("config", key, program)
    for key in ("commit.gpgSign", "tag.gpgSign", "filter.process.required"):
        repo.git("config", key, "true")
    ran.unlink(missing_ok=True)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", program)
    before = facts(repo)

    saved = save(repo)

    assert saved.outcome is SaveOutcome.SAVED, saved
    assert not ran.exists(), ran.read_text()
    assert facts(repo) == before
    monkeypatch.delenv("GIT_EXTERNAL_DIFF")
    assert repo.git("cat-file", "blob", f"{saved.ref}:three") == "changed"
    assert "gpgsig" not in repo.git("cat-file", "commit", f"{saved.ref}")


def test_environment_of_the_supervisor_names_no_other_repository(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_repo(tmp_path / "other")
    make_dirty(repo)
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.folder))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.folder / ".git" / "index"))

    saved = save(repo)

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    assert (refs(repo), refs(other)) == ([saved.ref], [])


def test_module_in_the_folder_is_not_imported(repo: Repo) -> None:
    for module in ("json.py", "yolo_supervisor/__init__.py"):
        repo.write(module, "raise SystemExit(3)\n")

    assert save(repo).outcome is SaveOutcome.SAVED


@pytest.mark.parametrize("part", [".", ".git", ".git/worktrees/dev"])
def test_repository_of_another_user_is_refused(repo: Repo, part: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder away")
    repo.git("worktree", "add", "-q", "../dev")
    linked = Repo(repo.folder.with_name("dev"))
    repo.git("config", "--global", "safe.directory", "*")
    repo.write("new")
    linked.write("new")
    os.chown(repo.folder / part, 65534, 65534)

    saved = save(linked if "dev" in part else repo)

    assert (saved.outcome, refs(repo)) == (SaveOutcome.FAILED, [])
    assert "belongs to another user" in saved.reason


@pytest.mark.parametrize("elsewhere", ["private", "."])
def test_work_tree_that_is_elsewhere_is_refused(repo: Repo, tmp_path: Path, elsewhere: str) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret").touch()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    repo.git("config", "core.worktree", str(tmp_path / elsewhere))

    saved = save(repo)

    assert saved.outcome in (SaveOutcome.FAILED, SaveOutcome.NO_REPOSITORY)
    repo.git("config", "--unset", "core.worktree")
    assert refs(repo) == []


def test_untracked_files_around_the_home_are_not_taken(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo.folder / "home" / "project").mkdir(parents=True)
    repo.write("home/secret")
    repo.write("one", "changed\n")
    monkeypatch.setenv("HOME", str(repo.folder / "home"))

    saved = save(repo.folder / "home" / "project")

    assert saved.files == 1
    assert names(repo, f"{saved.ref}") == {"one", "two", "three"}


@pytest.mark.parametrize("name", ["../../heads/main", "-x..@{", "ü\n" * 200, "", "a.lock", "dev 1/~^:?*["])
def test_name_of_an_agent_makes_a_name_of_a_ref(repo: Repo, name: str) -> None:
    make_dirty(repo)

    saved = save(repo, name)

    assert refs(repo) == [saved.ref]
    repo.git("check-ref-format", f"{saved.ref}")


# -- limits ----------------------------------------------------------------------------------------------------------


def test_large_files_are_left_out_and_named(repo: Repo) -> None:
    repo.write("small", "x" * 1000)
    repo.write("large", "x" * 100_000)
    repo.write("one", "x" * 1001)

    saved = save(repo, max_bytes=10_000)
    nothing = save(repo, max_bytes=10)

    assert (saved.outcome, saved.omitted) == (SaveOutcome.SAVED, ("large",))
    assert "large is not in it" in saved.reason
    assert names(repo, f"{saved.ref}") == {"one", "two", "three", "small"}
    assert nothing.outcome is SaveOutcome.TOO_LARGE


def test_files_that_git_cannot_add_are_left_out(repo: Repo) -> None:
    repo.write(".gitattributes", "*.utf16 working-tree-encoding=UTF-16\n")
    for number in range(40):
        repo.write(f"{number}.utf16", "x" if number % 7 == 0 else "")  # half a character cannot be decoded
        repo.write(f"{number}.txt")

    saved = save(repo)

    assert len(saved.omitted) == 6
    assert len(names(repo, f"{saved.ref}")) == 3 + 1 + 80 - 6


def test_a_file_in_place_of_a_folder_and_the_reverse_are_saved(repo: Repo) -> None:
    repo.put("folder/file", "text\n")
    (repo.folder / "folder" / "file").unlink()
    (repo.folder / "folder").rmdir()
    repo.write("folder")
    (repo.folder / "one").unlink()
    repo.write("one/file")
    os.symlink("nowhere", repo.folder / "link")
    os.mkfifo(repo.folder / "pipe")

    saved = save(repo)

    assert names(repo, f"{saved.ref}") == {"folder", "one/file", "two", "three", "link"}


def test_git_that_hangs_is_killed_with_all_that_it_started(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dirty(repo)
    programs, pids = tmp_path / "programs", tmp_path / "pids"
    programs.mkdir()
    git = programs / "git"
    git.write_text(f"#!/bin/sh\n(setsid sh -c 'echo $$ >> {pids}; sleep 600') &\necho $$ >> {pids}\nsleep 600\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    saved = save(repo, limit_s=1.0)

    assert saved.outcome is SaveOutcome.TOO_SLOW
    started = [int(line) for line in pids.read_text().split()]
    assert started
    wait_until(lambda: not any(map(psutil.pid_exists, started)), "git and its children to be gone")


def test_program_that_hangs_itself_is_killed(repo: Repo) -> None:
    index = repo.folder / ".git" / "index"
    index.unlink()
    os.mkfifo(index)  # nobody writes

    saved = save(repo, limit_s=2.0)

    assert saved.outcome is SaveOutcome.TOO_SLOW
    assert [*(repo.folder / ".git" / "yolo-supervisor").iterdir()] == []


def test_what_was_added_before_the_time_was_over_is_saved(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.write("small")
    os.truncate(repo.write("large"), 2**34)  # all zeros, on no disk

    saved = save(repo, limit_s=3.0, max_bytes=2**40)

    assert (saved.outcome, saved.omitted) == (SaveOutcome.SAVED, ("large",))
    assert names(repo, f"{saved.ref}") == {"one", "two", "three", "small"}


def test_missing_git_is_reported(repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    saved = save(repo)

    assert saved.outcome is SaveOutcome.FAILED
    assert "git" in saved.reason


def test_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], check=True)
    try:
        repo = new_repo(disk / "repo")
        (repo.folder / "noise").write_bytes(os.urandom(2**21))
        (repo.folder / "more").write_bytes(os.urandom(2**20))
        before = facts(repo)

        saved = save(repo)

        assert saved.outcome is SaveOutcome.FAILED
        assert facts(repo) == before
        assert [*(repo.folder / ".git" / "yolo-supervisor").iterdir()] == []
        (repo.folder / "noise").unlink()
        assert save(repo).outcome is SaveOutcome.SAVED
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_old_copies_leave_above_the_quota(repo: Repo) -> None:
    for number in range(REFS_KEPT + 3):
        repo.write("one", f"{number}\n")
        saved = save(repo)
        repo.git("commit", "-qam", "so that the content is elsewhere, too")

    assert len(refs(repo)) == REFS_KEPT
    assert refs(repo)[-1] == saved.ref


def test_copies_at_the_same_time_do_not_disturb_each_other(repo: Repo) -> None:
    make_dirty(repo)
    saved: list[Saved] = []

    async def one(number: int) -> None:
        saved.append(await save_work(repo.folder, f"dev-{number}", LIMIT_S))

    async def all_of_them() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(one, number)

    anyio.run(all_of_them)

    assert {each.outcome for each in saved} <= {SaveOutcome.SAVED, SaveOutcome.SAME}
    assert {repo.git("rev-parse", f"{each.ref}^{{tree}}") for each in saved} == {
        repo.git("rev-parse", f"{saved[0].ref}^{{tree}}")
    }
    assert [*(repo.folder / ".git" / "yolo-supervisor").iterdir()] == []


ROUNDS = budget(quick=15, full=150, soak=2000)


def test_kill_at_any_moment_harms_nothing(repo: Repo, tmp_path: Path, children: Children) -> None:
    """The program, and git in a part of the rounds, is killed; then the work is saved all the same."""
    template = repo.folder
    make_dirty(repo)
    for number in range(50):
        repo.write(f"folder/{number}", f"{number}\n" * 1000)
    before, rng, killed = facts(repo), random.Random(ROUNDS), 0
    expected = save(Repo(shutil.copytree(template, tmp_path / "expected", symlinks=True)))
    tree = Repo(tmp_path / "expected").git("rev-parse", f"{expected.ref}^{{tree}}")
    began = time.monotonic()
    save(Repo(shutil.copytree(template, tmp_path / "timed", symlinks=True)))
    whole_s = time.monotonic() - began
    for number in range(ROUNDS):
        deadline = str(time.monotonic() + LIMIT_S)
        child = children.start(
            sys.executable, "-P", "-m", PROGRAM, str(repo.folder), "dev-1", deadline, str(MAX_BYTES),
            start_new_session=True,
        )  # fmt: skip
        end_s = time.monotonic() + rng.uniform(0, whole_s)
        while child.poll() is None and time.monotonic() < end_s:
            time.sleep(0.001)
        if child.poll() is None:
            killed += 1
            process = psutil.Process(child.pid)
            below = process.children(recursive=True)
            for each in (process, *below) if number % 2 else (process,):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(below, LIMIT_S)
        child.wait(LIMIT_S)
        assert facts(repo) == before

    saved = save(repo)

    assert saved.outcome.is_kept
    assert repo.git("rev-parse", f"{saved.ref}^{{tree}}") == tree
    assert len(refs(repo)) == 1
    repo.git("fsck", "--strict")
    assert killed > ROUNDS // 4
