"""``commit`` under hooks that hide the user's unstaged changes, and are ended before they restore them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.cli import PROGRAM, Cli
from support.processes import Children
from support.wait import LIMIT_S, wait_until
from test_commit import (
    HASTY,
    MESSAGE,
    PATIENT,
    Repo,
    Repositories,
    clean_git_environment,
    git_config,
    repos,
    template_repos,
)  # fmt: skip

__all__ = ["clean_git_environment", "git_config", "repos", "template_repos"]

IMPATIENT = (
    *HASTY[:2],
    "import yolo_supervisor.system.subprocesses as c\nc.INTERRUPT_GRACE_S = c.GRACE_S = 0.3\n" + HASTY[2],
)
"""The program with short grace periods."""

STASH = "git stash push -q --keep-index"
PATCH = "git diff --binary > $HOME/hidden.patch; git checkout -q -- ."
APPLY = "git apply $HOME/hidden.patch"
LINT_STAGED = f"{STASH} -m 'lint-staged automatic backup'"


class State:
    """The index, the stash list and the files of the work tree, which must be as before."""

    def __init__(self, repo: Repo) -> None:
        self.staged = repo.git("diff", "--cached", "--binary")
        self.index = repo.git("ls-files", "--stage", "--debug").splitlines()[::6]
        self.stashes = repo.git("stash", "list", "--format=%H %gs")
        self.status = repo.status()
        names = repo.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        self.files = {name: path.read_bytes() for name in names if (path := repo.folder / name).is_file()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(vars(self))


@pytest.fixture
def mine(repos: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """A work tree with staged, unstaged and untracked changes, a deleted file, and a stash of before."""
    monkeypatch.setenv("HOME", str(tmp_path))
    repo = repos.mine
    repo.write("two", "stashed\n")
    repo.git("stash", "push", "-q", "-m", "of before")
    repo.write("one", "staged\n", add=True)
    repo.write("one", "staged\nunstaged\n")
    repo.write("two", "unstaged\n")
    repo.write("new", "staged\n", add=True)
    (repo.folder / "three").unlink()
    repo.write("untracked", "untracked\n")
    return repo


def ended(
    children: Children, repo: Repo, number: int, *program: str, argv: tuple[str, ...] = MESSAGE
) -> tuple[int, dict[str, object], str]:
    """Start a commit, send it the signal once its hook is ready; exit code, document and stderr."""
    ready = repo.folder / ".git" / "ready"
    child = children.start(
        *(program or PROGRAM), "commit", "--json", *argv,
        cwd=repo.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: child.poll() is not None or ready.exists(), "the hook")
    child.send_signal(number)
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdout, child.stderr:
        document, errors = child.stdout.read().decode(), child.stderr.read().decode()
    ready.unlink(missing_ok=True)
    return child.wait(LIMIT_S), json.loads(document), errors


def rescue_refs(repo: Repo) -> list[str]:
    return repo.git("for-each-ref", "--format=%(refname)", "refs/yolo-supervisor").splitlines()


def assert_nothing_left(repo: Repo) -> None:
    """Assert that no copy and no record is left."""
    assert rescue_refs(repo) == []
    assert list((repo.folder / ".git" / "yolo-supervisor").glob("hooks-*")) == []


READY = "touch .git/ready"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_hook_is_interrupted_as_by_ctrl_c_and_restores_the_hidden_changes(
    mine: Repo, children: Children, number: signal.Signals
) -> None:
    mine.hook("pre-commit", f"trap '{APPLY}; exit 1' INT\n{PATCH}\n{READY}\nsleep 600")
    before = State(mine)

    code, answer, _ = ended(children, mine, number)

    assert (code, answer["cause"], answer["restored"]) == (128 + number, "interrupted", [])
    assert State(mine) == before
    assert_nothing_left(mine)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "hides",
    [STASH, LINT_STAGED, f"{STASH} --include-untracked", PATCH, f"{PATCH}; git reset -q --hard",
     f"{STASH}; git rm -q --cached new", f"{STASH}; git stash pop -q", f"{STASH}; git reset -q --hard"],
)  # fmt: skip
def test_hidden_changes_are_put_back_and_index_and_stash_list_are_as_before(
    mine: Repo, children: Children, hides: str
) -> None:
    mine.hook("pre-commit", f"{hides}\n{READY}\nexec sleep 600")
    before = State(mine)

    _, answer, _ = ended(children, mine, signal.SIGTERM)

    assert State(mine) == before
    assert "one" in answer["restored"]  # type: ignore[operator]
    assert answer["missing"] == []
    assert_nothing_left(mine)


def test_hidden_changes_are_put_back_at_the_time_limit(mine: Repo) -> None:
    mine.hook("pre-commit", f"trap '' INT TERM\n{STASH}\nexec sleep 600")
    before = State(mine)

    answer = mine.commit("--timeout", "3", *MESSAGE, code=1, program=IMPATIENT)

    assert (answer["cause"], answer["missing"]) == ("timed out", [])
    assert "they are in the work tree again: one" in answer["notes"][0]
    assert State(mine) == before


def test_hidden_changes_are_put_back_when_a_hook_was_killed(mine: Repo) -> None:
    mine.hook("pre-commit", f"{STASH}\nkill -9 $$")
    before = State(mine)

    answer = mine.commit(*MESSAGE, code=1)

    assert (answer["cause"], answer["restored"]) == ("hook", ["one", "three", "two"])
    assert State(mine) == before
    assert_nothing_left(mine)


def test_hooks_are_ended_when_git_was_killed(mine: Repo) -> None:
    mine.hook("pre-commit", f"{STASH}\nkill -9 $PPID\nsleep 600")
    before = State(mine)

    answer = mine.commit(*MESSAGE, code=1)

    assert answer["result"] == "failed"
    assert State(mine) == before


def test_merge_that_a_hook_has_reset_is_still_a_merge(repos: Repositories, children: Children) -> None:
    mine = repos.mine
    mine.git("switch", "-qc", "side")
    mine.put("side", "side\n")
    mine.git("switch", "-q", "main")
    mine.put("five", "five\n")
    mine.git("merge", "-q", "--no-ff", "--no-commit", "side")
    mine.write("one", "unstaged\n")
    hook = mine.hook("pre-commit", f"git reset -q --hard\n{READY}\nexec sleep 600")
    before = State(mine)

    ended(children, mine, signal.SIGTERM)

    assert State(mine) == before
    hook.unlink()
    mine.commit(*MESSAGE)
    assert len(mine.git("rev-list", "--parents", "-1", "HEAD").split()) == 3


def test_file_that_another_changed_meanwhile_is_not_written(mine: Repo, children: Children) -> None:
    mine.hook("pre-commit", f"{STASH}\necho another > two\ngit add two\n{READY}\nexec sleep 600")

    _, answer, _ = ended(children, mine, signal.SIGTERM)

    assert answer["missing"] == ["two"]
    assert (mine.folder / "two").read_text() == "another\n"
    assert mine.git("show", ":two") == "another"
    assert (mine.folder / "one").read_text() == "staged\nunstaged\n"
    ref = answer["rescue"]
    assert mine.content("two", str(ref)) == "unstaged"
    commands = "\n".join(answer["commands"])  # type: ignore[arg-type]
    assert f"git diff {ref} -- two" in commands
    subprocess.run(["sh", "-ec", commands.replace("git update-ref", ": ")], check=True, timeout=LIMIT_S)
    assert (mine.folder / "two").read_text() == "unstaged\n"


def test_file_that_continues_the_users_change_is_not_missing(mine: Repo, children: Children) -> None:
    mine.hook("pre-commit", f"echo 'and more' >> two\n{READY}\nexec sleep 600")

    _, answer, _ = ended(children, mine, signal.SIGTERM)

    assert (answer["missing"], answer["restored"]) == ([], [])
    assert (mine.folder / "two").read_text() == "unstaged\nand more\n"
    assert_nothing_left(mine)


def test_half_written_file_is_put_back(mine: Repo, children: Children) -> None:
    mine.hook("pre-commit", f"{STASH}\nprintf sta > one\n{READY}\nexec sleep 600")
    before = State(mine)

    ended(children, mine, signal.SIGTERM)

    assert State(mine) == before


def test_commit_that_is_made_leaves_no_copy(mine: Repo) -> None:
    mine.hook("pre-commit", f"{PATCH}\necho formatted > new; git add new\n{APPLY}")

    assert mine.commit(*MESSAGE)["result"] == "committed"

    assert mine.content("new") == "formatted"
    assert (mine.folder / "one").read_text() == "staged\nunstaged\n"
    assert_nothing_left(mine)


def test_changes_that_a_successful_hook_has_hidden_are_reported(mine: Repo) -> None:
    mine.hook("pre-commit", STASH)

    answer = mine.commit(*MESSAGE)

    assert (answer["result"], answer["missing"]) == ("committed", ["one", "three", "two"])
    assert any("stash@{0}" in command for command in answer["commands"])
    assert mine.content("two", answer["rescue"]) == "unstaged"


def test_old_copies_are_removed_only_if_their_content_is_elsewhere(mine: Repo) -> None:
    program = (*HASTY[:2], "from yolo_supervisor.commits import rescue_refs\nrescue_refs.REFS_KEPT = 1\n" + HASTY[2])
    mine.hook("pre-commit", "git checkout -q two")
    first = mine.commit("--allow-empty", *MESSAGE, "--only", program=program)
    assert first["missing"] == ["two"]
    mine.write("two", "newer\n")

    second = mine.commit("--allow-empty", *MESSAGE, "--only", program=program)

    assert rescue_refs(mine) == [first["rescue"], second["rescue"]]
    assert "2 copies in refs/yolo-supervisor/rescue/ have changes that are nowhere else" in second["notes"][-1]
    mine.write("two", "newest\n")
    mine.write("kept", "unstaged\n", add=True)

    third = mine.commit("--allow-empty", *MESSAGE, "--only", program=program)

    assert rescue_refs(mine) == [second["rescue"], third["rescue"]]
    assert "removed 1 old copy of work that is in the work tree or in history" in third["notes"]


def test_interruption_after_the_commit_says_that_it_is_made(mine: Repo, children: Children) -> None:
    mine.hook("post-commit", f"{READY}\nexec sleep 600")

    code, answer, _ = ended(children, mine, signal.SIGTERM)

    assert (code, answer["result"], answer["cause"]) == (143, "committed", "interrupted")
    assert mine.subjects()[0] == "message"
    assert (mine.folder / "one").read_text() == "staged\nunstaged\n"


def test_changes_that_a_pre_push_hook_has_hidden_are_put_back(mine: Repo, children: Children) -> None:
    mine.hook("pre-push", f"git stash -q\n{READY}\nexec sleep 600")
    before = State(mine)

    code, answer, _ = ended(children, mine, signal.SIGTERM, argv=("--push", "--allow-empty", *MESSAGE, "--only"))

    assert (code, answer["result"], answer["cause"]) == (143, "committed", "interrupted")
    assert State(mine) == before
    assert_nothing_left(mine)


@pytest.mark.thorough
def test_pre_push_hook_is_interrupted_and_restores_the_hidden_changes(mine: Repo) -> None:
    mine.hook("pre-push", f"trap '{APPLY}; exit 1' INT\n{PATCH}\nsleep 600")
    before = State(mine)

    answer = mine.commit("--timeout", "4", "--push", "--allow-empty", *MESSAGE, "--only", code=1)

    assert (answer["cause"], answer["restored"], answer["missing"]) == ("timed out", [], [])
    assert State(mine) == before
    assert_nothing_left(mine)


def kill(child: subprocess.Popen[bytes], all_of_it: bool) -> None:
    """Kill the commit, alone or with its process tree."""
    tree = psutil.Process(child.pid).children(recursive=True) if all_of_it else []
    child.kill()
    child.wait(LIMIT_S)
    for process in tree:
        if process.is_running():
            process.kill()
    psutil.wait_procs(tree, LIMIT_S)


def start(children: Children, repo: Repo, ready: Callable[[], object]) -> subprocess.Popen[bytes]:
    child = children.start(*PROGRAM, "commit", *MESSAGE, cwd=repo.folder, stderr=subprocess.DEVNULL)
    wait_until(lambda: child.poll() is not None or ready(), "the hook")
    return child


def test_next_commit_says_where_the_changes_of_a_killed_one_are(
    repos: Repositories, mine: Repo, children: Children
) -> None:
    hook = mine.hook("pre-commit", f"{STASH}\n{READY}\nexec sleep 600")
    child = start(children, mine, (mine.folder / ".git" / "ready").exists)
    kill(child, all_of_it=True)
    hook.unlink()

    done = mine.run("--json", "--allow-empty", *MESSAGE, program=PATIENT)

    assert done.returncode == 0, done
    (ref,) = rescue_refs(mine)
    assert ref in str(json.loads(done.stdout)["notes"])
    assert "they are not in the work tree any more: one, three, two" in done.stderr
    assert f"git restore --source={ref}" in done.stderr
    assert "git stash show -p stash@{0}" in done.stderr
    assert mine.content("one", ref) == "staged\nunstaged"
    assert [entry["evidence"]["rescue"] for entry in repos.journal()] == [ref]
    assert "hidden" not in mine.run("--allow-empty", *MESSAGE).stderr
    assert rescue_refs(mine) == [ref]
    assert f"of commits and dead agents: 1, the newest is {ref}" in str(
        Cli(mine.folder).json("doctor", "--project", ".")
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("record", ["", "{}", "[]", '{"places": 1}', "\xff", None])
def test_record_that_is_incomplete_or_names_another_ref_is_removed(mine: Repo, record: str | None) -> None:
    if record is None:
        where = [
            str(mine.folder),
            str(mine.folder / ".git"),
            str(mine.folder / ".git"),
            str(mine.folder / ".git/index"),
        ]
        tree, head = mine.git("rev-parse", "HEAD^{tree}"), mine.head
        document = {
            "places": where,
            "backup": ["refs/heads/main", tree, tree, head, []],
            "stashes": [],
            "operation": {},
        }
        record = json.dumps(document) + "\n"
    mine.write(".git/yolo-supervisor/hooks-1999999-commit.json", record)

    mine.run("--allow-empty", *MESSAGE)

    assert mine.subjects() == ["message", "first"]
    assert_nothing_left(mine)


def test_staged_changes_that_a_killed_hook_has_reset_are_named_also_beside_a_lock(
    mine: Repo, children: Children
) -> None:
    mine.git("checkout", "-q", "one")  # it is as staged
    mine.write("one", "one\n" * 3)
    hook = mine.hook("pre-commit", f"git stash push -q --keep-index; git reset -q --hard\n{READY}\nexec sleep 600")
    child = start(children, mine, (mine.folder / ".git" / "ready").exists)
    kill(child, all_of_it=True)
    hook.unlink()
    mine.write(".git/index.lock", "")

    done = mine.run("--allow-empty", *MESSAGE, program=HASTY)

    (ref,) = rescue_refs(mine)
    assert f"git diff HEAD {ref}^2" in done.stderr
    assert mine.content("one", f"{ref}^2") == "staged"


def test_nothing_is_reported_if_the_hook_of_a_killed_commit_restored_the_changes(
    mine: Repo, children: Children, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    hook = mine.hook("pre-commit", f"{PATCH}\n{READY}\nread line < {go}; {APPLY}")
    before = State(mine)
    ready = mine.folder / ".git" / "ready"
    child = start(children, mine, ready.exists)
    git = psutil.Process(child.pid).children()
    kill(child, all_of_it=False)
    at_work = mine.run("--dry-run", "--allow-empty")
    assert "hidden" not in at_work.stderr
    assert len(rescue_refs(mine)) == 1

    go.write_text("go\n")
    psutil.wait_procs(git, LIMIT_S)
    hook.unlink()

    assert mine.subjects() == ["message", "first"]
    assert "hidden" not in mine.run("--allow-empty", *MESSAGE).stderr
    assert {name: before.files[name] for name in ("one", "two", "untracked")} == {
        name: (mine.folder / name).read_bytes() for name in ("one", "two", "untracked")
    }
    assert_nothing_left(mine)


def test_copy_is_kept_of_a_work_tree_without_a_commit(repos: Repositories, children: Children) -> None:
    repo = Repo(repos.project / "empty")
    subprocess.run(["git", "init", "-q", repo.folder], check=True)
    repo.write("one", "staged\n", add=True)
    repo.write("one", "staged\nunstaged\n")
    repo.hook("pre-commit", f"git checkout -q -- .\n{READY}\nexec sleep 600")

    _, answer, _ = ended(children, repo, signal.SIGTERM)

    assert answer["restored"] == ["one"]
    assert (repo.folder / "one").read_text() == "staged\nunstaged\n"


def test_large_untracked_files_are_not_copied(mine: Repo, children: Children) -> None:
    with (mine.folder / "large").open("wb") as file:
        file.truncate(17 * 2**20)
    mine.hook(
        "pre-commit",
        "git ls-tree --name-only $(git for-each-ref --format='%(objectname)' refs/yolo-supervisor) > .git/copied",
    )

    assert mine.commit(*MESSAGE)["result"] == "committed"
    copied = (mine.folder / ".git" / "copied").read_text().splitlines()
    assert "untracked" in copied
    assert "large" not in copied


def test_large_untracked_files_are_taken_out_of_the_stash_of_a_hook(mine: Repo, children: Children) -> None:
    with (mine.folder / "large").open("wb") as file:
        file.truncate(17 * 2**20)
    mine.hook("pre-commit", f"{STASH} --include-untracked\n{READY}\nexec sleep 600")

    _, answer, _ = ended(children, mine, signal.SIGTERM)

    assert "large" in answer["restored"]  # type: ignore[operator]
    assert (mine.folder / "large").stat().st_size == 17 * 2**20
    assert_nothing_left(mine)


@pytest.mark.thorough
def test_next_commit_says_in_which_stash_entry_large_files_are(mine: Repo, children: Children) -> None:
    with (mine.folder / "large").open("wb") as file:
        file.truncate(17 * 2**20)
    hook = mine.hook("pre-commit", f"{STASH} --include-untracked\n{READY}\nexec sleep 600")
    child = start(children, mine, (mine.folder / ".git" / "ready").exists)
    kill(child, all_of_it=True)
    hook.unlink()

    done = mine.run("--allow-empty", *MESSAGE, program=HASTY)

    assert "git restore --source='stash@{0}^3' -- large" in done.stderr


def test_hooks_of_a_configured_folder_are_known(mine: Repo, children: Children, tmp_path: Path) -> None:
    mine.git("config", "core.hooksPath", str(tmp_path / "hooks"))
    mine.hook("pre-commit", f"{PATCH}\n{READY}\nexec sleep 600")
    before = State(mine)

    ended(children, mine, signal.SIGTERM)

    assert State(mine) == before


def test_hooks_get_sigint_also_where_the_caller_ignores_it(mine: Repo, children: Children) -> None:
    mine.hook("pre-commit", f"trap 'touch .git/interrupted; exit 1' INT\n{READY}\nsleep 600")
    ready = mine.folder / ".git" / "ready"
    line = f"trap '' INT; exec {shlex.join([*PROGRAM, 'commit', *MESSAGE])}"
    child = children.start("sh", "-c", line, cwd=mine.folder)
    wait_until(ready.exists, "the hook")

    child.terminate()

    assert child.wait(LIMIT_S) == 143
    assert (mine.folder / ".git" / "interrupted").exists()
