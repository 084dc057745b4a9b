"""``commit``: causes of failures, locks, rebases onto the upstream, concurrency and crashes."""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.budget import SOAK
from support.cli import PROGRAM
from support.processes import Children
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.formats.own import dump_seen_locks
from yolo_supervisor.models import LockStamp, SeenLock
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

HASTY = (
    sys.executable, "-c",
    "from yolo_supervisor.commits import fast_path, recovery\n"
    "from yolo_supervisor.__main__ import main\n"
    "recovery.INDEX_STALE_S, recovery.WAIT_S, fast_path.LOCK_LIMIT_S = 0.3, 1.0, 3.0\n"
    "main()",
)  # fmt: skip
"""The program with short waits for locks: it soon gives up, too."""

PATIENT = (*HASTY[:2], HASTY[2].replace(", 1.0, 3.0", f", {LIMIT_S}, {LIMIT_S}"))
"""The program that soon takes a lock for stale, and gives up only at a limit that a hang reaches."""

NAMES = ("plain", "with space", "new\nline", "n\u00e4me", '"quoted"', "back\\slash", " leading", "-dash", "deep/er/one")
MESSAGE = ("-m", "message")


class Repo:
    """A work tree, used by plain git and by our ``commit``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *argv: str, **options: Any) -> str:
        """Run plain git; its output."""
        done = subprocess.run(
            ["git", *argv], cwd=self.folder, capture_output=True, text=True, timeout=LIMIT_S, check=False, **options
        )
        assert done.returncode == 0, f"git {shlex.join(argv)}: {done.stdout}{done.stderr}"
        answer: str = done.stdout
        return answer.removesuffix("\n")

    def write(self, name: str, content: str = "new\n", add: bool = False) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if add:
            self.git("add", "--", name)
        return path

    def put(self, name: str, content: str, message: str = "") -> str:
        """Commit a file by plain git; the new commit."""
        self.write(name, content, add=True)
        self.git("commit", "-qm", message or f"put {name}")
        return self.head

    def hook(self, name: str, script: str) -> Path:
        """Install the shell script as a hook."""
        path = Path(self.git("rev-parse", "--path-format=absolute", "--git-path", f"hooks/{name}"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def run(
        self, *argv: str, program: Sequence[str] = PROGRAM, at: Path | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run our ``commit``. No mistake may end in a traceback."""
        options = {"stdin": subprocess.DEVNULL, "timeout": LIMIT_S, "capture_output": True, **options}
        done = subprocess.run([*program, "commit", *argv], cwd=at or self.folder, text=True, check=False, **options)
        assert "Traceback" not in (done.stderr or ""), done.stderr
        return done

    def commit(self, *argv: str, code: int = 0, **options: Any) -> Any:
        """The document that ``commit --json`` prints."""
        done = self.run("--json", *argv, **options)
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def subjects(self, revision: str = "HEAD") -> list[str]:
        return self.git("log", "--format=%s", revision).splitlines()

    def status(self) -> list[str]:
        done = self.git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--ignored")
        return sorted(done.split("\0"))

    def content(self, name: str, revision: str = "HEAD") -> str:
        return self.git("show", f"{revision}:{name}")


@dataclass
class Repositories:
    """A project with a work tree of ours, the upstream, and a clone of another developer."""

    project: Path
    upstream: Repo
    mine: Repo
    theirs: Repo

    def others_push(self, name: str = "theirs", content: str = "theirs\n") -> str:
        """Push a commit from the other clone; that commit."""
        self.theirs.git("pull", "-q", "--rebase")
        new = self.theirs.put(name, content)
        self.theirs.git("push", "-q")
        return new

    def journal(self, kind: str = "commit") -> list[dict[str, Any]]:
        """The journal's entries of this kind."""
        journal = self.project / ".yolo-planning" / ".supervisor" / "journal.jsonl"
        return [entry for entry in (history(journal) if journal.exists() else []) if entry["kind"] == kind]

    def assert_tidy(self) -> None:
        """Assert that no temporary file or checkout is left."""
        assert len(self.mine.git("worktree", "list").splitlines()) == 1
        own = self.mine.folder / ".git" / "yolo-supervisor"
        assert [path.name for path in own.glob("*") if path.name.startswith(("move-", "tree-"))] == []
        assert list((self.mine.folder / ".git").rglob("*.lock*.lock")) == []
        assert [path.name for path in (self.mine.folder / ".git").glob("index?*")] == []


@pytest.fixture(scope="module", autouse=True)
def clean_git_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("GIT_", "EMAIL")):
                patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


