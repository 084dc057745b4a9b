"""``commit`` reports git's result, keeps the stated limit, and pushes from every layout of a repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.wait import LIMIT_S
from test_commit import MESSAGE, Repo, Repositories, clean_git_environment, git_config, repos, template_repos

__all__ = ["clean_git_environment", "git_config", "repos", "template_repos"]

BLIND = (
    sys.executable, "-c",
    "from yolo_supervisor.commits import fast_path\n"
    "from yolo_supervisor.__main__ import main\n"
    "def head(*dirs): raise OSError\n"
    "fast_path.head = head\n"
    "main()",
)  # fmt: skip
"""The program where the refs cannot be read as files."""

FORMATS = {"reftable": "--ref-format=reftable", "sha256": "--object-format=sha256", "unreadable": "--quiet"}


def new_repository(folder: Path, option: str) -> Repo:
    """A repository with one commit, in a storage format."""
    made = subprocess.run(["git", "init", "-q", option, folder], capture_output=True, text=True, check=False)
    if "unknown option" in made.stderr:
        pytest.skip("this git does not know reftable")
    assert made.returncode == 0, made.stderr
    repo = Repo(folder)
    repo.put("one", "one\n", "first")
    return repo


# -- git's result ----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", FORMATS)
def test_commit_is_reported_in_every_storage_format(repos: Repositories, how: str) -> None:
    repo = new_repository(repos.project / "new", FORMATS[how])
    program = {"program": BLIND} if how == "unreadable" else {}
    hook = repo.hook("pre-commit", "sleep 600")
    repo.write("one", "two\n", add=True)

    hanging = repo.commit("--timeout", "1", *MESSAGE, code=1, **program)
    hook.unlink()
    made = repo.commit(*MESSAGE, **program)
    unchanged = repo.commit("--dry-run", "--allow-empty", *MESSAGE, code=1, **program)

    assert (hanging["result"], hanging["cause"]) == ("failed", "timed out")
    assert made["result"] == "committed"
    assert unchanged["result"] == "failed"
    assert repo.subjects() == ["message", "first"]


def test_commit_of_another_while_our_hook_hangs_is_not_reported_as_ours(repos: Repositories) -> None:
    repos.mine.hook(
        "pre-commit",
        "test -e .git/once && exit 0; touch .git/once; unset $(git rev-parse --local-env-vars)\n"
        "git commit -qm another two; exec sleep 600",
    )
    repos.mine.write("new", add=True)
    repos.mine.write("two", "theirs\n")

    answer = repos.mine.commit("--timeout", "4", *MESSAGE, code=1)

    assert repos.mine.subjects() == ["another", "first"]
    assert answer["result"] == "failed"


@pytest.mark.parametrize(
    "argv",
    [
        ["--amend", "-m", "message"],
        pytest.param(["-am", "message"], marks=pytest.mark.thorough),
        pytest.param(["-m", "message", "two"], marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_commit_whose_post_commit_hook_hangs_is_reported_as_made(repos: Repositories, argv: list[str]) -> None:
    repos.mine.hook("post-commit", "exec sleep 600")
    repos.mine.write("two", "new\n")

    answer = repos.mine.commit("--timeout", "4", *argv, code=1)

    assert (answer["result"], repos.mine.subjects()[0]) == ("committed", "message")


@pytest.mark.thorough
def test_amend_of_another_while_our_hook_hangs_is_not_reported_as_ours(repos: Repositories) -> None:
    repos.mine.hook(
        "pre-commit",
        "test -e .git/once && exit 0; touch .git/once; unset $(git rev-parse --local-env-vars)\n"
        "git commit -qm another two; exec sleep 600",
    )
    repos.mine.write("two", "theirs\n")

    answer = repos.mine.commit("--timeout", "4", "--amend", *MESSAGE, code=1)

    assert (repos.mine.subjects(), answer["result"]) == (["another", "first"], "failed")


# -- one limit -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_time_limit_holds_for_the_push_and_its_hooks(repos: Repositories) -> None:
    repos.mine.hook("pre-push", "exec sleep 600")
    repos.mine.write("new", add=True)

    answer = repos.mine.commit("--timeout", "4", "--push", *MESSAGE, code=1)

    assert (answer["result"], answer["cause"]) == ("committed", "timed out")
    assert answer["message"].startswith("the commit is made, but not pushed: timed out")


def test_filter_that_hangs_while_the_work_is_copied_is_ended_at_the_time_limit(repos: Repositories) -> None:
    repos.mine.hook("pre-commit", "exit 0")
    repos.mine.git("config", "filter.slow.clean", "touch .git/slow; sleep 600")
    repos.mine.write(".git/info/attributes", "slow filter=slow\n")
    repos.mine.write("slow")

    done = repos.mine.run("--timeout", "3", "--allow-empty", *MESSAGE)

    assert (repos.mine.folder / ".git" / "slow").exists()
    assert done.returncode == 1
    assert "no copy of your work was made before the hooks" in done.stderr


# -- a bare repository with linked work trees ------------------------------------------------------------------------


@pytest.fixture
def linked(repos: Repositories) -> Repo:
    """A work tree of a bare repository that has no remote-tracking branches."""
    bare = repos.project / "bare" / ".bare"
    Repo(repos.project).git("clone", "-q", "--bare", str(repos.upstream.folder), str(bare))
    folder = bare.parent / "main"
    Repo(bare).git("worktree", "add", "-q", str(folder), "main")
    tree = Repo(folder)
    tree.git("config", "branch.main.remote", "origin")
    tree.git("config", "branch.main.merge", "refs/heads/main")
    return tree


def test_push_without_tracking_branches_is_rebased_onto_the_upstream(repos: Repositories, linked: Repo) -> None:
    theirs = repos.others_push()
    linked.write("one", "not finished\n")
    linked.write("five", add=True)

    answer = linked.commit("--push", *MESSAGE)

    assert (answer["result"], answer["message"]) == ("rebased", "")
    assert linked.head == repos.upstream.git("rev-parse", "main")
    assert linked.git("rev-parse", "HEAD~1") == theirs
    assert linked.status() == ["", " M one"]
    assert linked.git("for-each-ref", "refs/yolo-supervisor") == ""


def test_push_of_a_mirror_is_rebased_onto_the_upstream(repos: Repositories, linked: Repo) -> None:
    linked.git("config", "remote.origin.fetch", "+refs/heads/*:refs/heads/*")
    theirs = repos.others_push()
    linked.write("five", add=True)

    assert linked.commit("--push", *MESSAGE)["result"] == "rebased"

    assert linked.git("rev-parse", "HEAD~1") == theirs
    assert linked.head == repos.upstream.git("rev-parse", "main")


def test_earlier_commits_are_pushed_without_tracking_branches(repos: Repositories, linked: Repo) -> None:
    linked.put("five", "five\n")

    answer = linked.commit("--push", *MESSAGE, code=1)
    again = linked.commit("--push", *MESSAGE, code=1)

    assert (answer["result"], answer["cause"]) == ("pushed", "nothing to commit")
    assert again["result"] == "failed"
    assert linked.head == repos.upstream.git("rev-parse", "main")


def test_conflict_without_tracking_branches_is_resolved_by_the_printed_commands(
    repos: Repositories, linked: Repo
) -> None:
    repos.others_push("five", "theirs\n")
    linked.write("five", "mine\n", add=True)

    *begin, push, _ = linked.commit("--push", *MESSAGE, code=1)["commands"]

    done = subprocess.run(["sh", "-c", "\n".join(begin)], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert "CONFLICT" in done.stdout, done.stderr
    linked.write("five", "both\n", add=True)
    linked.git("-c", "core.editor=true", "rebase", "--continue")
    linked.git(*push.split()[1:])
    assert repos.upstream.subjects("main") == ["message", "put five", "first"]


def test_reset_commit_does_not_come_back_without_tracking_branches(repos: Repositories, linked: Repo) -> None:
    linked.put("wrong", "x\n")
    linked.git("push", "-q")
    linked.git("reset", "-q", "--hard", "HEAD~1")
    linked.write("new", add=True)

    assert linked.commit("--push", *MESSAGE, code=1)["cause"] == "taken back"


def test_rejection_by_another_branch_than_the_upstream_is_not_to_be_tried_again(
    repos: Repositories, linked: Repo
) -> None:
    repos.others_push()
    linked.git("config", "push.default", "current")
    linked.git("config", "branch.main.merge", "refs/heads/other")
    linked.write("five", add=True)

    answer = linked.commit("--push", *MESSAGE, code=1)

    assert (answer["result"], answer["cause"]) == ("committed", "diverged")
    assert "git pull --rebase REMOTE BRANCH" in answer["message"]


@pytest.mark.parametrize("said", ["git@host: Permission denied (publickey).", "Host key verification failed."])
def test_remote_that_refuses_the_key_is_not_to_be_tried_again(
    repos: Repositories, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", f"echo '{said}' >&2; exit 255;")
    repos.mine.git("remote", "set-url", "origin", "git@host:repository")
    repos.mine.write("new", add=True)

    answer = repos.mine.commit("--push", *MESSAGE, code=1)

    assert (answer["result"], answer["cause"]) == ("committed", "no access")


# -- the standard input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-p", "--patch", "-qp"])
def test_answers_on_the_standard_input_reach_git(repos: Repositories, option: str) -> None:
    repos.mine.write("one", "changed\n")
    repos.mine.write("two", "changed\n")

    done = repos.mine.run(option, *MESSAGE, stdin=None, input="y\nn\n")

    assert done.returncode == 0, done
    assert repos.mine.content("one") == "changed"
    assert repos.mine.content("two") == "two\n" * 2 + "two"
    assert repos.mine.status() == ["", " M two"]
