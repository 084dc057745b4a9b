"""Cases in which ``commit`` once lost work or reported a wrong result, found by attacking it."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import PROGRAM
from support.processes import Children
from support.wait import LIMIT_S, wait_until
from test_commit import (
    HASTY,
    MESSAGE,
    PATIENT,
    Repositories,
    clean_git_environment,
    files,
    git_config,
    killed,
    leave_lock,
    repos,
    template_repos,
)

__all__ = ["clean_git_environment", "git_config", "repos", "template_repos"]


def land(repos: Repositories) -> None:
    """Commit and push the staged changes in the other clone."""
    repos.theirs.git("commit", "-qm", "theirs")
    repos.theirs.git("push", "-q")


# -- locks in use ---------------------------------------------------------------------------------------------------


@pytest.fixture
def editing(repos: Repositories, children: Children, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A git that waits for its editor, and has the index locked."""
    editor, ready = tmp_path / "editor", tmp_path / "ready"
    editor.write_text(f"#!/bin/sh\ntouch {ready}\nsleep 600\n")
    editor.chmod(0o755)
    repos.mine.write("one", "theirs\n")
    git = children.start("git", "-c", f"core.editor={editor}", "commit", "-a", cwd=repos.mine.folder)
    wait_until(ready.exists, "the editor")
    return git


def test_lock_of_a_git_behind_a_symbolic_link_stays(
    repos: Repositories, editing: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(repos.mine.folder)

    answer = repos.mine.commit("--project", str(link), "--allow-empty", *MESSAGE, code=75, program=HASTY, at=tmp_path)

    assert answer["cause"] == "locked"
    assert (repos.mine.folder / ".git" / "index.lock").exists()
    assert editing.poll() is None


def test_lock_in_a_repository_named_by_the_environment_stays(
    repos: Repositories, editing: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(repos.mine.folder / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repos.mine.folder))

    answer = repos.mine.commit("--allow-empty", *MESSAGE, code=75, program=HASTY, at=repos.theirs.folder)

    assert answer["cause"] == "locked"
    assert (repos.mine.folder / ".git" / "index.lock").exists()
    assert editing.poll() is None


def test_project_file_that_a_hook_reports_as_lock_stays(repos: Repositories) -> None:
    lock = repos.mine.write("yarn.lock", "v1\n", add=True)
    repos.mine.git("config", "commit.gpgsign", "true")
    repos.mine.git("config", "gpg.program", "false")
    repos.mine.hook("pre-commit", f"echo \"error: Unable to create '{lock}': File exists\" >&2")

    answer = repos.mine.commit(*MESSAGE, code=1, program=HASTY)

    assert answer["cause"] == "signing"
    assert lock.read_text() == "v1\n"


def test_commit_lock_holds_where_the_environment_names_the_repository(repos: Repositories, children: Children) -> None:
    ready = repos.project / "ready"
    repos.mine.hook("pre-commit", f"touch {ready}; sleep 600")
    repos.mine.write("new", add=True)
    inside = {**os.environ, "GIT_DIR": str(repos.mine.folder / ".git"), "GIT_WORK_TREE": str(repos.mine.folder)}
    first = children.start(*PROGRAM, "commit", *MESSAGE, cwd=repos.mine.folder, env=inside)
    wait_until(ready.exists, "the first to be at work")

    answer = repos.mine.commit(*MESSAGE, code=75, program=HASTY)

    assert "other commits in" in answer["message"]
    first.terminate()
    first.wait(LIMIT_S)


def test_background_process_of_a_hook_takes_the_commit_lock_itself(
    repos: Repositories, children: Children, tmp_path: Path
) -> None:
    """A process inherits the environment of a commit that has ended."""
    done = tmp_path / "environment"
    repos.mine.hook("post-commit", f"env > {done}")
    repos.mine.write("new", add=True)
    repos.mine.commit(*MESSAGE)
    inherited = dict(line.split("=", 1) for line in done.read_text().splitlines() if line.startswith("YOLO_"))
    assert inherited
    leave_lock(repos, children, repos.mine.folder / ".git" / "index.lock")

    answer = repos.mine.commit("--allow-empty", "-m", "later", env={**os.environ, **inherited}, program=PATIENT)

    assert answer["result"] == "committed"


def test_post_commit_hook_may_commit_in_the_same_repository(repos: Repositories) -> None:
    again = f"test -e .git/once || {{ touch .git/once; {shlex.join(PROGRAM)} commit --allow-empty -qm inner; }}"
    repos.mine.hook("post-commit", again)
    repos.mine.write("new", add=True)

    repos.mine.commit(*MESSAGE)

    assert repos.mine.subjects()[:2] == ["inner", "message"]


# -- the user's changes are kept -------------------------------------------------------------------------------------


def test_content_removed_by_an_amend_does_not_come_back(repos: Repositories) -> None:
    repos.mine.put("secret", "key\n")
    repos.mine.git("push", "-q")
    pushed = repos.mine.head
    repos.mine.git("rm", "-q", "secret")
    repos.mine.write("new", add=True)

    answer = repos.mine.commit("--push", "--amend", "-m", "without", code=1)

    assert (answer["result"], answer["cause"]) == ("committed", "taken back")
    assert "--force-with-lease" in answer["message"]
    assert not (repos.mine.folder / "secret").exists()
    assert repos.upstream.git("rev-parse", "main") == pushed
    repos.assert_tidy()


def test_reset_commit_does_not_come_back(repos: Repositories) -> None:
    repos.mine.put("wrong", "x\n")
    repos.mine.git("push", "-q")
    repos.mine.git("reset", "-q", "--hard", "HEAD~1")
    repos.mine.write("new", add=True)

    assert repos.mine.commit("--push", *MESSAGE, code=1)["cause"] == "taken back"

    assert not (repos.mine.folder / "wrong").exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["with a change by hand", "as if it had never been", "plain"])