@pytest.fixture(autouse=True)
def git_config(claude_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty git configuration; its file."""
    config = claude_home.parent / "gitconfig"
    config.write_text(
        "[user]\nname = Person\nemail = person@localhost\n[init]\ndefaultBranch = main\n"
        "[protocol \"file\"]\nallow = always\n[advice]\ndetachedHead = false\n[gc]\nauto = 0\n"
    )  # fmt: skip
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(claude_home.parent))
    return config


@pytest.fixture(scope="module")
def template_repos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three repositories to copy: that is faster than creating them."""
    folder = tmp_path_factory.mktemp("beginning")
    upstream, mine, theirs = (Repo(folder / name) for name in ("upstream.git", "mine", "theirs"))
    author = ("-c", "user.name=Person", "-c", "user.email=person@localhost")
    Repo(folder).git("init", "-q", "--bare", "--template=", "-b", "main", str(upstream.folder))
    Repo(folder).git("clone", "-q", "--template=", str(upstream.folder), str(mine.folder))
    for name in ("one", "two", "three", "four"):
        mine.write(name, f"{name}\n" * 3, add=True)
    mine.git(*author, "commit", "-qm", "first")
    mine.git("push", "-q")
    Repo(folder).git("clone", "-q", "--template=", str(upstream.folder), str(theirs.folder))
    return folder


@pytest.fixture
def repos(project: Path, template_repos: Path) -> Repositories:
    shutil.copytree(template_repos, project, symlinks=True, dirs_exist_ok=True)
    upstream, mine, theirs = (Repo(project / name) for name in ("upstream.git", "mine", "theirs"))
    for repo in (mine, theirs):
        config = repo.folder / ".git" / "config"
        config.write_text(config.read_text().replace(str(template_repos), str(project)))
        (repo.folder / ".git" / "info").mkdir()
    return Repositories(project, upstream, mine, theirs)


def files(folder: Path, without: Callable[[str], bool] = lambda name: False) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of every file in the folder."""
    contents = {}
    for path in folder.rglob("*"):
        name, status = str(path.relative_to(folder)), path.lstat()
        if not without(name) and not stat.S_ISDIR(status.st_mode):
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            contents[name] = status.st_mode, status.st_mtime_ns, content
    return contents


NEW_FILES = {"objects", "FETCH_HEAD", "COMMIT_EDITMSG", "remotes", "yolo-supervisor", "yolo-supervisor.lock"}


def is_new(name: str) -> bool:
    """Whether a push may change the file: fetched objects, the message, our backup."""
    return name.startswith(".git/") and bool(NEW_FILES & {*Path(name).parts})


def copy_when_pushing(repo: Repo) -> Path:
    """Have the work tree copied after the commit and before its push; the place of the copy."""
    copy = repo.folder.with_name("snapshot")
    repo.hook("pre-push", f"test -e {shlex.quote(str(copy))} || cp -a . {shlex.quote(str(copy))}")
    return copy


def make_dirty(repo: Repo) -> None:
    """Make every kind of change in the tracked files ``one`` to ``four`` and beside them."""
    repo.write("one", "staged\n", add=True)
    repo.write("one", "staged, and changed again\n")
    repo.write("two", "changed\n")
    (repo.folder / "three").unlink()
    repo.git("mv", "four", "quatre")
    repo.write("staged", add=True)
    (repo.folder / "staged").chmod(0o755)
    for name in NAMES:
        repo.write(f"untracked/{name}")
    (repo.folder / "link").symlink_to("one")
    repo.write(".git/info/exclude", "ignored\n")
    repo.write("ignored", "secret\n")
    repo.git("stash", "store", "-m", "of before", repo.git("stash", "create"))


# -- success ---------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "argv",
    [
        [*MESSAGE], ["-am", "all"], ["--amend", "--no-edit"], ["-m", "some", "--", "two"], ["-m", "some", "two"],
        ["-F", "-"], ["-aF-"], ["--file=-"], ["-F", "four"], ["-m", "a", "-m", "b"], ["-m", "--push"],
        ["-m", "commit", "--allow-empty"], ["--author=A <a@localhost>", "-m", "x", "--date=2020-01-01T00:00:00Z"],
        ["-m", "n\u00e4me\n\nwith 'all' \"kinds\" of $things"], ["--pathspec-from-file=-", "-m", "x"],
        ["--cleanup=verbatim", "-m", "# not a comment  "], ["-C", "HEAD"], ["-qsm", "signed off"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_arguments_are_passed_to_git(repos: Repositories, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2020-01-01T00:00:00Z")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2020-01-01T00:00:00Z")
    mine, twin = repos.mine, Repo(repos.project / "twin")
    mine.write("one", "staged\n", add=True)
    mine.write("two", "changed\n")
    shutil.copytree(mine.folder, twin.folder, symlinks=True)
    plain = subprocess.run(["git", "commit", *argv], cwd=twin.folder, input="two\n", text=True, capture_output=True)

    ours = mine.run(*argv, stdin=None, input="two\n")

    assert plain.returncode == ours.returncode
    assert plain.stdout == ours.stdout
    assert twin.head == mine.head
    assert twin.status() == mine.status()


def test_output_of_git_and_hooks_is_passed_on(repos: Repositories) -> None:
    repos.mine.hook("pre-commit", "echo out; echo err >&2")
    repos.mine.write("new", add=True)

    done = repos.mine.run(*MESSAGE)

    assert done.stderr == "out\nerr\n"  # git sends both to stderr
    assert done.stdout.startswith("[main ")


def test_hooks_keep_the_users_character_encoding(repos: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    repos.mine.hook("pre-commit", "locale charmap")

    assert repos.mine.run("--allow-empty", *MESSAGE).stderr == "UTF-8\n"


def test_json_document_is_the_only_output_on_stdout(repos: Repositories) -> None:
    repos.mine.write("new", add=True)
    assert repos.mine.commit(*MESSAGE)["result"] == "committed"

    repos.mine.write("newer", add=True)
    answer = repos.mine.commit("--push", *MESSAGE)

    assert ("pushed", repos.mine.head, None) == (answer["result"], answer["commit"], answer["cause"])
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")
    assert repos.journal() == []


def test_first_commit_of_an_empty_repository(repos: Repositories) -> None:
    empty = Repo(repos.project / "empty")
    subprocess.run(["git", "init", "-q", empty.folder], check=True)
    empty.write("new", add=True)

    empty.commit(*MESSAGE)

    assert empty.subjects() == ["message"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["a sub-folder", "a link to it", "--project", "GIT_DIR", "a linked work tree"])
def test_commits_from_every_kind_of_folder(repos: Repositories, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, at, argv = repos.mine, repos.mine.folder, [*MESSAGE]
    mine.write("sub/new", add=True)
    if how == "a sub-folder":
        at = mine.folder / "sub"
    elif how == "a link to it":
        at = repos.project / "link"
        at.symlink_to(mine.folder / "sub")
    elif how == "--project":
        at, argv = repos.project, ["--project", "mine", *MESSAGE]
    elif how == "GIT_DIR":
        at = repos.project
        monkeypatch.setenv("GIT_DIR", str(mine.folder / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", str(mine.folder))
    else:
        at = repos.project / "linked"
        mine.git("worktree", "add", "-q", "-b", "other", str(at))
        mine = Repo(at)
        mine.write("sub/new", add=True)

    mine.commit(*argv, at=at)

    assert Repo(mine.folder).subjects()[0] == "message"


def test_auto_push_always_pushes_every_commit(repos: Repositories) -> None:
    config = repos.mine.folder / ".yolo-planning" / "config.json"
    config.parent.mkdir(exist_ok=True)
    for number, (text, pushed) in enumerate(
        [('{"auto_push":"never"}', False), ("[]", False), ("auto_push", False), ('{"auto_push": "always"}', True)]
    ):
        config.write_text(text)
        repos.mine.write(f"new-{number}", add=True)

        answer = repos.mine.commit(*MESSAGE)

        assert ("pushed" if pushed else "committed") == answer["result"]
        assert pushed == (repos.mine.head == repos.upstream.git("rev-parse", "main"))


def test_closed_stdout_does_not_stop_a_commit(repos: Repositories) -> None:
    repos.mine.write("new", add=True)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = repos.mine.run(*MESSAGE, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)

    assert "Traceback" not in done.stderr
    assert repos.mine.subjects()[0] == "message"


def test_background_process_of_a_hook_is_neither_awaited_nor_ended(repos: Repositories) -> None:
    pid = repos.project / "pid"
    repos.mine.hook("post-commit", f"sleep 600 & echo $! > {pid}")
    repos.mine.write("new", add=True)
    try:
        assert repos.mine.commit("--timeout", "60", *MESSAGE)["result"] == "committed"
    finally:
        server = psutil.Process(int(pid.read_text())) if psutil.pid_exists(int(pid.read_text())) else None
        if server is not None and server.name() == "sleep":
            server.kill()
    assert server is not None, "the server was ended"


# -- git fails -------------------------------------------------------------------------------------------------------


def in_conflict(repo: Repo, how: str) -> None:
    """Start a merge, a rebase, ..., that stops at a conflict in ``one``."""
    repo.git("switch", "-qc", "other")
    repo.put("one", "other\n")
    repo.git("switch", "-q", "main")
    repo.put("one", "main\n")
    done = subprocess.run(["git", *how.split(), "other"], cwd=repo.folder, capture_output=True, check=False)
    assert done.returncode != 0


def no_identity(repo: Repo) -> None:
    Path(os.environ["GIT_CONFIG_GLOBAL"]).write_text("[user]\nuseConfigOnly = true\n")


def no_signature(repo: Repo) -> None:
    repo.git("config", "commit.gpgSign", "true")
    repo.git("config", "gpg.program", "false")


def bad_index(repo: Repo) -> None:
    (repo.folder / ".git" / "index").write_bytes(b"garbage" * 100)


def bad_object(repo: Repo) -> None:
    tree = repo.git("rev-parse", "HEAD")
    path = repo.folder / ".git" / "objects" / tree[:2] / tree[2:]
    path.chmod(0o644)
    path.write_bytes(b"")


def template(repo: Repo) -> None:
    repo.write("template", "what, and why?\n")
    repo.git("config", "commit.template", "template")


@dataclass
class Refusal:
    """A case in which git refuses a commit."""

    cause: str
    prepare: Callable[[Repo], object] = lambda repo: None
    argv: Sequence[str] = MESSAGE
    code: int = 1
    is_escalated: bool = True
    staged: bool = True


REFUSALS = {
    "nothing": Refusal("nothing to commit", is_escalated=False, staged=False),
    "nothing staged": Refusal("nothing to commit", lambda r: r.write("one"), is_escalated=False, staged=False),
    "only untracked files": Refusal("nothing to commit", lambda r: r.write("new"), is_escalated=False, staged=False),
    "no message": Refusal("no message", argv=["-m", ""], is_escalated=False),
    "no message at all": Refusal("no message", argv=[], is_escalated=False),
    "an unchanged template": Refusal("no message", template, argv=[], is_escalated=False),
    "an unknown option": Refusal("usage", argv=["--no-such-option"], is_escalated=False, code=2),
    "a path that is not there": Refusal("usage", argv=[*MESSAGE, "--", "no-such-file"], is_escalated=False, code=2),
    "a hook": Refusal("hook", lambda r: r.hook("pre-commit", "echo 'no tests' >&2; exit 1"), is_escalated=False),
    "a hook on the message": Refusal("hook", lambda r: r.hook("commit-msg", "exit 1"), is_escalated=False),
    "a hook with another exit code": Refusal("hook", lambda r: r.hook("pre-commit", "exit 130"), is_escalated=False),
    "merging": Refusal("unmerged", functools.partial(in_conflict, how="merge")),
    "rebasing": Refusal("unmerged", functools.partial(in_conflict, how="rebase")),
    "picking": Refusal("unmerged", functools.partial(in_conflict, how="cherry-pick")),
    "squashing": Refusal("unmerged", functools.partial(in_conflict, how="merge --squash")),
    "no identity": Refusal("no identity", no_identity),
    "no signature": Refusal("signing", no_signature),
    "a corrupt index": Refusal("corrupt", bad_index),
    "a corrupt object": Refusal("corrupt", bad_object),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", REFUSALS)
def test_failure_of_git_is_reported_with_its_cause(repos: Repositories, how: str) -> None:
    refusal, mine = REFUSALS[how], repos.mine
    if refusal.staged:
        mine.write("new", add=True)
        mine.git("reset", "-q") if "ing" in how[-3:] else None
    refusal.prepare(mine)
    if refusal.staged and not (mine.folder / ".git" / "index").read_bytes().startswith(b"garbage"):
        mine.write("new", add=True)
    before = (mine.folder / ".git" / "logs" / "HEAD").read_bytes()

    answer = mine.commit(*refusal.argv, code=refusal.code)

    assert ("failed", refusal.cause) == (answer["result"], answer["cause"])
    assert len(answer["message"].splitlines()) == 1
    assert answer["message"].startswith(f"nothing was committed: {refusal.cause}")
    assert before == (mine.folder / ".git" / "logs" / "HEAD").read_bytes()
    assert ([("escalated", refusal.cause)] if refusal.is_escalated else []) == [
        (entry["action"], entry["evidence"]["cause"]) for entry in repos.journal()
    ]


def test_failure_prints_gits_output_and_one_sentence(repos: Repositories) -> None:
    done = repos.mine.run(*MESSAGE)

    assert done.returncode == 1
    assert "nothing to commit, working tree clean\n" in done.stdout
    assert done.stderr == (
        "yolo-supervisor: nothing was committed: nothing to commit: nothing is staged: git add the changes to commit\n"
    )


@pytest.mark.parametrize("how", ["merge", "cherry-pick"])
def test_partial_commit_during_a_merge_is_refused(repos: Repositories, how: str) -> None:
    in_conflict(repos.mine, how)
    repos.mine.write("one", "both\n", add=True)

    answer = repos.mine.commit(*MESSAGE, "--", "one", code=1)

    assert answer["cause"] == "in progress"


def test_resolved_merge_is_concluded(repos: Repositories) -> None:
    in_conflict(repos.mine, "merge")
    repos.mine.write("one", "both\n", add=True)

    repos.mine.commit(*MESSAGE)

    assert len(repos.mine.git("rev-list", "--parents", "-1", "HEAD").split()) == 3


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "argv", ["error: config.yaml does not exist", "No space left on device", "fatal: bad object", "HTTP 500",
              "index.lock': File exists", "[rejected]", "is corrupt"],
)  # fmt: skip
def test_output_of_a_hook_is_not_taken_for_gits(repos: Repositories, argv: str) -> None:
    repos.mine.hook("pre-commit", f"echo {shlex.quote(argv)} >&2; exit 1")
    repos.mine.write("new", add=True)

    answer = repos.mine.commit(*MESSAGE, code=1)

    assert answer["cause"] == "hook"
    assert "the commit is made" not in answer["message"]


@pytest.mark.parametrize("how", ["no repository", "bare"])
def test_commit_without_a_work_tree_fails(repos: Repositories, how: str) -> None:
    at = repos.upstream.folder if how == "bare" else repos.project

    answer = repos.mine.commit(*MESSAGE, code=1, at=at)

    assert answer["cause"] == "no repository"
    assert repos.journal() == []


def test_commit_without_git_exits_with_69(repos: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repos.project))

    assert repos.mine.commit(*MESSAGE, code=69)["cause"] == "no git"


def test_commit_from_a_deleted_folder_fails_without_traceback(repos: Repositories, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"cd {gone} && rmdir {gone} && exec {shlex.join([*PROGRAM, 'commit', *MESSAGE])}"

    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "argv", [["--timeout", "0"], ["--timeout=nan"], ["--timeout", "x"], ["--project=nowhere"], ["--project="]]
)
def test_wrong_option_is_reported_and_nothing_is_committed(repos: Repositories, argv: list[str]) -> None:
    repos.mine.write("new", add=True)

    done = repos.mine.run(*argv, *MESSAGE)

    assert done.returncode in (1, 2)
    assert done.stderr != ""
    assert repos.mine.subjects() == ["first"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "script", ["exec sleep 600", "exec yes", "trap '' TERM; sleep 600 & wait; wait"], ids=["silent", "chatty", "deaf"]
)
def test_hanging_hook_is_ended_at_the_time_limit(
    repos: Repositories, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = repos.mine.hook("pre-commit", script)
    repos.mine.write("new", add=True)
    program = (*HASTY[:2], "import yolo_supervisor.system.subprocesses as c\nc.GRACE_S = 0.3\n" + HASTY[2])

    assert repos.mine.commit("--timeout", "1", *MESSAGE, code=1, program=program)["cause"] == "timed out"

    hook.unlink()
    repos.mine.commit(*MESSAGE)
    assert repos.mine.subjects() == ["message", "first"]


def test_hanging_post_commit_hook_does_not_hide_the_commit(repos: Repositories) -> None:
    repos.mine.hook("post-commit", "exec sleep 600")
    repos.mine.write("new", add=True)

    answer = repos.mine.commit("--timeout", "4", *MESSAGE, code=1)

    assert repos.mine.subjects() == ["message", "first"]
    assert "nothing was committed" not in answer["message"]


def test_file_size_limit_is_reported_as_no_room(repos: Repositories) -> None:
    for number in range(100):
        repos.mine.write(f"new-{number}")
    repos.mine.git("add", "--all")

    answer = repos.mine.commit(
        *MESSAGE, code=1, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    )

    assert answer["cause"] == "no room"
    (repos.mine.folder / ".git" / "index.lock").unlink(missing_ok=True)  # of the git that the limit has killed
    repos.mine.commit(*MESSAGE, program=PATIENT)
    assert repos.mine.subjects() == ["message", "first"]


def test_full_disk_is_reported_as_no_room(repos: Repositories) -> None:
    repos.mine.write("new", add=True)
    small = repos.project / "small"
    small.mkdir()
    line = (
        f"mount -t tmpfs -o size=2m none {small} && cp -a {repos.mine.folder} {small} || exit 99\n"
        f"cd {small}/mine; dd if=/dev/zero of=filler bs=4k 2>/dev/null\n"
        f"{shlex.join([*PROGRAM, 'commit', '--json', *MESSAGE])}; code=$?\n"
        f"rm filler; git fsck >&2 && {shlex.join([*HASTY, 'commit', '-q', *MESSAGE])} >&2 || exit 98; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no file system of our own can be mounted here")

    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["cause"] == "no room"


# -- locks -----------------------------------------------------------------------------------------------------------

LOCKS = ("index.lock", "HEAD.lock", "refs/heads/main.lock")


def holds(children: Children, lock: Path) -> subprocess.Popen[bytes]:
    """A process that has made the lock, and has it open."""
    return children.python(f"lock = open({str(lock)!r}, 'x')\nprint('ready', flush=True)\nimport time\ntime.sleep(600)")


def leave_lock(repos: Repositories, children: Children, lock: Path) -> int:
    """Leave a lock whose holder was seen by a daemon, and killed. Returns the pid of the holder."""
    holder = holds(children, lock)
    found, process = lock.stat(), Processes(backend()).identify(holder.pid)
    assert process is not None
    stamp = LockStamp(found.st_dev, found.st_ino, found.st_ctime_ns)
    path = Paths(repos.project).seen_locks
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(dump_seen_locks({lock: SeenLock(stamp=stamp, holders=(process,))}))
    holder.kill()
    holder.wait()
    return holder.pid


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", LOCKS)
def test_stale_lock_is_moved_aside(repos: Repositories, children: Children, name: str) -> None:
    repos.mine.write("new", add=True)
    lock = repos.mine.folder / ".git" / name
    pid = leave_lock(repos, children, lock)

    answer = repos.mine.commit(*MESSAGE, program=PATIENT)

    assert (answer["result"], answer["rounds"]) == ("committed", 2)
    assert not lock.exists()
    (done,) = repos.journal("lease")
    assert Path(done["evidence"]["kept"]).exists()
    assert done["evidence"]["pids"] == [pid]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", LOCKS)
def test_lock_without_an_observed_holder_stays_and_is_explained(
    repos: Repositories, children: Children, name: str
) -> None:
    repos.mine.write("new", add=True)
    lock = repos.mine.write(f".git/{name}", "left")
    reader = children.start("git", "cat-file", "--batch", cwd=repos.mine.folder, stdin=subprocess.PIPE)

    answer = repos.mine.commit(*MESSAGE, program=HASTY, code=75)

    assert answer["cause"] == "locked"
    assert str(lock) in answer["blocked_by"]
    assert f"process {reader.pid} (git cat-file) only reads there" in answer["blocked_by"]
    assert answer["commands"][0].startswith(f"rm {lock} ")
    assert lock.read_text() == "left"


def test_lock_is_moved_aside_when_its_holder_is_killed_meanwhile(repos: Repositories, children: Children) -> None:
    repos.mine.write("new", add=True)
    lock = repos.mine.folder / ".git" / "index.lock"
    seen = repos.project / "seen"
    program = (*HASTY[:2], "import pathlib\nfrom yolo_supervisor.inventory import lock_holders as h\n"
               "look = h.LockHolders.look\ndef spy(*words):\n holder = look(*words)\n"
               f" pathlib.Path({str(seen)!r}).touch()\n return holder\nh.LockHolders.look = spy\n"
               + PATIENT[2])  # fmt: skip
    holder = holds(children, lock)
    ours = children.start(*program, "commit", *MESSAGE, cwd=repos.mine.folder)
    wait_until(seen.exists, "the look at the lock")
    holder.kill()
    holder.wait()

    assert ours.wait(LIMIT_S) == 0
    assert not lock.exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", LOCKS)
def test_lock_that_a_process_has_open_stays(repos: Repositories, children: Children, name: str) -> None:
    repos.mine.write("new", add=True)
    lock = repos.mine.folder / ".git" / name
    holder = holds(children, lock)

    answer = repos.mine.commit(*MESSAGE, program=HASTY, code=75)

    assert answer["cause"] == "locked"
    assert f"process {holder.pid} holds it" in answer["blocked_by"]
    assert lock.exists()
    assert repos.mine.subjects() == ["first"]


def test_lock_of_a_git_that_waits_for_its_hook_stays(repos: Repositories, children: Children) -> None:
    ready = repos.project / "ready"
    repos.mine.write("one", "by another\n")
    repos.mine.hook("pre-commit", f"test -e {ready} || {{ touch {ready}; exec sleep 600; }}")
    children.start("git", "commit", "-qam", "another", cwd=repos.mine.folder)
    wait_until(ready.exists, "the hook")

    repos.mine.commit(*MESSAGE, program=HASTY, code=75)

    assert (repos.mine.folder / ".git" / "index.lock").exists()


def test_ref_lock_held_from_another_work_tree_stays(repos: Repositories, children: Children) -> None:
    ready, linked = repos.project / "ready", repos.project / "linked"
    repos.mine.git("worktree", "add", "-q", "-b", "other", str(linked))
    repos.mine.hook(
        "reference-transaction",
        f'test "$1" = prepared -a ! -e {ready} && {{ touch {ready}; exec sleep 600; }}; exit 0',
    )
    new = repos.mine.git("commit-tree", "-m", "other", "HEAD^{tree}")
    children.start("git", "update-ref", "refs/heads/main", new, cwd=linked)
    wait_until(ready.exists, "the hook")
    lock = repos.mine.folder / ".git" / "refs" / "heads" / "main.lock"
    assert lock.exists()
    repos.mine.write("new", add=True)

    repos.mine.commit(*MESSAGE, program=HASTY, code=75)

    assert lock.exists()


def test_commit_waits_until_a_lock_is_released(repos: Repositories, children: Children) -> None:
    repos.mine.write("new", add=True)
    lock = repos.mine.folder / ".git" / "index.lock"
    children.python(
        f"import os, time\nlock = open({str(lock)!r}, 'x')\nprint('ready', flush=True)\n"
        f"time.sleep(1)\nos.unlink({str(lock)!r})"
    )

    assert repos.mine.commit(*MESSAGE)["result"] == "committed"
    assert repos.journal("lease") == []


def test_index_lock_concerns_only_its_work_tree(repos: Repositories, children: Children) -> None:
    linked = Repo(repos.project / "linked")
    repos.mine.git("worktree", "add", "-q", "-b", "other", str(linked.folder))
    lock = repos.mine.folder / ".git/worktrees/linked/index.lock"
    leave_lock(repos, children, lock)
    repos.mine.write("new", add=True)
    repos.mine.commit(*MESSAGE)
    assert lock.exists()
    (linked.folder / "one").write_text("new\n")

    linked.commit("-am", "message", program=PATIENT)

    assert not lock.exists()


# -- a push fails ----------------------------------------------------------------------------------------------------


def upstream_hook(repos: Repositories) -> None:
    repos.upstream.hook("pre-receive", "echo 'no commits on Fridays'; exit 1")


def no_upstream(repos: Repositories) -> None:
    repos.mine.git("branch", "--unset-upstream")


def detached(repos: Repositories) -> None:
    repos.mine.git("checkout", "-q", "--detach")


def upstream_gone(repos: Repositories) -> None:
    repos.upstream.folder.rename(repos.project / "elsewhere")


def unreachable(repos: Repositories) -> None:
    repos.mine.git("remote", "set-url", "origin", "http://127.0.0.1:9/none")


PUSHES: dict[str, tuple[Callable[[Repositories], object], str, int]] = {
    "a rule over there": (upstream_hook, "refused", 1),
    "no upstream": (no_upstream, "no upstream", 1),
    "no branch": (detached, "detached", 1),
    "the upstream is gone": (upstream_gone, "no upstream", 1),
    "no answer": (unreachable, "unreachable", 75),
    "a hook here": (lambda repos: repos.mine.hook("pre-push", "exit 1"), "hook", 1),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", PUSHES)
def test_commit_is_kept_when_its_push_fails(repos: Repositories, how: str) -> None:
    prepare, cause, code = PUSHES[how]
    prepare(repos)
    repos.mine.write("new", add=True)

    answer = repos.mine.commit("--push", *MESSAGE, code=code)

    assert ("committed", cause, repos.mine.head) == (answer["result"], answer["cause"], answer["commit"])
    assert answer["message"].startswith(f"the commit is made, but not pushed: {cause}")
    assert len(answer["message"].splitlines()) == 1
    assert repos.mine.subjects() == ["message", "first"]
    assert [entry["action"] for entry in repos.journal()] == ["escalated"] * (cause != "hook")


# -- the upstream has moved ------------------------------------------------------------------------------------------


def assert_on_top(repos: Repositories, answer: dict[str, Any], theirs: str, ours: int = 1) -> None:
    """Assert that our commits are on top of theirs, here and upstream."""
    assert (answer["result"], answer["cause"], answer["rescue"]) == ("rebased", None, None), answer
    assert repos.mine.head == answer["commit"] == repos.upstream.git("rev-parse", "main")
    assert theirs == repos.mine.git("rev-parse", f"HEAD~{ours}")
    assert repos.mine.git("symbolic-ref", "--short", "HEAD") == "main"
    assert [entry["action"] for entry in repos.journal()] == ["rebased"]
    repos.assert_tidy()


def test_rebase_onto_the_upstream_keeps_every_uncommitted_change(repos: Repositories) -> None:
    theirs = repos.others_push()
    snapshot = copy_when_pushing(repos.mine)
    repos.mine.write("five", add=True)
    repos.mine.commit(*MESSAGE)
    make_dirty(repos.mine)
    repos.mine.write("six", add=True)

    answer = repos.mine.commit("--push", "-m", "second", "--", "six")

    assert_on_top(repos, answer, theirs, ours=2)
    before = Repo(snapshot)
    assert before.status() == repos.mine.status()
    assert before.git("stash", "list") == repos.mine.git("stash", "list")
    assert before.git("diff", "--cached", "HEAD") == repos.mine.git("diff", "--cached", "HEAD")
    ours = files(repos.mine.folder, lambda name: name.startswith(".git/") or name == "theirs")
    assert files(snapshot, lambda name: name.startswith(".git/")) == ours
    assert (repos.mine.folder / "theirs").read_text() == "theirs\n"


def test_branch_is_not_moved_over_an_uncommitted_change(repos: Repositories) -> None:
    repos.others_push("two", "theirs\n")
    snapshot = copy_when_pushing(repos.mine)
    repos.mine.write("two", "mine, not finished\n")
    repos.mine.write("five", add=True)

    answer = repos.mine.commit("--push", *MESSAGE)

    assert answer["result"] == "rebased"
    assert "your branch stays where it was" in answer["message"]
    assert files(snapshot, is_new) == files(repos.mine.folder, is_new)
    assert repos.upstream.subjects("main") == ["message", "put two", "first"]
    assert repos.mine.content("two", answer["rescue"]) == "mine, not finished"
    repos.assert_tidy()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["untracked", "ignored", "a folder with ignored files"])
def test_untracked_file_is_not_overwritten(repos: Repositories, how: str) -> None:
    mine = repos.mine
    if how == "a folder with ignored files":
        path = mine.write("theirs/secret", "mine\n")
    else:
        path = mine.write("theirs", "mine\n")
    if "ignored" in how:
        mine.write(".git/info/exclude", "theirs\nsecret\n")
    repos.others_push("theirs", "theirs\n")
    mine.write("five", add=True)

    answer = mine.commit("--push", *MESSAGE)

    assert answer["result"] == "rebased"
    assert path.read_text() == "mine\n"


def test_deleted_file_is_not_restored(repos: Repositories) -> None:
    repos.others_push("two", "theirs\n")
    (repos.mine.folder / "two").unlink()
    repos.mine.write("five", add=True)

    repos.mine.commit("--push", *MESSAGE)

    assert not (repos.mine.folder / "two").exists()
    assert repos.mine.status() == ["", " D two"]


def test_push_succeeds_after_a_refused_branch_update(repos: Repositories) -> None:
    repos.others_push("two", "theirs\n")
    repos.mine.write("two", "mine, not finished\n")
    repos.mine.write("five", "1\n2\n3\n", add=True)
    repos.mine.commit("--push", *MESSAGE)
    repos.mine.git("restore", "two")
    repos.others_push("five", "1\nb\n3\n")
    repos.mine.write("six", add=True)

    answer = repos.mine.commit("--push", "-m", "second")

    assert answer["result"] == "rebased"
    assert repos.mine.subjects() == ["second", "put five", "message", "put two", "first"]
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")


def test_rebase_drops_commits_that_are_upstream(repos: Repositories) -> None:
    repos.mine.put("five", "same\n")
    repos.others_push("five", "same\n")
    theirs = repos.others_push("six", "theirs\n")
    repos.mine.write("seven", add=True)

    answer = repos.mine.commit("--push", *MESSAGE)

    assert_on_top(repos, answer, theirs)


def test_rebase_keeps_merge_commits(repos: Repositories) -> None:
    mine = repos.mine
    mine.git("switch", "-qc", "side")
    mine.put("side", "side\n")
    mine.git("switch", "-q", "main")
    mine.put("five", "five\n")
    mine.git("merge", "-q", "--no-ff", "-m", "a merge", "side")
    side = mine.git("rev-parse", "side")
    theirs = repos.others_push()
    mine.write("six", add=True)

    answer = mine.commit("--push", *MESSAGE)

    assert_on_top(repos, answer, theirs, ours=3)
    assert mine.git("log", "--merges", "--format=%s") == "a merge"
    assert side == mine.git("rev-parse", "side")


def test_rebase_ignores_the_users_rebase_configuration(repos: Repositories, git_config: Path) -> None:
    with git_config.open("a") as config:
        config.write("[rebase]\nupdateRefs = true\nautoSquash = true\nautoStash = true\n[core]\nautocrlf = false\n")
    middle = repos.mine.put("five", "five\n")
    repos.mine.git("branch", "stacked")
    repos.mine.put("five", "five and a half\n", "fixup! put five")
    theirs = repos.others_push()
    repos.mine.write("six", add=True)

    answer = repos.mine.commit("--push", *MESSAGE)

    assert middle == repos.mine.git("rev-parse", "stacked")
    assert_on_top(repos, answer, theirs, ours=3)
    assert repos.mine.subjects()[:3] == ["message", "fixup! put five", "put five"]


def test_branch_that_pushes_elsewhere_is_not_pushed_to_its_upstream(repos: Repositories) -> None:
    repos.mine.git("config", "push.default", "current")
    repos.mine.git("switch", "-qc", "feature", "--track", "origin/main")
    repos.mine.put("five", "five\n")
    repos.mine.git("push", "-q")
    repos.theirs.git("fetch", "-q")
    repos.theirs.git("switch", "-q", "feature")
    repos.theirs.put("six", "six\n")
    repos.theirs.git("push", "-q")
    repos.mine.write("seven", add=True)

    repos.mine.run("--push", *MESSAGE)

    assert repos.upstream.subjects("main") == ["first"]


def test_rebase_keeps_names_bytes_modes_and_filters(repos: Repositories, git_config: Path) -> None:
    with git_config.open("a") as config:
        config.write('[filter "lfs"]\nclean = "sed s/^/clean:/"\nsmudge = "sed s/^clean://"\nrequired = true\n')
    mine = repos.mine
    mine.write(".gitattributes", "*.large filter=lfs\n*.crlf text eol=crlf\n*.bin binary\n", add=True)
    for name in NAMES:
        mine.write(f"names/{name}", add=True)
    mine.write("names/Case", add=True)
    mine.git("commit", "-qm", "names")
    mine.git("push", "-q")
    repos.theirs.git("pull", "-q")
    repos.theirs.write("their.large", "theirs\n")
    repos.theirs.write("their.crlf", "a\r\nb\r\n")
    (repos.theirs.folder / "their.bin").write_bytes(bytes(range(256)))
    repos.theirs.write("their n\u00e4me\nof two lines").chmod(0o755)
    repos.theirs.git("add", "--all")
    repos.theirs.git("mv", "names/Case", "names/case")
    repos.theirs.git("commit", "-qm", "of all kinds")
    theirs = repos.others_push()
    mine.write("my.large", "mine\n", add=True)
    mine.write("my.crlf", "a\r\nb\r\n", add=True)
    (mine.folder / "my.bin").write_bytes(bytes(range(255, -1, -1)))
    mine.git("add", "--all")
    mine.git("mv", "names/plain", "names/Plain")
    (mine.folder / "names" / "with space").chmod(0o755)

    answer = mine.commit("--push", "-am", "message")

    assert_on_top(repos, answer, theirs)
    assert mine.content("my.large") == "clean:mine"
    assert mine.status() == [""]
    repos.theirs.git("pull", "-q")
    assert (
        files(repos.theirs.folder, lambda n: n.startswith(".git/")).keys()
        == files(mine.folder, lambda n: n.startswith(".git/")).keys()
    )
    for name, (mode, _, content) in files(mine.folder, lambda n: n.startswith(".git/")).items():
        assert ((repos.theirs.folder / name).lstat().st_mode, content) == (
            mode, (repos.theirs.folder / name).read_bytes(),
        )  # fmt: skip


@pytest.mark.thorough
def test_rebase_of_five_thousand_files(repos: Repositories) -> None:
    for number in range(5000):
        path = repos.mine.folder / f"folder-{number % 50}" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n")
    theirs = repos.others_push()
    repos.mine.git("add", "--all")
    repos.mine.write("folder-1/1", "not finished\n")

    answer = repos.mine.commit("--push", *MESSAGE)

    assert_on_top(repos, answer, theirs)
    assert repos.mine.status() == ["", " M folder-1/1"]


def test_submodules_are_not_changed(repos: Repositories) -> None:
    library = repos.project / "library"
    subprocess.run(["git", "init", "-q", library], check=True)
    Repo(library).put("file", "1\n")
    repos.mine.git("submodule", "--quiet", "add", str(library), "library")
    repos.mine.git("commit", "-qm", "a library")
    repos.mine.git("push", "-q")
    inside = Repo(repos.mine.folder / "library")
    inside.write("file", "not finished\n")
    inside.put("more", "more\n")
    before = files(inside.folder)
    theirs = repos.others_push()
    repos.mine.write("five", add=True)

    answer = repos.mine.commit("--push", *MESSAGE)

    assert_on_top(repos, answer, theirs)
    assert before == files(inside.folder)
    assert repos.mine.status() == ["", " M library"]


def test_commit_and_push_inside_a_submodule(repos: Repositories) -> None:
    outer = Repo(repos.project / "outer")
    subprocess.run(["git", "init", "-q", outer.folder], check=True)
    outer.git("submodule", "--quiet", "add", str(repos.upstream.folder), "library")
    inside = Repo(outer.folder / "library")
    theirs = repos.others_push()
    inside.write("two", "not finished\n")
    inside.write("five", add=True)

    answer = inside.commit("--push", *MESSAGE)

    assert answer["result"] == "rebased"
    assert theirs == inside.git("rev-parse", "HEAD~1")
    assert inside.head == repos.upstream.git("rev-parse", "main")
    assert inside.status() == ["", " M two"]


@pytest.mark.parametrize("conflict", [False, True])
def test_work_tree_named_by_the_environment_is_not_rebased_in_place(
    repos: Repositories, conflict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks and managers of dot files set these variables."""
    mine = repos.mine
    mine.put("one", "mine for a while\n")
    mine.put("one", "one\n" * 3, "back again")
    theirs = repos.others_push("one" if conflict else "theirs", "theirs\n")
    snapshot = copy_when_pushing(mine)
    mine.write("five", "mine\n", add=True)
    for name, path in (("GIT_DIR", ".git"), ("GIT_WORK_TREE", ""), ("GIT_INDEX_FILE", ".git/index")):
        monkeypatch.setenv(name, str(mine.folder / path))

    done = mine.run("--json", "--push", *MESSAGE)

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    answer = json.loads(done.stdout)
    if conflict:
        assert answer["cause"] == "conflict", answer
        assert files(snapshot, is_new) == files(mine.folder, is_new)
    else:
        assert_on_top(repos, answer, theirs, ours=3)
        assert mine.status() == [""]


def test_plain_commit_during_a_push_is_not_lost(repos: Repositories) -> None:
    """Plain git does not take the commit lock."""
    repos.others_push()
    second = repos.project / "second"
    repos.mine.hook(
        "pre-push",
        f"test -e {second} || {{ touch {second}; exit 0; }}\n"
        "unset $(git rev-parse --local-env-vars); echo meanwhile > one; git commit -qm meanwhile one",
    )
    repos.mine.write("five", add=True)

    repos.mine.commit("--push", *MESSAGE)

    assert repos.mine.subjects() == ["meanwhile", "message", "first"]
    assert repos.mine.status() == [""]


def test_only_the_committed_branch_is_updated(repos: Repositories) -> None:
    repos.others_push()
    second = repos.project / "second"
    repos.mine.hook(
        "pre-push",
        f"test -e {second} || {{ touch {second}; exit 0; }}\n"
        "unset $(git rev-parse --local-env-vars); git switch -qc another",
    )
    repos.mine.write("five", add=True)

    repos.mine.commit("--push", *MESSAGE)

    assert repos.mine.subjects("another") == ["message", "first"]
    assert repos.mine.status() == [""]


def test_files_that_cannot_be_backed_up_do_not_stop_a_push(repos: Repositories) -> None:
    """Git cannot add a nested repository without a commit."""
    theirs = repos.others_push()
    subprocess.run(["git", "init", "-q", repos.mine.folder / "scratch"], check=True)
    repos.mine.write("scratch/file")
    repos.mine.write("five", add=True)

    answer = repos.mine.commit("--push", *MESSAGE)

    assert_on_top(repos, answer, theirs)


# -- conflicts -------------------------------------------------------------------------------------------------------


def test_conflict_changes_nothing_byte_for_byte(repos: Repositories) -> None:
    repos.others_push("five", "theirs\n")
    snapshot = copy_when_pushing(repos.mine)
    make_dirty(repos.mine)
    repos.mine.write("five", "mine\n", add=True)

    answer = repos.mine.commit("--push", *MESSAGE, "--", "five", code=1)

    assert (answer["result"], answer["cause"], answer["files"]) == ("committed", "conflict", ["five"])
    assert files(snapshot, is_new) == files(repos.mine.folder, is_new)
    assert repos.upstream.subjects("main") == ["put five", "first"]
    repos.assert_tidy()
    (done,) = repos.journal()
    assert ("escalated", ["five"], answer["rescue"], answer["commands"]) == (
        done["action"], done["evidence"]["files"], done["evidence"]["rescue"], done["evidence"]["commands"],
    )  # fmt: skip
    assert any(answer["rescue"] in command for command in answer["commands"])


def test_conflict_of_an_intermediate_commit_changes_nothing(repos: Repositories) -> None:
    repos.mine.put("one", "mine for a while\n")
    repos.mine.write("one", "one\n" * 3, add=True)
    repos.mine.git("commit", "-qm", "back again")
    repos.others_push("one", "theirs\n")
    snapshot = copy_when_pushing(repos.mine)
    repos.mine.write("two", "not finished\n")
    repos.mine.write("five", add=True)

    answer = repos.mine.commit("--push", *MESSAGE, code=1)

    assert (answer["cause"], answer["files"]) == ("conflict", ["one"])
    assert files(snapshot, is_new) == files(repos.mine.folder, is_new)
    repos.assert_tidy()


def test_backup_holds_index_work_tree_and_untracked_files(repos: Repositories, tmp_path: Path) -> None:
    repos.others_push("five", "theirs\n")
    make_dirty(repos.mine)
    repos.mine.write("five", "mine\n", add=True)

    answer = repos.mine.commit("--push", *MESSAGE, "--", "five", code=1)

    staged = repos.mine.git("write-tree")
    assert staged == repos.mine.git("rev-parse", f"{answer['rescue']}^2^{{tree}}")
    out = tmp_path / "rescued"
    repos.mine.git("worktree", "add", "-q", "--detach", str(out), answer["rescue"])
    rescued = {name: (mode, content) for name, (mode, _, content) in files(out).items() if name != ".git"}
    ours = files(repos.mine.folder, lambda name: name.startswith(".git/") or name == "ignored")
    assert {name: (mode, content) for name, (mode, _, content) in ours.items()} == rescued


def test_backup_can_be_applied_like_a_stash(repos: Repositories, tmp_path: Path) -> None:
    repos.others_push("five", "theirs\n")
    make_dirty(repos.mine)
    repos.mine.write("five", "mine\n", add=True)
    answer = repos.mine.commit("--push", *MESSAGE, "--", "five", code=1)
    clean = Repo(tmp_path / "clean")
    subprocess.run(["git", "clone", "-q", repos.mine.folder, clean.folder], check=True)
    clean.git("fetch", "-q", "origin", f"{answer['rescue']}:rescue")

    clean.git("stash", "apply", "-q", "rescue")

    theirs, ours = (
        {
            name: (mode, content)
            for name, (mode, _, content) in files(
                repo.folder, lambda n: n.startswith(".git/") or n == "ignored"
            ).items()
        }
        for repo in (clean, repos.mine)
    )
    assert ours == theirs


def test_printed_commands_resolve_a_conflict(repos: Repositories) -> None:
    repos.others_push("five", "theirs\n")
    repos.mine.write("two", "not finished\n")
    repos.mine.write("five", "mine\n", add=True)
    *begin, push, _ = repos.mine.commit("--push", *MESSAGE, code=1)["commands"]

    done = subprocess.run(["sh", "-c", "\n".join(begin)], capture_output=True, text=True, check=False)
    assert "CONFLICT" in done.stdout, done.stderr
    repos.mine.write("five", "both\n", add=True)
    repos.mine.git("rebase", "--continue", env={**os.environ, "GIT_EDITOR": "true"})
    repos.mine.git(*push.split()[1:])

    assert (repos.mine.folder / "two").read_text() == "not finished\n"
    assert repos.upstream.subjects("main") == ["message", "put five", "first"]


# -- concurrency -----------------------------------------------------------------------------------------------------

MANY, EACH = (8, 25) if SOAK else (4, 2)


def at_once(work: Callable[[int], object], number: int = MANY) -> None:
    with ThreadPoolExecutor(number) as threads:
        list(threads.map(work, range(number)))


def land(repo: Repo, name: str, *argv: str) -> None:
    """Add and commit a file while others do the same.

    ``git add`` does not wait for them, and a plain ``git commit -- FILES`` that has read the index before may drop what
    it added: so both are repeated as one step.
    """
    repo.write(name, f"{name}\n")

    def landed() -> bool:
        subprocess.run(["git", "add", "--", name], cwd=repo.folder, capture_output=True, check=False)
        done = repo.run("--json", *argv, "-m", name, "--", name, timeout=300)
        assert done.returncode == 0 or json.loads(done.stdout)["cause"] == "usage", done
        return done.returncode == 0

    wait_until(landed, f"{name} to land", limit_s=300)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("push", [False, True])
def test_concurrent_commits_in_one_work_tree_are_all_kept(repos: Repositories, push: bool) -> None:
    def agent(number: int) -> None:
        for turn in range(EACH):
            name = f"agent-{number}-{turn}"
            land(repos.mine, name, *["--push"] * push)

    at_once(agent)

    made = [f"agent-{number}-{turn}" for number in range(MANY) for turn in range(EACH)]
    assert sorted([*made, "first"]) == sorted(repos.mine.subjects())
    assert repos.mine.status() == [""]
    if push:
        assert repos.mine.head == repos.upstream.git("rev-parse", "main")
    for name in made:
        assert name == repos.mine.content(name)
    repos.assert_tidy()


@pytest.mark.thorough
@pytest.mark.parametrize("others", [False, True])
def test_concurrent_commits_in_linked_work_trees_are_all_kept(repos: Repositories, others: bool) -> None:
    """With ``others``, all branches are pushed to the same branch of the upstream."""
    trees = [Repo(repos.project / f"tree-{number}") for number in range(MANY)]
    for number, tree in enumerate(trees):
        repos.mine.git("worktree", "add", "-q", "-b", f"branch-{number}", str(tree.folder))
        if others:
            tree.git("branch", "-q", "--set-upstream-to", "origin/main")
    if others:
        repos.mine.git("config", "push.default", "upstream")

    def agent(number: int) -> None:
        for turn in range(EACH):
            name = f"agent-{number}-{turn}"
            land(trees[number], name, *["--push"] * others)

    at_once(agent)

    made = {f"agent-{number}-{turn}" for number in range(MANY) for turn in range(EACH)}
    if others:
        assert sorted([*made, "first"]) == sorted(repos.upstream.subjects("main"))
    else:
        assert made <= {subject for tree in trees for subject in tree.subjects()}
    assert all(tree.status() == [""] for tree in trees)


def test_symbolic_link_leads_to_the_same_commit_lock(repos: Repositories) -> None:
    repos.mine.write("sub/file")
    link = repos.project / "link"
    link.symlink_to(repos.mine.folder / "sub")
    repos.mine.hook("pre-commit", f"mkdir {repos.project}/busy && sleep 0.3 && rmdir {repos.project}/busy")
    wheres = (["--project", str(link)], ["--project", str(repos.mine.folder)])

    with ThreadPoolExecutor() as threads:
        done = list(
            threads.map(lambda where: repos.mine.run(*where, "--allow-empty", *MESSAGE, at=repos.project), wheres * 2)
        )

    assert [run.returncode for run in done] == [0, 0, 0, 0], done


INNER = f"unset $(git rev-parse --local-env-vars); {shlex.join(HASTY)} commit --json --allow-empty -m inner"


def test_hook_may_commit_in_another_repository(repos: Repositories) -> None:
    repos.mine.hook("pre-commit", f"cd {repos.theirs.folder} && {INNER}")

    repos.mine.commit("--allow-empty", *MESSAGE)

    assert repos.theirs.subjects()[0] == "inner"
    assert repos.mine.subjects()[0] == "message"


def test_pre_commit_hook_cannot_commit_in_the_same_repository(repos: Repositories) -> None:
    repos.mine.write("one")
    answer = repos.project / "answer"
    repos.mine.hook("pre-commit", f"test -e {answer} || {INNER} > {answer}")

    repos.mine.commit("-am", "message", code=1)

    assert json.loads(answer.read_text())["cause"] == "locked"
    assert repos.mine.subjects() == ["first"]


def test_hooks_that_commit_in_a_circle_do_not_deadlock(repos: Repositories) -> None:
    answer = repos.project / "answer"
    repos.mine.hook("pre-commit", f"test -e {answer} && exit 1; cd {repos.theirs.folder} && {INNER}")
    repos.theirs.hook("pre-commit", f"cd {repos.mine.folder} && {INNER} > {answer}")

    repos.mine.run("--allow-empty", *MESSAGE)

    assert json.loads(answer.read_text())["result"] != "busy"


# -- crashes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A named pipe: its end is read when every process that has it open has exited."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("when", ["pre-commit", "pre-push"])
def test_signal_ends_git_and_its_hooks(
    repos: Repositories, children: Children, fifo: Path, when: str, number: signal.Signals
) -> None:
    hook = repos.mine.hook(when, f"exec 3> {fifo}; echo ready >&3; sleep 600")
    repos.mine.write("new", add=True)
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=repos.mine.folder, stderr=subprocess.PIPE)
    with fifo.open() as pipe:
        assert pipe.readline() == "ready\n"

        child.send_signal(number)

        assert pipe.read() == ""
    assert child.wait(LIMIT_S) != 0
    assert child.stderr is not None
    with child.stderr:
        assert b"Traceback" not in child.stderr.read()
    hook.unlink()
    repos.mine.commit("--push", "--allow-empty", *MESSAGE)
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")


