"""What would lose work, or lie about it: each of these was so once, shown by one who wanted to break ``commit``."""

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
from test_commit import HURRIED, MESSAGE, World, beginning, files, killed, no_git_of_the_users, own_git, world

__all__ = ["beginning", "no_git_of_the_users", "own_git", "world"]


def land(world: World) -> None:
    """Others commit and push what they have staged."""
    world.theirs.git("commit", "-qm", "theirs")
    world.theirs.git("push", "-q")


# -- locks that are somebody's ---------------------------------------------------------------------------------------


@pytest.fixture
def editing(world: World, children: Children, tmp_path: Path) -> subprocess.Popen[bytes]:
    """Somebody is writing the message of a commit: their git has the index locked."""
    editor, ready = tmp_path / "editor", tmp_path / "ready"
    editor.write_text(f"#!/bin/sh\ntouch {ready}\nsleep 600\n")
    editor.chmod(0o755)
    world.mine.write("one", "theirs\n")
    git = children.start("git", "-c", f"core.editor={editor}", "commit", "-a", cwd=world.mine.folder)
    wait_until(ready.exists, "the editor")
    return git


def test_a_lock_is_not_taken_from_a_git_that_is_at_work_behind_a_link(
    world: World, editing: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(world.mine.folder)

    answer = world.mine.commit("--project", str(link), "--allow-empty", *MESSAGE, code=75, program=HURRIED, at=tmp_path)

    assert answer["cause"] == "locked"
    assert (world.mine.folder / ".git" / "index.lock").exists()
    assert editing.poll() is None


def test_a_lock_is_not_taken_from_a_git_that_is_at_work_in_the_repository_which_the_environment_names(
    world: World, editing: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(world.mine.folder / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(world.mine.folder))

    answer = world.mine.commit("--allow-empty", *MESSAGE, code=75, program=HURRIED, at=world.theirs.folder)

    assert answer["cause"] == "locked"
    assert (world.mine.folder / ".git" / "index.lock").exists()
    assert editing.poll() is None


def test_a_file_that_a_hook_calls_a_lock_stays_where_it_is(world: World) -> None:
    lock = world.mine.write("yarn.lock", "v1\n", add=True)
    world.mine.git("config", "commit.gpgsign", "true")
    world.mine.git("config", "gpg.program", "false")
    world.mine.hook("pre-commit", f"echo \"error: Unable to create '{lock}': File exists\" >&2")

    answer = world.mine.commit(*MESSAGE, code=1, program=HURRIED)

    assert answer["cause"] == "signing"
    assert lock.read_text() == "v1\n"


def test_a_turn_is_had_also_where_the_environment_names_the_repository(world: World, children: Children) -> None:
    ready = world.project / "ready"
    world.mine.hook("pre-commit", f"touch {ready}; sleep 600")
    world.mine.write("new", add=True)
    inside = {**os.environ, "GIT_DIR": str(world.mine.folder / ".git"), "GIT_WORK_TREE": str(world.mine.folder)}
    first = children.start(*PROGRAM, "commit", *MESSAGE, cwd=world.mine.folder, env=inside)
    wait_until(ready.exists, "the first to be at work")

    answer = world.mine.commit(*MESSAGE, code=75, program=HURRIED)

    assert "other commits in" in answer["message"]
    first.terminate()
    first.wait(LIMIT_S)


def test_what_a_hook_leaves_in_the_background_has_a_turn_of_its_own(world: World, tmp_path: Path) -> None:
    """It inherits that a commit is under way, and is not part of it when that is over."""
    told = tmp_path / "environment"
    world.mine.hook("post-commit", f"env > {told}")
    world.mine.write("new", add=True)
    world.mine.commit(*MESSAGE)
    inherited = dict(line.split("=", 1) for line in told.read_text().splitlines() if line.startswith("YOLO_"))
    assert inherited
    (world.mine.folder / ".git" / "index.lock").touch()

    answer = world.mine.commit("--allow-empty", "-m", "later", env={**os.environ, **inherited}, program=HURRIED)

    assert answer["result"] == "committed"


def test_a_hook_that_commits_in_the_same_repository_does_not_wait_for_itself(world: World) -> None:
    again = f"test -e .git/once || {{ touch .git/once; {shlex.join(PROGRAM)} commit --allow-empty -qm inner; }}"
    world.mine.hook("post-commit", again)
    world.mine.write("new", add=True)

    world.mine.commit(*MESSAGE)

    assert world.mine.subjects()[:2] == ["inner", "message"]


# -- what the user has done is not undone ----------------------------------------------------------------------------


def test_what_an_amended_commit_took_out_does_not_come_back(world: World) -> None:
    world.mine.put("secret", "key\n")
    world.mine.git("push", "-q")
    pushed = world.mine.head
    world.mine.git("rm", "-q", "secret")
    world.mine.write("new", add=True)

    answer = world.mine.commit("--push", "--amend", "-m", "without", code=1)

    assert (answer["result"], answer["cause"]) == ("committed", "taken back")
    assert "--force-with-lease" in answer["message"]
    assert not (world.mine.folder / "secret").exists()
    assert world.upstream.git("rev-parse", "main") == pushed
    world.assert_tidy()


def test_a_commit_that_was_reset_does_not_come_back(world: World) -> None:
    world.mine.put("wrong", "x\n")
    world.mine.git("push", "-q")
    world.mine.git("reset", "-q", "--hard", "HEAD~1")
    world.mine.write("new", add=True)

    assert world.mine.commit("--push", *MESSAGE, code=1)["cause"] == "taken back"

    assert not (world.mine.folder / "wrong").exists()


@pytest.mark.parametrize("how", ["with a change by hand", "as if it had never been", "plain"])
def test_a_merge_made_by_hand_is_left_to_the_hand(world: World, how: str) -> None:
    mine = world.mine
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
    world.others_push()
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


def test_an_ignored_file_is_not_replaced_however_many_theirs_are(world: World) -> None:
    for number in range(3000):
        world.theirs.write(f"{'long-' * 40}{number // 500}/{'name-' * 10}{number}", "x\n")
    world.theirs.write("zz.local", "theirs\n")
    world.theirs.git("add", "--all")
    land(world)
    world.mine.write(".git/info/exclude", "zz.local\n")
    world.mine.write("zz.local", "mine\n")
    world.mine.write("new", add=True)
    program = (
        sys.executable, "-c",
        "from yolo_supervisor.system import git\nfrom yolo_supervisor.__main__ import main\n"
        "git.ANSWER_LIMIT = 500_000\nmain()",
    )  # fmt: skip

    cut = world.mine.commit("--push", *MESSAGE, program=program, code=1)

    assert cut["result"] == "rebased"
    assert "could not be updated" in cut["message"]
    assert (world.mine.folder / "zz.local").read_text() == "mine\n"
    world.others_push("another")
    world.mine.git("reset", "-q", "--soft", "HEAD~1")
    assert "zz.local is in the way" in world.mine.commit("--push", *MESSAGE)["message"]
    assert (world.mine.folder / "zz.local").read_text() == "mine\n"


def test_a_name_that_begins_with_a_new_line_hides_no_other(world: World) -> None:
    world.mine.put("\nzz", "x\n")
    world.mine.git("push", "-q")
    world.others_push("zz")
    world.mine.write(".git/info/exclude", "/zz\n")
    world.mine.write("zz", "mine\n")
    world.mine.write("new", add=True)

    assert "zz is in the way" in world.mine.commit("--push", *MESSAGE)["message"]

    assert (world.mine.folder / "zz").read_text() == "mine\n"


def test_a_link_in_the_place_of_a_folder_stays(world: World, tmp_path: Path) -> None:
    for name in ("d/x", "d/y"):
        world.mine.put(name, "first\n")
    world.mine.git("push", "-q")
    world.others_push("d/x")
    (world.mine.folder / "d").rename(tmp_path / "e")
    (world.mine.folder / "d").symlink_to(tmp_path / "e")
    (tmp_path / "e" / "y").write_text("mine\n")
    world.mine.write("new", add=True)

    assert "d/x is in the way" in world.mine.commit("--push", *MESSAGE)["message"]

    assert (world.mine.folder / "d").is_symlink()
    assert (tmp_path / "e" / "y").read_text() == "mine\n"


def test_a_deleted_file_stays_deleted_also_if_it_has_become_a_link(world: World) -> None:
    world.theirs.git("pull", "-q")
    (world.theirs.folder / "two").unlink()
    (world.theirs.folder / "two").symlink_to("one")
    world.theirs.git("add", "two")
    land(world)
    (world.mine.folder / "two").unlink()
    world.mine.write("new", add=True)

    assert "two is in the way" in world.mine.commit("--push", *MESSAGE)["message"]

    assert not os.path.lexists(world.mine.folder / "two")


def test_in_a_sparse_checkout_the_branch_follows(world: World) -> None:
    world.mine.put("in/a", "x\n")
    world.mine.put("out/b", "x\n")
    world.mine.git("push", "-q")
    world.others_push("out/b")
    world.mine.git("sparse-checkout", "set", "in")
    world.mine.write("in/new", add=True)

    answer = world.mine.commit("--push", *MESSAGE)

    assert (answer["result"], answer["message"]) == ("rebased", "")
    assert world.mine.head == world.upstream.git("rev-parse", "main")
    assert not (world.mine.folder / "out").exists()


def test_the_advice_does_not_touch_what_is_in_the_way(world: World) -> None:
    world.others_push("config.local")
    world.mine.write(".git/info/exclude", "config.local\n")
    world.mine.write("config.local", "mine\n")
    world.mine.write("new", add=True)

    commands = world.mine.commit("--push", *MESSAGE)["commands"]

    assert commands[0].startswith("mv config.local config.local.mine ")
    assert not any("stash pop" in command for command in commands)


# -- a step that is cut off ------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(world: World, tmp_path: Path) -> Iterator[Path]:
    """A linked work tree on a disk with room for little more."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], check=True)
    try:
        at = disk / "tree"
        world.mine.git("worktree", "add", "-q", "-b", "narrow", str(at))
        subprocess.run(["git", "push", "-q", "-u", "origin", "narrow"], cwd=at, check=True, timeout=LIMIT_S)
        yield at
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_where_there_is_no_room_for_theirs_all_is_as_it_was(world: World, narrow: Path) -> None:
    world.theirs.git("fetch", "-q")
    world.theirs.git("switch", "-q", "narrow")
    world.theirs.write("aa/new", "theirs\n", add=True)
    world.theirs.write("one", "theirs\n", add=True)
    world.theirs.git("rm", "-q", "two")
    world.theirs.write("zz", "".join(f"{n * 7919 % 1000003}\n" for n in range(300_000)), add=True)
    world.theirs.git("commit", "-qm", "large")
    world.theirs.git("push", "-q")
    (narrow / "filler").write_bytes(b"x" * 2_600_000)
    (narrow / "two-more").write_text("mine\n")
    subprocess.run(["git", "add", "two-more"], cwd=narrow, check=True, timeout=LIMIT_S)
    before = files(narrow)

    answer = world.mine.commit("--push", *MESSAGE, code=1, at=narrow)

    assert (answer["result"], answer["cause"]) == ("rebased", "no room")
    assert "could not be updated, and nothing was changed" in answer["message"]
    now = files(narrow)
    assert {name: (mode, content) for name, (mode, _, content) in now.items()} == {
        name: (mode, content) for name, (mode, _, content) in before.items()
    }
    status = subprocess.run(["git", "status", "--porcelain"], cwd=narrow, capture_output=True, text=True, check=True)
    assert status.stdout == "?? filler\n"


def test_a_signal_waits_for_the_end_of_the_step(world: World, children: Children, own_git: Path) -> None:
    mine, ready = world.mine, world.project / "ready"
    mine.write(".gitattributes", "*.slow filter=slow\n", add=True)
    for number in range(3):
        mine.put(f"{number}.slow", "first\n")
    mine.git("push", "-q")
    world.theirs.git("pull", "-q")
    for number in range(3):
        world.theirs.put(f"{number}.slow", "theirs\n")
    theirs = world.others_push()
    with own_git.open("a") as config:
        script = f"test $PWD != {mine.folder} || {{ touch {ready}; sleep 0.3; }}; cat"
        config.write(f'[filter "slow"]\nclean = cat\nsmudge = "{script}"\nrequired = true\n')
    mine.write("new", add=True)
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=mine.folder)
    wait_until(lambda: child.poll() is not None or ready.exists(), "the step")

    child.terminate()

    child.wait(LIMIT_S)
    assert mine.status() == [""]
    assert theirs in mine.git("rev-list", "HEAD").splitlines()


def test_a_move_that_cannot_be_finished_is_undone_and_the_users_own_stays(
    world: World, children: Children, own_git: Path
) -> None:
    mine, ready = world.mine, world.project / "ready"
    names = [f"{number}.slow" for number in range(1, 6)]
    mine.write(".gitattributes", "*.slow filter=slow\n", add=True)
    for name in names:
        mine.put(name, "first\n")
    mine.git("push", "-q")
    world.theirs.git("pull", "-q")
    for name in names:
        world.theirs.put(name, "theirs\n")
    world.theirs.git("rm", "-q", "four")
    land(world)
    with own_git.open("a") as config:
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
    assert [each for each in mine.status() if each and not each.startswith("!!")] == [" M 3.slow", " M 5.slow"]
    world.assert_tidy()


def test_a_lock_that_is_held_for_a_moment_does_not_keep_the_branch_behind(world: World) -> None:
    lock = world.mine.folder / ".git" / "index.lock"
    world.others_push()
    world.mine.hook("pre-push", f"test -e .git/once && exit 0; touch .git/once {lock}; (sleep 1; rm {lock}) >&- 2>&- &")
    world.mine.write("new", add=True)
    world.mine.git("config", "core.hooksPath", ".git/hooks")

    answer = world.mine.commit("--push", *MESSAGE)

    assert (answer["result"], answer["message"]) == ("rebased", "")
    assert world.mine.head == world.upstream.git("rev-parse", "main")


def test_a_hook_that_follows_checkouts_has_nothing_to_say_about_ours(world: World) -> None:
    world.others_push()
    world.mine.hook("post-checkout", "exit 1")
    world.mine.write("new", add=True)

    assert world.mine.commit("--push", *MESSAGE)["result"] == "rebased"

    world.assert_tidy()


def in_the_gap(world: World) -> str:
    """The beginning of a hook that does something once, when theirs is written and the branch not moved yet."""
    here = f"test $PWD = {world.mine.folder} -a -e theirs -a ! -e .git/once || exit 0; touch .git/once"
    return f"{here}; unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE GIT_PREFIX"


@pytest.mark.parametrize(
    "command", ["git commit --allow-empty -qm sneaky", "git commit --amend -qm sneaky", "git switch -q other"]
)
def test_between_the_files_and_the_branch_nobody_can_do_anything(world: World, command: str) -> None:
    """It would be put on top of, or carried off with, what is only half there."""
    world.mine.git("branch", "other")
    theirs = world.others_push()
    world.mine.write("new", add=True)
    world.mine.commit(*MESSAGE)
    world.mine.hook("post-index-change", f"{in_the_gap(world)}; {command} > said 2>&1")
    world.mine.write(".git/info/exclude", "said\n")

    answer = world.mine.commit("--push", "--allow-empty", "-m", "second")

    assert answer["result"] == "rebased"
    assert (world.mine.folder / ".git" / "once").exists()
    assert world.mine.git("symbolic-ref", "--short", "HEAD") == "main"
    assert world.mine.head == world.upstream.git("rev-parse", "main")
    assert world.mine.subjects() == ["second", "message", "put theirs", "first"]
    assert world.mine.git("rev-parse", "HEAD~2") == theirs
    assert [each for each in world.mine.status() if not each.startswith("!!")] == [""]


def test_a_kill_between_the_branch_and_the_index_is_made_good(world: World, children: Children) -> None:
    world.theirs.write("one", "theirs\n", add=True)
    world.theirs.write("theirs", add=True)
    land(world)
    world.mine.hook("reference-transaction", (
        f'test "$1" = committed -a "$PWD" = {world.mine.folder} || exit 0; grep -q " refs/heads/main$" || exit 0\n'
        "test -e theirs -a ! -e .git/once || exit 0; touch .git/once; kill -9 $(ps -o ppid= -p $PPID)"
    ))  # fmt: skip
    world.mine.write("new", add=True)
    world.mine.write("unfinished", "mine\n")
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=world.mine.folder)
    assert child.wait(LIMIT_S) == -9
    assert world.mine.head == world.upstream.git("rev-parse", "main")

    world.mine.commit("--allow-empty", "-m", "next", program=HURRIED)

    assert world.mine.git("rev-parse", "HEAD~1") == world.upstream.git("rev-parse", "main")
    assert world.mine.status() == ["", "?? unfinished"]
    world.assert_tidy()


@pytest.mark.parametrize("shape", ["a folder becomes a file", "files only"])
def test_a_kill_between_the_files_and_the_branch_is_made_good(world: World, children: Children, shape: str) -> None:
    world.mine.put("d/x", "x\n")
    world.mine.git("push", "-q")
    world.theirs.git("pull", "-q")
    if shape == "a folder becomes a file":
        world.theirs.git("rm", "-rq", "d")
        world.theirs.write("d", "a file now\n", add=True)
    world.theirs.write("theirs", add=True)
    land(world)
    world.mine.hook("post-index-change", f"{in_the_gap(world)}; kill -9 $(ps -o ppid= -p $PPID)")
    world.mine.write("new", add=True)
    world.mine.write("unfinished", "mine\n")
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=world.mine.folder)
    assert child.wait(LIMIT_S) == -9

    world.mine.commit("--allow-empty", "-m", "next", program=HURRIED)

    assert world.mine.status() == ["", "?? unfinished"]
    assert world.mine.subjects()[:2] == ["next", "message"]
    assert world.mine.commit("--push", "--allow-empty", "-m", "last")["result"] == "rebased"
    assert world.mine.head == world.upstream.git("rev-parse", "main")
    assert world.mine.status() == ["", "?? unfinished"]
    world.assert_tidy()


@pytest.fixture
def half_moved(world: World, children: Children, own_git: Path) -> World:
    """A move that was killed with all its git while it wrote ``zz.slow``; ``aa``, ``app`` and ``one`` are written."""
    mine, ready = world.mine, world.project / "ready"
    mine.write(".gitattributes", "zz.slow filter=slow\n", add=True)
    mine.put("app", "1\n")
    mine.put("d/x", "x\n")
    mine.put("zz.slow", "first\n")
    mine.git("push", "-q")
    world.theirs.git("pull", "-q")
    world.theirs.write("app", "".join(f"{number}\n" for number in range(1, 13)), add=True)
    for name in ("aa", "one", "d/new", "zz.slow"):
        world.theirs.write(name, "theirs\n", add=True)
    land(world)
    with own_git.open("a") as config:
        script = f"test $PWD != {mine.folder} -o -e {ready} || {{ touch {ready}; sleep 600; }}; cat"
        config.write(f'[filter "slow"]\nclean = cat\nsmudge = "{script}"\nrequired = true\n')
    mine.write("new", add=True)
    killed(children, mine, ready.exists, all_of_it=True)
    assert (mine.folder / "aa").read_text() == "theirs\n"
    (mine.folder / ".git" / "index.lock").unlink(missing_ok=True)
    return world


def test_a_move_that_was_killed_is_put_back(half_moved: World) -> None:
    half_moved.mine.commit("--allow-empty", "-m", "next", program=HURRIED)

    assert half_moved.mine.status() == [""]
    assert not (half_moved.mine.folder / "aa").exists()
    half_moved.assert_tidy()


def test_the_lock_that_a_killed_git_has_left_is_no_reason_to_leave_it_so(half_moved: World) -> None:
    (half_moved.mine.folder / ".git" / "index.lock").touch()

    half_moved.mine.commit("--allow-empty", "-m", "next", program=HURRIED)

    assert half_moved.mine.status() == [""]


def test_what_the_user_did_after_a_kill_is_not_put_back(half_moved: World, tmp_path: Path) -> None:
    mine = half_moved.mine
    for lock in (mine.folder / ".git").rglob("*.lock"):
        if lock.name != "yolo-supervisor.lock":
            lock.unlink()  # as the user does whom git has told of it
    mine.write("app", "1\n2\n3\n")
    os.utime(mine.folder / "app", (2e9, 2e9))
    (mine.folder / "d").rename(tmp_path / "e")
    (mine.folder / "d").symlink_to(tmp_path / "e")
    mine.git("add", "aa")
    mine.write("one", "mine\n", add=True)

    told = mine.run("-m", "next", "--", "one")

    assert told.returncode == 0, told.stderr
    assert "its files have been changed since" in told.stderr
    assert (mine.folder / "app").read_text() == "1\n2\n3\n"
    assert (mine.folder / "d").is_symlink()
    assert (tmp_path / "e" / "new").read_text() == "theirs\n"
    assert (mine.folder / "aa").read_text() == "theirs\n"
    assert mine.content("one") == "mine"
    assert mine.git("show", "--name-only", "--format=", "HEAD") == "one"
    half_moved.assert_tidy()


def test_it_is_put_back_also_from_a_hook_in_another_work_tree(half_moved: World) -> None:
    at = half_moved.project / "linked"
    half_moved.mine.git("worktree", "add", "-q", "-b", "other", str(at))
    own = half_moved.mine.folder / ".git" / "worktrees" / "linked"
    inside = {**os.environ, "GIT_DIR": str(own), "GIT_WORK_TREE": str(at)}

    half_moved.mine.commit("--allow-empty", "-m", "next", at=at, env=inside, program=HURRIED)

    assert half_moved.mine.status() == [""]
    assert not (half_moved.mine.folder / "aa").exists()


def test_a_hook_that_commits_does_not_tidy_away_what_is_under_way(world: World) -> None:
    world.others_push()
    again = f"{in_the_gap(world)}; {shlex.join(PROGRAM)} commit --allow-empty -qm inner > said 2>&1"
    world.mine.hook("post-index-change", again)
    world.mine.write(".git/info/exclude", "said\n")
    world.mine.write("new", add=True)

    answer = world.mine.commit("--push", *MESSAGE)

    assert (world.mine.folder / ".git" / "once").exists()
    assert answer["result"] == "rebased"
    assert [each for each in world.mine.status() if not each.startswith("!!")] == [""]
    assert world.mine.head == world.upstream.git("rev-parse", "main")
    world.assert_tidy()


def test_what_has_the_size_and_the_time_of_what_is_staged_is_in_the_rescue_as_it_is(world: World) -> None:
    world.others_push("one", "theirs\n")
    world.mine.put("one", "mine\n")
    world.mine.write("two", "AAAA\n", add=True)
    world.mine.write("two", "BBBB\n")

    answer = world.mine.commit("--push", "-m", "nothing new", "--", "three", code=1)

    assert answer["cause"] == "conflict", answer
    assert world.mine.content("two", answer["rescue"]) == "BBBB"


# -- nothing is called done that is not ------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [True, False], ids=["a hook says no", "nothing is staged"])
def test_that_something_else_was_pushed_is_no_success_of_this_commit(world: World, hook: bool) -> None:
    world.mine.put("earlier", "x\n")
    if hook:
        world.mine.hook("pre-commit", "git status; exit 1")
        world.mine.write("new", add=True)

    answer = world.mine.commit("--push", *MESSAGE, code=1)

    if hook:
        assert (answer["result"], answer["cause"]) == ("failed", "hook")
        assert world.upstream.subjects("main") == ["first"]
    else:
        assert (answer["result"], answer["cause"]) == ("pushed", "nothing to commit")
        assert world.upstream.subjects("main") == ["put earlier", "first"]


@pytest.mark.parametrize("option", ["--dry-run", "--porcelain", "--short"])
@pytest.mark.parametrize("staged", [True, False], ids=["staged", "clean"])
def test_what_only_asks_pushes_nothing(world: World, option: str, staged: bool) -> None:
    world.mine.put("earlier", "x\n")
    if staged:
        world.mine.write("new", add=True)

    answer = world.mine.commit("--push", option, *MESSAGE, code=0 if staged else 1)

    assert answer["result"] == ("unchanged" if staged else "failed")
    assert world.upstream.subjects("main") == ["first"]


def test_a_hooks_no_is_one_whatever_it_says(world: World) -> None:
    world.mine.put("earlier", "x\n")
    world.mine.hook("pre-commit", "echo nothing to commit, working tree clean; exit 1")
    world.mine.write("two", "changed\n")

    answer = world.mine.commit("--push", "-am", "mine", code=1)

    assert (answer["result"], answer["cause"]) == ("failed", "hook")
    assert world.upstream.subjects("main") == ["first"]


def test_nothing_to_commit_is_that_also_beside_a_hook_and_something_staged(world: World) -> None:
    world.mine.hook("pre-commit", "exit 0")
    world.mine.write("new", add=True)

    assert world.mine.commit("-m", "mine", "--", "two", code=1)["cause"] == "nothing to commit"


def test_a_branch_that_is_another_name_of_one_is_pushed(world: World) -> None:
    world.mine.git("symbolic-ref", "refs/heads/trunk", "refs/heads/main")
    world.mine.git("symbolic-ref", "HEAD", "refs/heads/trunk")
    world.mine.git("config", "branch.trunk.remote", "origin")
    world.mine.git("config", "branch.trunk.merge", "refs/heads/main")
    world.mine.git("config", "push.default", "upstream")
    world.mine.write("new", add=True)

    assert world.mine.commit("--push", *MESSAGE)["result"] == "pushed"

    assert world.upstream.subjects("main") == ["message", "first"]


def test_a_commit_that_was_made_on_the_wrong_branch_and_comes_back_by_another_was_not_taken_back(world: World) -> None:
    world.mine.put("feature", "x\n")
    world.mine.git("push", "-q", "origin", "HEAD:feature")
    world.mine.git("reset", "-q", "--hard", "HEAD~1")
    world.theirs.git("fetch", "-q")
    world.theirs.git("merge", "-q", "--no-ff", "-m", "merged", "origin/feature")
    world.theirs.git("push", "-q")
    world.mine.write("new", add=True)

    assert world.mine.commit("--push", *MESSAGE)["result"] == "rebased"


def test_what_somebody_else_commits_beside_a_hook_that_says_no_is_not_ours(world: World) -> None:
    world.mine.write("new", add=True)
    world.mine.write("two", "changed\n")
    world.mine.hook("pre-commit", 'test -n "$FREE" && exit 0; FREE=1 git commit -qm other -- two; exit 1')

    answer = world.mine.commit("-m", "mine", "--", "new", code=1)

    assert (answer["result"], answer["cause"]) == ("failed", "hook")


def test_a_project_around_a_repository_does_not_push_it(world: World) -> None:
    (world.project / ".yolo-planning").mkdir(exist_ok=True)
    (world.project / ".yolo-planning" / "config.json").write_text('{"auto_push": "always"}')
    world.mine.write("new", add=True)

    assert world.mine.commit(*MESSAGE)["result"] == "committed"


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_a_message_may_come_from_the_standard_input(world: World, name: str) -> None:
    world.mine.write("new", add=True)

    world.mine.commit("-F", name, stdin=None, input="from there\n")

    assert world.mine.subjects()[0] == "from there"


def test_a_message_may_come_from_a_file_that_the_shell_opened(world: World) -> None:
    world.mine.write("new", add=True)
    line = f"{shlex.join(PROGRAM)} commit -q -F <(echo from a pipe)"

    told = subprocess.run(["bash", "-c", line], cwd=world.mine.folder, timeout=LIMIT_S, check=False)

    assert told.returncode == 0
    assert world.mine.subjects()[0] == "from a pipe"


# -- the rescue, and what else can fail ------------------------------------------------------------------------------


def test_one_file_that_cannot_be_added_leaves_the_rescue_whole_but_for_it(world: World) -> None:
    world.others_push("one", "theirs\n")
    world.mine.git("config", "core.autocrlf", "input")
    world.mine.git("config", "core.safecrlf", "true")
    world.mine.git("config", "filter.broken.clean", "false")
    world.mine.git("config", "filter.broken.required", "true")
    world.mine.write(".git/info/attributes", "*.broken filter=broken\n")
    world.mine.write("one", "mine\n", add=True)
    world.mine.write("mixed", "a\r\nb\n")
    world.mine.write("x.broken", "x\n")
    world.mine.write("two", "changed\n")
    world.mine.write("precious", "mine\n")

    answer = world.mine.commit("--push", *MESSAGE, code=1)

    assert answer["cause"] == "conflict"
    assert answer["unkept"] == ["x.broken"]
    assert "without x.broken" in answer["commands"][-1]
    assert world.mine.content("two", answer["rescue"]) == "changed"
    assert world.mine.content("precious", answer["rescue"]) == "mine"
    assert "mixed" in world.mine.git("ls-tree", "--name-only", answer["rescue"]).splitlines()


def test_what_the_disk_refuses_is_told_as_any_other_cause(world: World) -> None:
    world.others_push()
    world.mine.write(".git/yolo-supervisor", "in the way\n")
    world.mine.write("new", add=True)

    answer = world.mine.commit("--push", *MESSAGE, code=1)

    assert answer["result"] == "committed"
    assert answer["message"].startswith("the commit is made, but not pushed")
    assert os.strerror(errno.EEXIST) in str(world.told()) or os.strerror(errno.ENOTDIR) in str(world.told())


def test_a_signal_while_it_pushes_is_answered(world: World, children: Children) -> None:
    ready = world.project / "ready"
    world.mine.hook("pre-push", f"touch {ready}; sleep 600")
    world.mine.write("new", add=True)
    child = children.start(*PROGRAM, "commit", "--json", "--push", *MESSAGE, cwd=world.mine.folder)
    wait_until(ready.exists, "the push")

    child.terminate()

    assert child.wait(LIMIT_S) == 128 + 15
    assert child.stdout is not None
    assert b'"cause": "interrupted"' in child.stdout.read()