def test_merge_with_manual_changes_is_not_rebased(repos: Repositories, how: str) -> None:
    mine = repos.mine
    mine.git("switch", "-qc", "side")
    mine.put("bad", "x\n")
    mine.git("switch", "-q", "main")
    mine.put("main", "x\n")
    strategy = ("-s", "ours") if how == "as if it had never been" else ("--no-commit",)
    mine.git("merge", "-q", *strategy, "side", *(("-m", "m") if strategy[0] == "-s" else ()))
    if how == "with a change by hand":
        mine.write("fix", add=True)
    if how != "as if it had never been":
        mine.git("commit", "-qm", "merged")
    repos.others_push()
    mine.write("new", add=True)
    before = mine.head

    answer = mine.commit("--push", *MESSAGE, code=0 if how == "plain" else 1)

    if how == "plain":
        assert answer["result"] == "rebased"
        assert {"bad", "main", "new", "theirs"} <= {path.name for path in mine.folder.iterdir()}
    else:
        assert answer["cause"] == "merge"
        assert mine.git("rev-parse", "HEAD~1") == before
        assert (mine.folder / "fix").exists() == (how == "with a change by hand")
        assert (mine.folder / "bad").exists() != (how == "as if it had never been")


@pytest.mark.thorough
def test_ignored_file_is_not_overwritten_when_gits_answer_is_truncated(repos: Repositories) -> None:
    for number in range(3000):
        repos.theirs.write(f"{'long-' * 40}{number // 500}/{'name-' * 10}{number}", "x\n")
    repos.theirs.write("zz.local", "theirs\n")
    repos.theirs.git("add", "--all")
    land(repos)
    repos.mine.write(".git/info/exclude", "zz.local\n")
    repos.mine.write("zz.local", "mine\n")
    repos.mine.write("new", add=True)
    program = (
        sys.executable, "-c",
        "from yolo_supervisor.system import git\nfrom yolo_supervisor.__main__ import main\n"
        "git.ANSWER_LIMIT = 500_000\nmain()",
    )  # fmt: skip

    cut = repos.mine.commit("--push", *MESSAGE, program=program, code=1)

    assert cut["result"] == "rebased"
    assert "could not be updated" in cut["message"]
    assert (repos.mine.folder / "zz.local").read_text() == "mine\n"
    repos.others_push("another")
    repos.mine.git("reset", "-q", "--soft", "HEAD~1")
    assert "zz.local is in the way" in repos.mine.commit("--push", *MESSAGE)["message"]
    assert (repos.mine.folder / "zz.local").read_text() == "mine\n"