def killed(children: Children, repo: Repo, ready: Callable[[], object], all_of_it: bool) -> None:
    """Start a commit with a push and kill it once ``ready``, alone or with its process tree."""
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=repo.folder, stderr=subprocess.DEVNULL)
    wait_until(lambda: child.poll() is not None or ready(), "the moment")
    if child.poll() is None:
        tree = psutil.Process(child.pid).children(recursive=True) if all_of_it else []
        child.kill()
        for process in tree:
            if process.is_running():
                process.kill()
    child.wait()


@pytest.mark.thorough
@pytest.mark.parametrize("at", ["", "sub"], ids=["from its top", "from a sub-folder"])
def test_killed_branch_update_is_recovered_by_the_next_commit(
    repos: Repositories, children: Children, git_config: Path, at: str
) -> None:
    """One file is written, one half written, one missing, and the index is locked."""
    mine, ready = repos.mine, repos.project / "ready"
    mine.write(".gitattributes", "middle filter=slow\n", add=True)
    for name in ("*", "early", "middle", "sub/late"):
        mine.put(name, "first\n")
    mine.git("push", "-q")
    repos.theirs.git("pull", "-q")
    for name in ("*", "early", "middle", "sub/late"):
        repos.theirs.put(name, "theirs\n")
    theirs = repos.others_push()
    with git_config.open("a") as config:
        script = f"test $PWD != {mine.folder} -o -e {ready} || {{ touch {ready}; sleep 600; }}; cat"
        config.write(f'[filter "slow"]\nclean = cat\nsmudge = "{script}"\nrequired = true\n')
    mine.write("one", "not finished\n")
    mine.write("five", add=True)
    killed(children, Repo(mine.folder / at), ready.exists, all_of_it=True)
    assert (mine.folder / "early").read_text() == "theirs\n"
    mine.write("early", "the")
    assert (mine.folder / ".git" / "index.lock").exists()

    mine.write("six")
    mine.run("--json", "--push", "-am", "second", program=PATIENT)
    mine.run("--json", "--push", "-am", "second", program=PATIENT)

    assert theirs in mine.git("rev-list", "origin/main").splitlines()
    for name in ("*", "early", "middle", "sub/late"):
        assert mine.content(name, "origin/main") == "theirs"
    assert "not finished" in (mine.folder / "one").read_text()
    assert [line for line in mine.status() if line != "?? six"] == [""]
    assert mine.head == repos.upstream.git("rev-parse", "main")
    assert mine.subjects().count("message") == 1
    repos.assert_tidy()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("all_of_it", [False, True], ids=["alone", "with its git"])
@pytest.mark.parametrize("seed", range(15 if SOAK else 2))
def test_commit_killed_at_any_moment_is_pushed_once_when_repeated(
    repos: Repositories, children: Children, seed: int, all_of_it: bool
) -> None:
    repos.others_push()
    theirs = repos.others_push("four", "theirs\n")
    repos.mine.write("one", "staged\n", add=True)
    repos.mine.write("two", "not finished\n")
    repos.mine.write("untracked")
    repos.mine.write("five", add=True)
    repos.mine.write(".git/info/exclude", "ignored\n")
    repos.mine.write("ignored", "secret\n")
    moments = iter(range(random.Random(seed).randrange(20, 300)))

    killed(children, repos.mine, lambda: next(moments, None) is None, all_of_it)
    done = repos.mine.run("--json", "--push", *MESSAGE, program=PATIENT)

    assert theirs in repos.upstream.git("rev-list", "main").splitlines()
    assert repos.upstream.subjects("main").count("message") == 1, done
    for name, content in (("one", "staged\n"), ("two", "not finished\n"), ("untracked", "new\n"), ("five", "new\n"),
                          ("ignored", "secret\n")):  # fmt: skip
        assert content == (repos.mine.folder / name).read_text()
    assert repos.mine.run("--push", "--allow-empty", "-m", "another", program=PATIENT).returncode == 0
    assert repos.mine.head == repos.upstream.git("rev-parse", "main")
    assert repos.mine.git("diff", "origin/main", "--", "four", "theirs") == ""
    repos.assert_tidy()