def test_name_that_begins_with_a_newline_hides_no_other(repos: Repositories) -> None:
    repos.mine.put("\nzz", "x\n")
    repos.mine.git("push", "-q")
    repos.others_push("zz")
    repos.mine.write(".git/info/exclude", "/zz\n")
    repos.mine.write("zz", "mine\n")
    repos.mine.write("new", add=True)

    assert "zz is in the way" in repos.mine.commit("--push", *MESSAGE)["message"]

    assert (repos.mine.folder / "zz").read_text() == "mine\n"


def test_symbolic_link_in_place_of_a_folder_stays(repos: Repositories, tmp_path: Path) -> None:
    for name in ("d/x", "d/y"):
        repos.mine.put(name, "first\n")
    repos.mine.git("push", "-q")
    repos.others_push("d/x")
    (repos.mine.folder / "d").rename(tmp_path / "e")
    (repos.mine.folder / "d").symlink_to(tmp_path / "e")
    (tmp_path / "e" / "y").write_text("mine\n")
    repos.mine.write("new", add=True)

    assert "d/x is in the way" in repos.mine.commit("--push", *MESSAGE)["message"]

    assert (repos.mine.folder / "d").is_symlink()
    assert (tmp_path / "e" / "y").read_text() == "mine\n"


def test_deleted_file_is_not_restored_as_a_link(repos: Repositories) -> None:
    repos.theirs.git("pull", "-q")
    (repos.theirs.folder / "two").unlink()
    (repos.theirs.folder / "two").symlink_to("one")
    repos.theirs.git("add", "two")
    land(repos)
    (repos.mine.folder / "two").unlink()
    repos.mine.write("new", add=True)

    assert "two is in the way" in repos.mine.commit("--push", *MESSAGE)["message"]

    assert not os.path.lexists(repos.mine.folder / "two")


def test_branch_is_updated_in_a_sparse_checkout(repos: Repositories) -> None:
    repos.mine.put("in/a", "x\n")
    repos.mine.put("out/b", "x\n")
    repos.mine.git("push", "-q")
    repos.others_push("out/b")
    repos.mine.git("sparse-checkout", "set", "in")
    repos.mine.write("in/new", add=True)

    answer = repos.mine.commit("--push", *MESSAGE)

    assert (answer["result"], answer["message"]) == ("rebased", "")
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")
    assert not (repos.mine.folder / "out").exists()


def test_printed_commands_keep_the_file_that_is_in_the_way(repos: Repositories) -> None:
    repos.others_push("config.local")
    repos.mine.write(".git/info/exclude", "config.local\n")
    repos.mine.write("config.local", "mine\n")
    repos.mine.write("new", add=True)

    commands = repos.mine.commit("--push", *MESSAGE)["commands"]

    assert commands[0].startswith("mv config.local config.local.mine ")
    assert not any("stash pop" in command for command in commands)


# -- an interrupted step --------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(repos: Repositories, tmp_path: Path) -> Iterator[Path]:
    """A linked work tree on a disk that is almost full."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], check=True)
    try:
        at = disk / "tree"
        repos.mine.git("worktree", "add", "-q", "-b", "narrow", str(at))
        subprocess.run(["git", "push", "-q", "-u", "origin", "narrow"], cwd=at, check=True, timeout=LIMIT_S)
        yield at
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_branch_update_on_a_full_disk_is_rolled_back(repos: Repositories, narrow: Path) -> None:
    repos.theirs.git("fetch", "-q")
    repos.theirs.git("switch", "-q", "narrow")
    repos.theirs.write("aa/new", "theirs\n", add=True)
    repos.theirs.write("one", "theirs\n", add=True)
    repos.theirs.git("rm", "-q", "two")
    repos.theirs.write("zz", "".join(f"{n * 7919 % 1000003}\n" for n in range(300_000)), add=True)
    repos.theirs.git("commit", "-qm", "large")
    repos.theirs.git("push", "-q")
    (narrow / "filler").write_bytes(b"x" * 2_600_000)
    (narrow / "two-more").write_text("mine\n")
    subprocess.run(["git", "add", "two-more"], cwd=narrow, check=True, timeout=LIMIT_S)
    before = files(narrow)

    answer = repos.mine.commit("--push", *MESSAGE, code=1, at=narrow)

    assert (answer["result"], answer["cause"]) == ("rebased", "no room")
    assert "could not be updated, and nothing was changed" in answer["message"]
    now = files(narrow)
    assert {name: (mode, content) for name, (mode, _, content) in now.items()} == {
        name: (mode, content) for name, (mode, _, content) in before.items()
    }
    status = subprocess.run(["git", "status", "--porcelain"], cwd=narrow, capture_output=True, text=True, check=True)
    assert status.stdout == "?? filler\n"


def test_signal_is_deferred_until_the_step_is_done(repos: Repositories, children: Children, git_config: Path) -> None:
    mine, ready = repos.mine, repos.project / "ready"
    mine.write(".gitattributes", "*.slow filter=slow\n", add=True)
    for number in range(3):
        mine.put(f"{number}.slow", "first\n")
    mine.git("push", "-q")
    repos.theirs.git("pull", "-q")
    for number in range(3):
        repos.theirs.put(f"{number}.slow", "theirs\n")
    theirs = repos.others_push()
    with git_config.open("a") as config:
        script = f"test $PWD != {mine.folder} || {{ touch {ready}; sleep 0.3; }}; cat"
        config.write(f'[filter "slow"]\nclean = cat\nsmudge = "{script}"\nrequired = true\n')
    mine.write("new", add=True)
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=mine.folder)
    wait_until(lambda: child.poll() is not None or ready.exists(), "the step")

    child.terminate()

    child.wait(LIMIT_S)
    assert mine.status() == [""]
    assert theirs in mine.git("rev-list", "HEAD").splitlines()


@pytest.mark.thorough
def test_interrupted_branch_update_is_rolled_back_around_the_users_changes(
    repos: Repositories, children: Children, git_config: Path
) -> None:
    mine, ready = repos.mine, repos.project / "ready"
    names = [f"{number}.slow" for number in range(1, 6)]
    mine.write(".gitattributes", "*.slow filter=slow\n", add=True)
    for name in names:
        mine.put(name, "first\n")
    mine.git("push", "-q")
    repos.theirs.git("pull", "-q")
    for name in names:
        repos.theirs.put(name, "theirs\n")
    repos.theirs.git("rm", "-q", "four")
    land(repos)
    with git_config.open("a") as config:
        script = f"test $PWD != {mine.folder} -o ! -e 1.slow.done || {{ touch {ready}; sleep 600; }}; cat"
        config.write(f'[filter "slow"]\nclean = cat\nsmudge = "{script}"\nrequired = true\n')
    mine.write(".git/info/exclude", "*.done\n")
    mine.write("1.slow.done")
    mine.write("new", add=True)
    killed(children, mine, ready.exists, all_of_it=True)
    (mine.folder / "1.slow.done").unlink()
    (mine.folder / ".git" / "index.lock").unlink(missing_ok=True)
    mine.write("3.slow", "my edit\n")
    mine.write("5.slow", "")
    os.utime(mine.folder / "5.slow", (2e9, 2e9))
    mine.write("b", add=True)

    mine.commit("-m", "b")

    assert mine.git("show", "--name-only", "--format=", "HEAD").splitlines() == ["b"]
    assert (mine.folder / "3.slow").read_text() == "my edit\n"
    assert (mine.folder / "5.slow").read_text() == ""
    assert [line for line in mine.status() if line and not line.startswith("!!")] == [" M 3.slow", " M 5.slow"]
    repos.assert_tidy()


def test_branch_update_waits_for_a_short_lock(repos: Repositories) -> None:
    lock = repos.mine.folder / ".git" / "index.lock"
    repos.others_push()
    repos.mine.hook("pre-push", f"test -e .git/once && exit 0; touch .git/once {lock}; (sleep 1; rm {lock}) >&- 2>&- &")
    repos.mine.write("new", add=True)
    repos.mine.git("config", "core.hooksPath", ".git/hooks")

    answer = repos.mine.commit("--push", *MESSAGE)

    assert (answer["result"], answer["message"]) == ("rebased", "")
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")


def test_post_checkout_hook_does_not_see_the_temporary_checkout(repos: Repositories) -> None:
    repos.others_push()
    repos.mine.hook("post-checkout", "exit 1")
    repos.mine.write("new", add=True)

    assert repos.mine.commit("--push", *MESSAGE)["result"] == "rebased"

    repos.assert_tidy()


def in_the_gap(repos: Repositories) -> str:
    """The beginning of a hook that acts once, between the files and the move of the branch."""
    here = f"test $PWD = {repos.mine.folder} -a -e theirs -a ! -e .git/once || exit 0; touch .git/once"
    return f"{here}; unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE GIT_PREFIX"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "command", ["git commit --allow-empty -qm sneaky", "git commit --amend -qm sneaky", "git switch -q other"]
)
def test_no_git_can_work_between_files_and_branch(repos: Repositories, command: str) -> None:
    """Its commit would contain half of the update."""
    repos.mine.git("branch", "other")
    theirs = repos.others_push()
    repos.mine.write("new", add=True)
    repos.mine.commit(*MESSAGE)
    repos.mine.hook("post-index-change", f"{in_the_gap(repos)}; {command} > said 2>&1")
    repos.mine.write(".git/info/exclude", "said\n")

    answer = repos.mine.commit("--push", "--allow-empty", "-m", "second")

    assert answer["result"] == "rebased"
    assert (repos.mine.folder / ".git" / "once").exists()
    assert repos.mine.git("symbolic-ref", "--short", "HEAD") == "main"
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")
    assert repos.mine.subjects() == ["second", "message", "put theirs", "first"]
    assert repos.mine.git("rev-parse", "HEAD~2") == theirs
    assert [line for line in repos.mine.status() if not line.startswith("!!")] == [""]


def test_kill_between_branch_and_index_is_recovered(repos: Repositories, children: Children) -> None:
    repos.theirs.write("one", "theirs\n", add=True)
    repos.theirs.write("theirs", add=True)
    land(repos)
    repos.mine.hook("reference-transaction", (
        f'test "$1" = committed -a "$PWD" = {repos.mine.folder} || exit 0; grep -q " refs/heads/main$" || exit 0\n'
        "test -e theirs -a ! -e .git/once || exit 0; touch .git/once; kill -9 $(ps -o ppid= -p $PPID)"
    ))  # fmt: skip
    repos.mine.write("new", add=True)
    repos.mine.write("unfinished", "mine\n")
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=repos.mine.folder)
    assert child.wait(LIMIT_S) == -9
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")

    repos.mine.commit("--allow-empty", "-m", "next", program=PATIENT)

    assert repos.mine.git("rev-parse", "HEAD~1") == repos.upstream.git("rev-parse", "main")
    assert repos.mine.status() == ["", "?? unfinished"]
    repos.assert_tidy()


@pytest.mark.thorough
@pytest.mark.parametrize("shape", ["a folder becomes a file", "files only"])
def test_kill_between_files_and_branch_is_recovered(repos: Repositories, children: Children, shape: str) -> None:
    repos.mine.put("d/x", "x\n")
    repos.mine.git("push", "-q")
    repos.theirs.git("pull", "-q")
    if shape == "a folder becomes a file":
        repos.theirs.git("rm", "-rq", "d")
        repos.theirs.write("d", "a file now\n", add=True)
    repos.theirs.write("theirs", add=True)
    land(repos)
    repos.mine.hook("post-index-change", f"{in_the_gap(repos)}; kill -9 $(ps -o ppid= -p $PPID)")
    repos.mine.write("new", add=True)
    repos.mine.write("unfinished", "mine\n")
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=repos.mine.folder)
    assert child.wait(LIMIT_S) == -9

    repos.mine.commit("--allow-empty", "-m", "next", program=PATIENT)

    assert repos.mine.status() == ["", "?? unfinished"]
    assert repos.mine.subjects()[:2] == ["next", "message"]
    assert repos.mine.commit("--push", "--allow-empty", "-m", "last")["result"] == "rebased"
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")
    assert repos.mine.status() == ["", "?? unfinished"]
    repos.assert_tidy()


@pytest.fixture
def half_moved(repos: Repositories, children: Children, git_config: Path) -> Repositories:
    """A branch update killed while git wrote ``zz.slow``, after ``aa``, ``app`` and ``one``."""
    mine, ready = repos.mine, repos.project / "ready"
    mine.write(".gitattributes", "zz.slow filter=slow\n", add=True)
    mine.put("app", "1\n")
    mine.put("d/x", "x\n")
    mine.put("zz.slow", "first\n")
    mine.git("push", "-q")
    repos.theirs.git("pull", "-q")
    repos.theirs.write("app", "".join(f"{number}\n" for number in range(1, 13)), add=True)
    for name in ("aa", "one", "d/new", "zz.slow"):
        repos.theirs.write(name, "theirs\n", add=True)
    land(repos)
    with git_config.open("a") as config:
        script = f"test $PWD != {mine.folder} -o -e {ready} || {{ touch {ready}; sleep 600; }}; cat"
        config.write(f'[filter "slow"]\nclean = cat\nsmudge = "{script}"\nrequired = true\n')
    mine.write("new", add=True)
    killed(children, mine, ready.exists, all_of_it=True)
    assert (mine.folder / "aa").read_text() == "theirs\n"
    (mine.folder / ".git" / "index.lock").unlink(missing_ok=True)
    return repos


def test_killed_branch_update_is_rolled_back(half_moved: Repositories) -> None:
    half_moved.mine.commit("--allow-empty", "-m", "next", program=PATIENT)

    assert half_moved.mine.status() == [""]
    assert not (half_moved.mine.folder / "aa").exists()
    half_moved.assert_tidy()


def test_roll_back_removes_the_lock_of_the_killed_git(half_moved: Repositories, children: Children) -> None:
    leave_lock(half_moved, children, half_moved.mine.folder / ".git" / "index.lock")

    half_moved.mine.commit("--allow-empty", "-m", "next", program=PATIENT)

    assert half_moved.mine.status() == [""]


def test_roll_back_keeps_changes_of_the_user_after_the_kill(half_moved: Repositories, tmp_path: Path) -> None:
    mine = half_moved.mine
    for lock in (mine.folder / ".git").rglob("*.lock"):
        if lock.name != "yolo-supervisor.lock":
            lock.unlink()  # as git's message advises
    mine.write("app", "1\n2\n3\n")
    os.utime(mine.folder / "app", (2e9, 2e9))
    (mine.folder / "d").rename(tmp_path / "e")
    (mine.folder / "d").symlink_to(tmp_path / "e")
    mine.git("add", "aa")
    mine.write("one", "mine\n", add=True)

    done = mine.run("-m", "next", "--", "one")

    assert done.returncode == 0, done.stderr
    assert "its files have been changed since" in done.stderr
    assert (mine.folder / "app").read_text() == "1\n2\n3\n"
    assert (mine.folder / "d").is_symlink()
    assert (tmp_path / "e" / "new").read_text() == "theirs\n"
    assert (mine.folder / "aa").read_text() == "theirs\n"
    assert mine.content("one") == "mine"
    assert mine.git("show", "--name-only", "--format=", "HEAD") == "one"
    half_moved.assert_tidy()


def test_roll_back_from_a_hook_in_another_work_tree(half_moved: Repositories) -> None:
    at = half_moved.project / "linked"
    half_moved.mine.git("worktree", "add", "-q", "-b", "other", str(at))
    own = half_moved.mine.folder / ".git" / "worktrees" / "linked"
    inside = {**os.environ, "GIT_DIR": str(own), "GIT_WORK_TREE": str(at)}

    half_moved.mine.commit("--allow-empty", "-m", "next", at=at, env=inside, program=PATIENT)

    assert half_moved.mine.status() == [""]
    assert not (half_moved.mine.folder / "aa").exists()


def test_nested_commit_keeps_the_temporary_files_of_the_outer_one(repos: Repositories) -> None:
    repos.others_push()
    again = f"{in_the_gap(repos)}; {shlex.join(PROGRAM)} commit --allow-empty -qm inner > said 2>&1"
    repos.mine.hook("post-index-change", again)
    repos.mine.write(".git/info/exclude", "said\n")
    repos.mine.write("new", add=True)

    answer = repos.mine.commit("--push", *MESSAGE)

    assert (repos.mine.folder / ".git" / "once").exists()
    assert answer["result"] == "rebased"
    assert [line for line in repos.mine.status() if not line.startswith("!!")] == [""]
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")
    repos.assert_tidy()


def test_backup_holds_a_change_of_the_same_size_and_time(repos: Repositories) -> None:
    repos.others_push("one", "theirs\n")
    repos.mine.put("one", "mine\n")
    repos.mine.write("two", "AAAA\n", add=True)
    repos.mine.write("two", "BBBB\n")

    answer = repos.mine.commit("--push", "-m", "nothing new", "--", "three", code=1)

    assert answer["cause"] == "conflict", answer
    assert repos.mine.content("two", answer["rescue"]) == "BBBB"


# -- honest results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [True, False], ids=["a hook says no", "nothing is staged"])
def test_pushing_earlier_commits_is_not_a_success_of_this_one(repos: Repositories, hook: bool) -> None:
    repos.mine.put("earlier", "x\n")
    if hook:
        repos.mine.hook("pre-commit", "git status; exit 1")
        repos.mine.write("new", add=True)

    answer = repos.mine.commit("--push", *MESSAGE, code=1)

    if hook:
        assert (answer["result"], answer["cause"]) == ("failed", "hook")
        assert repos.upstream.subjects("main") == ["first"]
    else:
        assert (answer["result"], answer["cause"]) == ("pushed", "nothing to commit")
        assert repos.upstream.subjects("main") == ["put earlier", "first"]


@pytest.mark.parametrize("option", ["--dry-run", "--porcelain", "--short"])
@pytest.mark.parametrize("staged", [True, False], ids=["staged", "clean"])
def test_dry_run_pushes_nothing(repos: Repositories, option: str, staged: bool) -> None:
    repos.mine.put("earlier", "x\n")
    if staged:
        repos.mine.write("new", add=True)

    answer = repos.mine.commit("--push", option, *MESSAGE, code=0 if staged else 1)

    assert answer["result"] == ("unchanged" if staged else "failed")
    assert repos.upstream.subjects("main") == ["first"]


def test_failed_hook_is_reported_as_hook_with_any_output(repos: Repositories) -> None:
    repos.mine.put("earlier", "x\n")
    repos.mine.hook("pre-commit", "echo nothing to commit, working tree clean; exit 1")
    repos.mine.write("two", "changed\n")

    answer = repos.mine.commit("--push", "-am", "mine", code=1)

    assert (answer["result"], answer["cause"]) == ("failed", "hook")
    assert repos.upstream.subjects("main") == ["first"]


def test_nothing_to_commit_is_recognised_beside_hooks_and_staged_files(repos: Repositories) -> None:
    repos.mine.hook("pre-commit", "exit 0")
    repos.mine.write("new", add=True)

    assert repos.mine.commit("-m", "mine", "--", "two", code=1)["cause"] == "nothing to commit"


def test_symbolic_branch_is_pushed(repos: Repositories) -> None:
    repos.mine.git("symbolic-ref", "refs/heads/trunk", "refs/heads/main")
    repos.mine.git("symbolic-ref", "HEAD", "refs/heads/trunk")
    repos.mine.git("config", "branch.trunk.remote", "origin")
    repos.mine.git("config", "branch.trunk.merge", "refs/heads/main")
    repos.mine.git("config", "push.default", "upstream")
    repos.mine.write("new", add=True)

    assert repos.mine.commit("--push", *MESSAGE)["result"] == "pushed"

    assert repos.upstream.subjects("main") == ["message", "first"]


def test_commit_that_returns_by_a_merge_was_not_taken_back(repos: Repositories) -> None:
    repos.mine.put("feature", "x\n")
    repos.mine.git("push", "-q", "origin", "HEAD:feature")
    repos.mine.git("reset", "-q", "--hard", "HEAD~1")
    repos.theirs.git("fetch", "-q")
    repos.theirs.git("merge", "-q", "--no-ff", "-m", "merged", "origin/feature")
    repos.theirs.git("push", "-q")
    repos.mine.write("new", add=True)

    assert repos.mine.commit("--push", *MESSAGE)["result"] == "rebased"


def test_commit_of_another_during_a_failed_hook_is_not_ours(repos: Repositories) -> None:
    repos.mine.write("new", add=True)
    repos.mine.write("two", "changed\n")
    repos.mine.hook("pre-commit", 'test -n "$FREE" && exit 0; FREE=1 git commit -qm other -- two; exit 1')

    answer = repos.mine.commit("-m", "mine", "--", "new", code=1)

    assert (answer["result"], answer["cause"]) == ("failed", "hook")


def test_auto_push_of_an_enclosing_project_is_ignored(repos: Repositories) -> None:
    (repos.project / ".yolo-planning").mkdir(exist_ok=True)
    (repos.project / ".yolo-planning" / "config.json").write_text('{"auto_push": "always"}')
    repos.mine.write("new", add=True)

    assert repos.mine.commit(*MESSAGE)["result"] == "committed"


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_message_is_read_from_the_standard_input(repos: Repositories, name: str) -> None:
    repos.mine.write("new", add=True)

    repos.mine.commit("-F", name, stdin=None, input="from there\n")

    assert repos.mine.subjects()[0] == "from there"


def test_message_is_read_from_an_inherited_descriptor(repos: Repositories) -> None:
    repos.mine.write("new", add=True)
    line = f"{shlex.join(PROGRAM)} commit -q -F <(echo from a pipe)"

    done = subprocess.run(["bash", "-c", line], cwd=repos.mine.folder, timeout=LIMIT_S, check=False)

    assert done.returncode == 0
    assert repos.mine.subjects()[0] == "from a pipe"


# -- the backup, and other failures -----------------------------------------------------------------------------------


def test_backup_omits_only_files_that_cannot_be_added(repos: Repositories) -> None:
    repos.others_push("one", "theirs\n")
    repos.mine.git("config", "core.autocrlf", "input")
    repos.mine.git("config", "core.safecrlf", "true")
    repos.mine.git("config", "filter.broken.clean", "false")
    repos.mine.git("config", "filter.broken.required", "true")
    repos.mine.write(".git/info/attributes", "*.broken filter=broken\n")
    repos.mine.write("one", "mine\n", add=True)
    repos.mine.write("mixed", "a\r\nb\n")
    repos.mine.write("x.broken", "x\n")
    repos.mine.write("two", "changed\n")
    repos.mine.write("precious", "mine\n")

    answer = repos.mine.commit("--push", *MESSAGE, code=1)

    assert answer["cause"] == "conflict"
    assert answer["unkept"] == ["x.broken"]
    assert "without x.broken" in answer["commands"][-1]
    assert repos.mine.content("two", answer["rescue"]) == "changed"
    assert repos.mine.content("precious", answer["rescue"]) == "mine"
    assert "mixed" in repos.mine.git("ls-tree", "--name-only", answer["rescue"]).splitlines()


def test_disk_error_is_reported_as_a_failure(repos: Repositories) -> None:
    repos.others_push()
    repos.mine.write(".git/yolo-supervisor", "in the way\n")
    repos.mine.write("new", add=True)

    answer = repos.mine.commit("--push", *MESSAGE, code=1)

    assert answer["result"] == "committed"
    assert answer["message"].startswith("the commit is made, but not pushed")
    assert os.strerror(errno.EEXIST) in str(repos.journal()) or os.strerror(errno.ENOTDIR) in str(repos.journal())


def test_signal_during_a_push_is_reported(repos: Repositories, children: Children) -> None:
    ready = repos.project / "ready"
    repos.mine.hook("pre-push", f"touch {ready}; sleep 600")
    repos.mine.write("new", add=True)
    child = children.start(*PROGRAM, "commit", "--json", "--push", *MESSAGE, cwd=repos.mine.folder)
    wait_until(ready.exists, "the push")

    child.terminate()

    assert child.wait(LIMIT_S) == 128 + 15
    assert child.stdout is not None
    assert b'"cause": "interrupted"' in child.stdout.read()