def test_temporary_files_of_a_deleted_work_tree_are_removed(repos: Repositories) -> None:
    own = repos.mine.folder / ".git" / "yolo-supervisor"
    (own / "tree-1").mkdir(parents=True)
    gone = {"folder": str(repos.project / "gone"), "branch": "refs/heads/gone", "before": "x", "after": "y"}
    (own / "move-1.json").write_text(json.dumps(gone))

    repos.mine.commit("--allow-empty", *MESSAGE)

    assert list(own.iterdir()) == []


def test_commit_lock_is_released_when_its_holder_dies(repos: Repositories, children: Children, fifo: Path) -> None:
    """The hook of its git lives on."""
    hook = repos.mine.hook("pre-commit", f"exec 3> {fifo}; echo ready >&3; sleep 600")
    child = children.start(*PROGRAM, "commit", "--allow-empty", *MESSAGE, cwd=repos.mine.folder)
    with fifo.open() as pipe:
        pipe.readline()
        tree = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        hook.unlink()
        try:
            repos.mine.commit("--allow-empty", *MESSAGE)
        finally:
            for process in tree:
                if process.is_running():
                    process.kill()


# -- the command line ------------------------------------------------------------------------------------------------


def test_word_commit_in_another_command_is_ignored(repos: Repositories, project: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "exec", "--", "git", "commit", "--allow-empty", *MESSAGE],
        cwd=repos.mine.folder, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0
    assert repos.mine.subjects()[0] == "message"
