"""``commit`` is git commit: it says why it could not, puts our commits on top of others', and touches nothing else."""

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
from yolo_supervisor.commits import fast_path
from yolo_supervisor.journal import history

HURRIED = (
    sys.executable, "-c",
    "from yolo_supervisor.commits import fast_path, recovery\n"
    "from yolo_supervisor.__main__ import main\n"
    "recovery.INDEX_STALE_S, recovery.WAIT_S, fast_path.LOCK_LIMIT_S = 0.3, 1.0, 3.0\n"
    "main()",
)  # fmt: skip
"""The program, where it has no patience with locks."""

NAMES = ("plain", "with space", "new\nline", "n\u00e4me", '"quoted"', "back\\slash", " leading", "-dash", "deep/er/one")
MESSAGE = ("-m", "message")


class Repo:
    """A work tree, with plain git and with ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *words: str, **options: Any) -> str:
        """What plain git answers."""
        told = subprocess.run(
            ["git", *words], cwd=self.folder, capture_output=True, text=True, timeout=LIMIT_S, check=False, **options
        )
        assert told.returncode == 0, f"git {shlex.join(words)}: {told.stdout}{told.stderr}"
        answer: str = told.stdout
        return answer.removesuffix("\n")

    def write(self, name: str, content: str = "new\n", add: bool = False) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if add:
            self.git("add", "--", name)
        return path

    def put(self, name: str, content: str, message: str = "") -> str:
        """Commit a file by plain git; the commit."""
        self.write(name, content, add=True)
        self.git("commit", "-qm", message or f"put {name}")
        return self.head

    def hook(self, name: str, script: str) -> Path:
        """Have git call this shell script."""
        path = Path(self.git("rev-parse", "--path-format=absolute", "--git-path", f"hooks/{name}"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def run(
        self, *words: str, program: Sequence[str] = PROGRAM, at: Path | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Our ``commit``, as it is called by somebody. No mistake of anybody may end in a traceback."""
        options = {"stdin": subprocess.DEVNULL, "timeout": LIMIT_S, "capture_output": True, **options}
        told = subprocess.run([*program, "commit", *words], cwd=at or self.folder, text=True, check=False, **options)
        assert "Traceback" not in (told.stderr or ""), told.stderr
        return told

    def commit(self, *words: str, code: int = 0, **options: Any) -> Any:
        """The document that ``commit --json`` prints."""
        told = self.run("--json", *words, **options)
        assert told.returncode == code, f"{told.returncode}: {told.stdout}{told.stderr}"
        return json.loads(told.stdout)

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def subjects(self, revision: str = "HEAD") -> list[str]:
        return self.git("log", "--format=%s", revision).splitlines()

    def status(self) -> list[str]:
        told = self.git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--ignored")
        return sorted(told.split("\0"))

    def content(self, name: str, revision: str = "HEAD") -> str:
        return self.git("show", f"{revision}:{name}")


@dataclass
class World:
    """A project whose repository has an upstream, which others push to as well."""

    project: Path
    upstream: Repo
    mine: Repo
    theirs: Repo

    def others_push(self, name: str = "theirs", content: str = "theirs\n") -> str:
        """Somebody else is quicker; their commit."""
        self.theirs.git("pull", "-q", "--rebase")
        new = self.theirs.put(name, content)
        self.theirs.git("push", "-q")
        return new

    def told(self, kind: str = "commit") -> list[dict[str, Any]]:
        """What the journal tells."""
        journal = self.project / ".yolo-planning" / ".supervisor" / "journal.jsonl"
        return [each for each in (history(journal) if journal.exists() else []) if each["kind"] == kind]

    def assert_tidy(self) -> None:
        """Nothing of what was needed on the way is left."""
        assert len(self.mine.git("worktree", "list").splitlines()) == 1
        own = self.mine.folder / ".git" / "yolo-supervisor"
        assert [each.name for each in own.glob("*") if each.name.startswith(("move-", "tree-"))] == []
        assert list((self.mine.folder / ".git").rglob("*.lock*.lock")) == []
        assert [each.name for each in (self.mine.folder / ".git").glob("index?*")] == []


@pytest.fixture(scope="module", autouse=True)
def no_git_of_the_users() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("GIT_", "EMAIL")):
                patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


@pytest.fixture(autouse=True)
def own_git(claude_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Git without anything of the user's; the file of its configuration."""
    config = claude_home.parent / "gitconfig"
    config.write_text(
        "[user]\nname = Somebody\nemail = somebody@localhost\n[init]\ndefaultBranch = main\n"
        "[protocol \"file\"]\nallow = always\n[advice]\ndetachedHead = false\n[gc]\nauto = 0\n"
    )  # fmt: skip
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(claude_home.parent))
    return config


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three repositories to begin with: making them takes longer than copying them."""
    folder = tmp_path_factory.mktemp("beginning")
    upstream, mine, theirs = (Repo(folder / name) for name in ("upstream.git", "mine", "theirs"))
    author = ("-c", "user.name=Somebody", "-c", "user.email=somebody@localhost")
    Repo(folder).git("init", "-q", "--bare", "--template=", "-b", "main", str(upstream.folder))
    Repo(folder).git("clone", "-q", "--template=", str(upstream.folder), str(mine.folder))
    for name in ("one", "two", "three", "four"):
        mine.write(name, f"{name}\n" * 3, add=True)
    mine.git(*author, "commit", "-qm", "first")
    mine.git("push", "-q")
    Repo(folder).git("clone", "-q", "--template=", str(upstream.folder), str(theirs.folder))
    return folder


@pytest.fixture
def world(project: Path, beginning: Path) -> World:
    shutil.copytree(beginning, project, symlinks=True, dirs_exist_ok=True)
    upstream, mine, theirs = (Repo(project / name) for name in ("upstream.git", "mine", "theirs"))
    for repo in (mine, theirs):
        config = repo.folder / ".git" / "config"
        config.write_text(config.read_text().replace(str(beginning), str(project)))
        (repo.folder / ".git" / "info").mkdir()
    return World(project, upstream, mine, theirs)


def files(folder: Path, without: Callable[[str], bool] = lambda name: False) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of all that is in the folder."""
    found = {}
    for path in folder.rglob("*"):
        name, status = str(path.relative_to(folder)), path.lstat()
        if not without(name) and not stat.S_ISDIR(status.st_mode):
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[name] = status.st_mode, status.st_mtime_ns, content
    return found


NEWS = {"objects", "FETCH_HEAD", "COMMIT_EDITMSG", "remotes", "yolo-supervisor", "yolo-supervisor.lock"}


def is_news(name: str) -> bool:
    """What git learns of the upstream, the message's own copy, and what is added as a rescue."""
    return name.startswith(".git/") and bool(NEWS & {*Path(name).parts})


def photograph_when_pushing(repo: Repo) -> Path:
    """Where the whole repository will be copied to when the commit is made, and before it is pushed."""
    copy = repo.folder.with_name("photograph")
    repo.hook("pre-push", f"test -e {shlex.quote(str(copy))} || cp -a . {shlex.quote(str(copy))}")
    return copy


def make_dirty(repo: Repo) -> None:
    """Every kind of change, in tracked files that exist as ``one``, ``two``, ``three`` and ``four``."""
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


# -- all is well -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [*MESSAGE], ["-am", "all"], ["--amend", "--no-edit"], ["-m", "some", "--", "two"], ["-m", "some", "two"],
        ["-F", "-"], ["-aF-"], ["--file=-"], ["-F", "four"], ["-m", "a", "-m", "b"], ["-m", "--push"],
        ["-m", "commit", "--allow-empty"], ["--author=A <a@localhost>", "-m", "x", "--date=2020-01-01T00:00:00Z"],
        ["-m", "n\u00e4me\n\nwith 'all' \"kinds\" of $things"], ["--pathspec-from-file=-", "-m", "x"],
        ["--cleanup=verbatim", "-m", "# not a comment  "], ["-C", "HEAD"], ["-qsm", "signed off"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_arguments_are_gits_own(world: World, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2020-01-01T00:00:00Z")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2020-01-01T00:00:00Z")
    mine, twin = world.mine, Repo(world.project / "twin")
    mine.write("one", "staged\n", add=True)
    mine.write("two", "changed\n")
    shutil.copytree(mine.folder, twin.folder, symlinks=True)
    plain = subprocess.run(["git", "commit", *words], cwd=twin.folder, input="two\n", text=True, capture_output=True)

    ours = mine.run(*words, stdin=None, input="two\n")

    assert plain.returncode == ours.returncode
    assert plain.stdout == ours.stdout
    assert twin.head == mine.head
    assert twin.status() == mine.status()


def test_what_hooks_and_git_write_comes_through(world: World) -> None:
    world.mine.hook("pre-commit", "echo out; echo err >&2")
    world.mine.write("new", add=True)

    told = world.mine.run(*MESSAGE)

    assert told.stderr == "out\nerr\n"  # where git sends both
    assert told.stdout.startswith("[main ")


def test_hooks_have_the_users_letters(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    world.mine.hook("pre-commit", "locale charmap")

    assert world.mine.run("--allow-empty", *MESSAGE).stderr == "UTF-8\n"


def test_json_is_the_only_thing_on_stdout(world: World) -> None:
    world.mine.write("new", add=True)
    assert world.mine.commit(*MESSAGE)["result"] == "committed"

    world.mine.write("newer", add=True)
    answer = world.mine.commit("--push", *MESSAGE)

    assert ("pushed", world.mine.head, None) == (answer["result"], answer["commit"], answer["cause"])
    assert world.mine.head == world.upstream.git("rev-parse", "main")
    assert world.told() == []


def test_the_first_commit_of_an_empty_repository(world: World) -> None:
    empty = Repo(world.project / "empty")
    subprocess.run(["git", "init", "-q", empty.folder], check=True)
    empty.write("new", add=True)

    empty.commit(*MESSAGE)

    assert empty.subjects() == ["message"]


@pytest.mark.parametrize("how", ["a sub-folder", "a link to it", "--project", "GIT_DIR", "a linked work tree"])
def test_it_is_run_from(world: World, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, at, words = world.mine, world.mine.folder, [*MESSAGE]
    mine.write("sub/new", add=True)
    if how == "a sub-folder":
        at = mine.folder / "sub"
    elif how == "a link to it":
        at = world.project / "link"
        at.symlink_to(mine.folder / "sub")
    elif how == "--project":
        at, words = world.project, ["--project", "mine", *MESSAGE]
    elif how == "GIT_DIR":
        at = world.project
        monkeypatch.setenv("GIT_DIR", str(mine.folder / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", str(mine.folder))
    else:
        at = world.project / "linked"
        mine.git("worktree", "add", "-q", "-b", "other", str(at))
        mine = Repo(at)
        mine.write("sub/new", add=True)

    mine.commit(*words, at=at)

    assert Repo(mine.folder).subjects()[0] == "message"


def test_auto_push_of_the_plugin_pushes(world: World) -> None:
    config = world.mine.folder / ".yolo-planning" / "config.json"
    config.parent.mkdir(exist_ok=True)
    for number, (text, pushed) in enumerate(
        [('{"auto_push":"never"}', False), ("[]", False), ("auto_push", False), ('{"auto_push": "always"}', True)]
    ):
        config.write_text(text)
        world.mine.write(f"new-{number}", add=True)

        answer = world.mine.commit(*MESSAGE)

        assert ("pushed" if pushed else "committed") == answer["result"]
        assert pushed == (world.mine.head == world.upstream.git("rev-parse", "main"))


def test_nobody_who_listens_is_no_reason_to_fail(world: World) -> None:
    world.mine.write("new", add=True)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        told = world.mine.run(*MESSAGE, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)

    assert "Traceback" not in told.stderr
    assert world.mine.subjects()[0] == "message"


def test_a_server_that_a_hook_starts_keeps_nobody_waiting(world: World) -> None:
    pid = world.project / "pid"
    world.mine.hook("post-commit", f"sleep 600 & echo $! > {pid}")
    world.mine.write("new", add=True)
    try:
        assert world.mine.commit("--timeout", "60", *MESSAGE)["result"] == "committed"
    finally:
        server = psutil.Process(int(pid.read_text())) if psutil.pid_exists(int(pid.read_text())) else None
        if server is not None and server.name() == "sleep":
            server.kill()
    assert server is not None, "the server was ended"


# -- git says no -----------------------------------------------------------------------------------------------------


def in_conflict(repo: Repo, how: str) -> None:
    """Leave the repository in the middle of a merge, a rebase, ..., with a conflict in ``one``."""
    repo.git("switch", "-qc", "other")
    repo.put("one", "other\n")
    repo.git("switch", "-q", "main")
    repo.put("one", "main\n")
    told = subprocess.run(["git", *how.split(), "other"], cwd=repo.folder, capture_output=True, check=False)
    assert told.returncode != 0


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
class No:
    """A way in which git says no to a commit."""

    cause: str
    prepare: Callable[[Repo], object] = lambda repo: None
    words: Sequence[str] = MESSAGE
    code: int = 1
    news: bool = True
    staged: bool = True


NOES = {
    "nothing": No("nothing to commit", news=False, staged=False),
    "nothing staged": No("nothing to commit", lambda r: r.write("one"), news=False, staged=False),
    "nothing but what is untracked": No("nothing to commit", lambda r: r.write("new"), news=False, staged=False),
    "no message": No("no message", words=["-m", ""], news=False),
    "no message at all": No("no message", words=[], news=False),
    "a template that nobody fills": No("no message", template, words=[], news=False),
    "an option git has not": No("usage", words=["--no-such-option"], news=False, code=2),
    "a path that is not there": No("usage", words=[*MESSAGE, "--", "no-such-file"], news=False, code=2),
    "a hook": No("hook", lambda r: r.hook("pre-commit", "echo 'no tests' >&2; exit 1"), news=False),
    "a hook on the message": No("hook", lambda r: r.hook("commit-msg", "exit 1"), news=False),
    "a hook with another exit code": No("hook", lambda r: r.hook("pre-commit", "exit 130"), news=False),
    "merging": No("unmerged", functools.partial(in_conflict, how="merge")),
    "rebasing": No("unmerged", functools.partial(in_conflict, how="rebase")),
    "picking": No("unmerged", functools.partial(in_conflict, how="cherry-pick")),
    "squashing": No("unmerged", functools.partial(in_conflict, how="merge --squash")),
    "no identity": No("no identity", no_identity),
    "no signature": No("signing", no_signature),
    "a corrupt index": No("corrupt", bad_index),
    "a corrupt object": No("corrupt", bad_object),
}


@pytest.mark.parametrize("how", NOES)
def test_git_says_no_and_it_says_why(world: World, how: str) -> None:
    no, mine = NOES[how], world.mine
    if no.staged:
        mine.write("new", add=True)
        mine.git("reset", "-q") if "ing" in how[-3:] else None
    no.prepare(mine)
    if no.staged and not (mine.folder / ".git" / "index").read_bytes().startswith(b"garbage"):
        mine.write("new", add=True)
    before = (mine.folder / ".git" / "logs" / "HEAD").read_bytes()

    answer = mine.commit(*no.words, code=no.code)

    assert ("failed", no.cause) == (answer["result"], answer["cause"])
    assert len(answer["message"].splitlines()) == 1
    assert answer["message"].startswith(f"nothing was committed: {no.cause}")
    assert before == (mine.folder / ".git" / "logs" / "HEAD").read_bytes()
    assert ([("escalated", no.cause)] if no.news else []) == [
        (each["action"], each["evidence"]["cause"]) for each in world.told()
    ]


def test_a_person_reads_gits_words_and_one_sentence_of_ours(world: World) -> None:
    told = world.mine.run(*MESSAGE)

    assert told.returncode == 1
    assert "nothing to commit, working tree clean\n" in told.stdout
    assert told.stderr == (
        "yolo-supervisor: nothing was committed: nothing to commit: nothing is staged: git add the changes to commit\n"
    )


@pytest.mark.parametrize("how", ["merge", "cherry-pick"])
def test_a_part_of_a_merge_cannot_be_committed_though_nothing_is_unmerged(world: World, how: str) -> None:
    in_conflict(world.mine, how)
    world.mine.write("one", "both\n", add=True)

    answer = world.mine.commit(*MESSAGE, "--", "one", code=1)

    assert answer["cause"] == "in progress"


def test_a_merge_that_is_resolved_is_concluded(world: World) -> None:
    in_conflict(world.mine, "merge")
    world.mine.write("one", "both\n", add=True)

    world.mine.commit(*MESSAGE)

    assert len(world.mine.git("rev-list", "--parents", "-1", "HEAD").split()) == 3


@pytest.mark.parametrize(
    "words", ["error: config.yaml does not exist", "No space left on device", "fatal: bad object", "HTTP 500",
              "index.lock': File exists", "[rejected]", "is corrupt"],
)  # fmt: skip
def test_what_a_hook_says_is_not_taken_for_gits_words(world: World, words: str) -> None:
    world.mine.hook("pre-commit", f"echo {shlex.quote(words)} >&2; exit 1")
    world.mine.write("new", add=True)

    answer = world.mine.commit(*MESSAGE, code=1)

    assert answer["cause"] == "hook"
    assert "the commit is made" not in answer["message"]


@pytest.mark.parametrize("how", ["no repository", "bare"])
def test_there_is_no_work_tree(world: World, how: str) -> None:
    at = world.upstream.folder if how == "bare" else world.project

    answer = world.mine.commit(*MESSAGE, code=1, at=at)

    assert answer["cause"] == "no repository"
    assert world.told() == []


def test_there_is_no_git(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(world.project))

    assert world.mine.commit(*MESSAGE, code=69)["cause"] == "no git"


def test_the_folder_is_gone(world: World, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"cd {gone} && rmdir {gone} && exec {shlex.join([*PROGRAM, 'commit', *MESSAGE])}"

    told = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert told.returncode in (1, 2)
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    "words", [["--timeout", "0"], ["--timeout=nan"], ["--timeout", "x"], ["--project=nowhere"], ["--project="]]
)
def test_a_mistake_in_our_own_options_is_told_and_nothing_is_committed(world: World, words: list[str]) -> None:
    world.mine.write("new", add=True)

    told = world.mine.run(*words, *MESSAGE)

    assert told.returncode in (1, 2)
    assert told.stderr != ""
    assert world.mine.subjects() == ["first"]


@pytest.mark.parametrize(
    "script", ["exec sleep 600", "exec yes", "trap '' TERM; sleep 600 & wait; wait"], ids=["silent", "chatty", "deaf"]
)
def test_a_hook_that_hangs_is_ended(world: World, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = world.mine.hook("pre-commit", script)
    world.mine.write("new", add=True)
    program = (*HURRIED[:2], "import yolo_supervisor.system.subprocesses as c\nc.GRACE_S = 0.3\n" + HURRIED[2])

    assert world.mine.commit("--timeout", "1", *MESSAGE, code=1, program=program)["cause"] == "timed out"

    hook.unlink()
    world.mine.commit(*MESSAGE)
    assert world.mine.subjects() == ["message", "first"]


def test_it_is_not_said_that_nothing_was_committed_when_a_late_hook_hangs(world: World) -> None:
    world.mine.hook("post-commit", "exec sleep 600")
    world.mine.write("new", add=True)

    answer = world.mine.commit("--timeout", "4", *MESSAGE, code=1)

    assert world.mine.subjects() == ["message", "first"]
    assert "nothing was committed" not in answer["message"]


def test_a_limit_on_the_size_of_files_is_told_apart(world: World) -> None:
    for number in range(100):
        world.mine.write(f"new-{number}")
    world.mine.git("add", "--all")

    answer = world.mine.commit(
        *MESSAGE, code=1, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    )

    assert answer["cause"] == "no room"
    world.mine.commit(*MESSAGE, program=HURRIED)
    assert world.mine.subjects() == ["message", "first"]


def test_a_full_disk_is_told_apart(world: World) -> None:
    world.mine.write("new", add=True)
    small = world.project / "small"
    small.mkdir()
    line = (
        f"mount -t tmpfs -o size=2m none {small} && cp -a {world.mine.folder} {small} || exit 99\n"
        f"cd {small}/mine; dd if=/dev/zero of=filler bs=4k 2>/dev/null\n"
        f"{shlex.join([*PROGRAM, 'commit', '--json', *MESSAGE])}; code=$?\n"
        f"rm filler; git fsck >&2 && {shlex.join([*HURRIED, 'commit', '-q', *MESSAGE])} >&2 || exit 98; exit $code"
    )
    told = subprocess.run(["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, check=False)
    if told.returncode == 99 or "unshare failed" in told.stderr:
        pytest.skip("no file system of our own can be mounted here")

    assert told.returncode == 1, told.stderr
    assert json.loads(told.stdout)["cause"] == "no room"


# -- locks -----------------------------------------------------------------------------------------------------------

LOCKS = ("index.lock", "HEAD.lock", "refs/heads/main.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_that_nobody_holds_is_put_aside(world: World, name: str) -> None:
    world.mine.write("new", add=True)
    lock = world.mine.write(f".git/{name}", "left")

    answer = world.mine.commit(*MESSAGE, program=HURRIED)

    assert (answer["result"], answer["rounds"]) == ("committed", 2)
    assert not lock.exists()
    (told,) = world.told("lease")
    assert Path(told["evidence"]["kept"]).read_text() == "left"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_that_somebody_holds_stays(world: World, children: Children, name: str) -> None:
    world.mine.write("new", add=True)
    lock = world.mine.folder / ".git" / name
    children.python(f"lock = open({str(lock)!r}, 'x')\nprint('ready', flush=True)\nimport time\ntime.sleep(600)")

    answer = world.mine.commit(*MESSAGE, program=HURRIED, code=75)

    assert answer["cause"] == "locked"
    assert lock.exists()
    assert world.mine.subjects() == ["first"]


def test_a_lock_of_a_git_that_waits_for_its_hook_stays(world: World, children: Children) -> None:
    ready = world.project / "ready"
    world.mine.write("one", "by another\n")
    world.mine.hook("pre-commit", f"test -e {ready} || {{ touch {ready}; exec sleep 600; }}")
    children.start("git", "commit", "-qam", "another", cwd=world.mine.folder)
    wait_until(ready.exists, "the hook")

    world.mine.commit(*MESSAGE, program=HURRIED, code=75)

    assert (world.mine.folder / ".git" / "index.lock").exists()


def test_a_ref_that_git_locks_from_another_work_tree_stays_locked(world: World, children: Children) -> None:
    ready, linked = world.project / "ready", world.project / "linked"
    world.mine.git("worktree", "add", "-q", "-b", "other", str(linked))
    world.mine.hook(
        "reference-transaction",
        f'test "$1" = prepared -a ! -e {ready} && {{ touch {ready}; exec sleep 600; }}; exit 0',
    )
    new = world.mine.git("commit-tree", "-m", "other", "HEAD^{tree}")
    children.start("git", "update-ref", "refs/heads/main", new, cwd=linked)
    wait_until(ready.exists, "the hook")
    lock = world.mine.folder / ".git" / "refs" / "heads" / "main.lock"
    assert lock.exists()
    world.mine.write("new", add=True)

    world.mine.commit(*MESSAGE, program=HURRIED, code=75)

    assert lock.exists()


def test_a_lock_that_is_given_up_is_waited_for(world: World, children: Children) -> None:
    world.mine.write("new", add=True)
    lock = world.mine.folder / ".git" / "index.lock"
    children.python(
        f"import os, time\nlock = open({str(lock)!r}, 'x')\nprint('ready', flush=True)\n"
        f"time.sleep(1)\nos.unlink({str(lock)!r})"
    )

    assert world.mine.commit(*MESSAGE)["result"] == "committed"
    assert world.told("lease") == []


def test_a_lock_in_a_linked_work_tree_is_its_own(world: World) -> None:
    linked = Repo(world.project / "linked")
    world.mine.git("worktree", "add", "-q", "-b", "other", str(linked.folder))
    lock = world.mine.write(".git/worktrees/linked/index.lock", "left")
    world.mine.write("new", add=True)
    world.mine.commit(*MESSAGE)
    assert lock.exists()
    (linked.folder / "one").write_text("new\n")

    linked.commit("-am", "message", program=HURRIED)

    assert not lock.exists()


# -- pushing says no -------------------------------------------------------------------------------------------------


def upstream_hook(world: World) -> None:
    world.upstream.hook("pre-receive", "echo 'no commits on Fridays'; exit 1")


def no_upstream(world: World) -> None:
    world.mine.git("branch", "--unset-upstream")


def detached(world: World) -> None:
    world.mine.git("checkout", "-q", "--detach")


def upstream_gone(world: World) -> None:
    world.upstream.folder.rename(world.project / "elsewhere")


def unreachable(world: World) -> None:
    world.mine.git("remote", "set-url", "origin", "http://127.0.0.1:9/nobody")


PUSHES: dict[str, tuple[Callable[[World], object], str, int]] = {
    "a rule over there": (upstream_hook, "refused", 1),
    "no upstream": (no_upstream, "no upstream", 1),
    "no branch": (detached, "detached", 1),
    "the upstream is gone": (upstream_gone, "no upstream", 1),
    "nobody answers": (unreachable, "unreachable", 75),
    "a hook here": (lambda world: world.mine.hook("pre-push", "exit 1"), "hook", 1),
}


@pytest.mark.parametrize("how", PUSHES)
def test_a_commit_that_cannot_be_pushed_is_made_all_the_same(world: World, how: str) -> None:
    prepare, cause, code = PUSHES[how]
    prepare(world)
    world.mine.write("new", add=True)

    answer = world.mine.commit("--push", *MESSAGE, code=code)

    assert ("committed", cause, world.mine.head) == (answer["result"], answer["cause"], answer["commit"])
    assert answer["message"].startswith(f"the commit is made, but not pushed: {cause}")
    assert len(answer["message"].splitlines()) == 1
    assert world.mine.subjects() == ["message", "first"]
    assert [each["action"] for each in world.told()] == ["escalated"] * (cause != "hook")


# -- others were quicker ---------------------------------------------------------------------------------------------


def assert_on_top(world: World, answer: dict[str, Any], theirs: str, ours: int = 1) -> None:
    """Our commits are on top of theirs, here and there."""
    assert (answer["result"], answer["cause"], answer["rescue"]) == ("rebased", None, None), answer
    assert world.mine.head == answer["commit"] == world.upstream.git("rev-parse", "main")
    assert theirs == world.mine.git("rev-parse", f"HEAD~{ours}")
    assert world.mine.git("symbolic-ref", "--short", "HEAD") == "main"
    assert [each["action"] for each in world.told()] == ["rebased"]
    world.assert_tidy()


def test_our_commits_are_put_on_top_of_theirs_and_no_change_is_touched(world: World) -> None:
    theirs = world.others_push()
    photograph = photograph_when_pushing(world.mine)
    world.mine.write("five", add=True)
    world.mine.commit(*MESSAGE)
    make_dirty(world.mine)
    world.mine.write("six", add=True)

    answer = world.mine.commit("--push", "-m", "second", "--", "six")

    assert_on_top(world, answer, theirs, ours=2)
    before = Repo(photograph)
    assert before.status() == world.mine.status()
    assert before.git("stash", "list") == world.mine.git("stash", "list")
    assert before.git("diff", "--cached", "HEAD") == world.mine.git("diff", "--cached", "HEAD")
    ours = files(world.mine.folder, lambda name: name.startswith(".git/") or name == "theirs")
    assert files(photograph, lambda name: name.startswith(".git/")) == ours
    assert (world.mine.folder / "theirs").read_text() == "theirs\n"


def test_a_change_of_the_users_that_is_in_the_way_stays_and_so_does_the_branch(world: World) -> None:
    world.others_push("two", "theirs\n")
    photograph = photograph_when_pushing(world.mine)
    world.mine.write("two", "mine, not finished\n")
    world.mine.write("five", add=True)

    answer = world.mine.commit("--push", *MESSAGE)

    assert answer["result"] == "rebased"
    assert "your branch stays where it was" in answer["message"]
    assert files(photograph, is_news) == files(world.mine.folder, is_news)
    assert world.upstream.subjects("main") == ["message", "put two", "first"]
    assert world.mine.content("two", answer["rescue"]) == "mine, not finished"
    world.assert_tidy()


@pytest.mark.parametrize("how", ["untracked", "ignored", "a folder with ignored files"])
def test_a_file_that_git_does_not_know_is_not_replaced_by_theirs(world: World, how: str) -> None:
    mine = world.mine
    if how == "a folder with ignored files":
        path = mine.write("theirs/secret", "mine\n")
    else:
        path = mine.write("theirs", "mine\n")
    if "ignored" in how:
        mine.write(".git/info/exclude", "theirs\nsecret\n")
    world.others_push("theirs", "theirs\n")
    mine.write("five", add=True)

    answer = mine.commit("--push", *MESSAGE)

    assert answer["result"] == "rebased"
    assert path.read_text() == "mine\n"


def test_a_file_that_the_user_has_deleted_does_not_come_back(world: World) -> None:
    world.others_push("two", "theirs\n")
    (world.mine.folder / "two").unlink()
    world.mine.write("five", add=True)

    world.mine.commit("--push", *MESSAGE)

    assert not (world.mine.folder / "two").exists()
    assert world.mine.status() == ["", " D two"]


def test_after_a_move_that_was_refused_the_next_one_finds_its_way(world: World) -> None:
    world.others_push("two", "theirs\n")
    world.mine.write("two", "mine, not finished\n")
    world.mine.write("five", "1\n2\n3\n", add=True)
    world.mine.commit("--push", *MESSAGE)
    world.mine.git("restore", "two")
    world.others_push("five", "1\nb\n3\n")
    world.mine.write("six", add=True)

    answer = world.mine.commit("--push", "-m", "second")

    assert answer["result"] == "rebased"
    assert world.mine.subjects() == ["second", "put five", "message", "put two", "first"]
    assert world.mine.head == world.upstream.git("rev-parse", "main")


def test_a_commit_that_the_upstream_has_already_is_made_no_second_time(world: World) -> None:
    world.mine.put("five", "same\n")
    world.others_push("five", "same\n")
    theirs = world.others_push("six", "theirs\n")
    world.mine.write("seven", add=True)

    answer = world.mine.commit("--push", *MESSAGE)

    assert_on_top(world, answer, theirs)


def test_merges_of_ours_stay_merges(world: World) -> None:
    mine = world.mine
    mine.git("switch", "-qc", "side")
    mine.put("side", "side\n")
    mine.git("switch", "-q", "main")
    mine.put("five", "five\n")
    mine.git("merge", "-q", "--no-ff", "-m", "a merge", "side")
    side = mine.git("rev-parse", "side")
    theirs = world.others_push()
    mine.write("six", add=True)

    answer = mine.commit("--push", *MESSAGE)

    assert_on_top(world, answer, theirs, ours=3)
    assert mine.git("log", "--merges", "--format=%s") == "a merge"
    assert side == mine.git("rev-parse", "side")


def test_what_is_configured_for_rebases_by_hand_moves_no_other_branch(world: World, own_git: Path) -> None:
    with own_git.open("a") as config:
        config.write("[rebase]\nupdateRefs = true\nautoSquash = true\nautoStash = true\n[core]\nautocrlf = false\n")
    middle = world.mine.put("five", "five\n")
    world.mine.git("branch", "stacked")
    world.mine.put("five", "five and a half\n", "fixup! put five")
    theirs = world.others_push()
    world.mine.write("six", add=True)

    answer = world.mine.commit("--push", *MESSAGE)

    assert middle == world.mine.git("rev-parse", "stacked")
    assert_on_top(world, answer, theirs, ours=3)
    assert world.mine.subjects()[:3] == ["message", "fixup! put five", "put five"]


def test_a_branch_that_is_pushed_elsewhere_never_lands_on_its_upstream(world: World) -> None:
    world.mine.git("config", "push.default", "current")
    world.mine.git("switch", "-qc", "feature", "--track", "origin/main")
    world.mine.put("five", "five\n")
    world.mine.git("push", "-q")
    world.theirs.git("fetch", "-q")
    world.theirs.git("switch", "-q", "feature")
    world.theirs.put("six", "six\n")
    world.theirs.git("push", "-q")
    world.mine.write("seven", add=True)

    world.mine.run("--push", *MESSAGE)

    assert world.upstream.subjects("main") == ["first"]


def test_names_bytes_modes_and_filters_are_as_git_makes_them(world: World, own_git: Path) -> None:
    with own_git.open("a") as config:
        config.write('[filter "lfs"]\nclean = "sed s/^/clean:/"\nsmudge = "sed s/^clean://"\nrequired = true\n')
    mine = world.mine
    mine.write(".gitattributes", "*.large filter=lfs\n*.crlf text eol=crlf\n*.bin binary\n", add=True)
    for name in NAMES:
        mine.write(f"names/{name}", add=True)
    mine.write("names/Case", add=True)
    mine.git("commit", "-qm", "names")
    mine.git("push", "-q")
    world.theirs.git("pull", "-q")
    world.theirs.write("their.large", "theirs\n")
    world.theirs.write("their.crlf", "a\r\nb\r\n")
    (world.theirs.folder / "their.bin").write_bytes(bytes(range(256)))
    world.theirs.write("their n\u00e4me\nof two lines").chmod(0o755)
    world.theirs.git("add", "--all")
    world.theirs.git("mv", "names/Case", "names/case")
    world.theirs.git("commit", "-qm", "of all kinds")
    theirs = world.others_push()
    mine.write("my.large", "mine\n", add=True)
    mine.write("my.crlf", "a\r\nb\r\n", add=True)
    (mine.folder / "my.bin").write_bytes(bytes(range(255, -1, -1)))
    mine.git("add", "--all")
    mine.git("mv", "names/plain", "names/Plain")
    (mine.folder / "names" / "with space").chmod(0o755)

    answer = mine.commit("--push", "-am", "message")

    assert_on_top(world, answer, theirs)
    assert mine.content("my.large") == "clean:mine"
    assert mine.status() == [""]
    world.theirs.git("pull", "-q")
    assert (
        files(world.theirs.folder, lambda n: n.startswith(".git/")).keys()
        == files(mine.folder, lambda n: n.startswith(".git/")).keys()
    )
    for name, (mode, _, content) in files(mine.folder, lambda n: n.startswith(".git/")).items():
        assert ((world.theirs.folder / name).lstat().st_mode, content) == (
            mode, (world.theirs.folder / name).read_bytes(),
        )  # fmt: skip


def test_five_thousand_files(world: World) -> None:
    for number in range(5000):
        path = world.mine.folder / f"folder-{number % 50}" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n")
    theirs = world.others_push()
    world.mine.git("add", "--all")
    world.mine.write("folder-1/1", "not finished\n")

    answer = world.mine.commit("--push", *MESSAGE)

    assert_on_top(world, answer, theirs)
    assert world.mine.status() == ["", " M folder-1/1"]


def test_submodules_stay_as_they_are(world: World) -> None:
    library = world.project / "library"
    subprocess.run(["git", "init", "-q", library], check=True)
    Repo(library).put("file", "1\n")
    world.mine.git("submodule", "--quiet", "add", str(library), "library")
    world.mine.git("commit", "-qm", "a library")
    world.mine.git("push", "-q")
    inside = Repo(world.mine.folder / "library")
    inside.write("file", "not finished\n")
    inside.put("more", "more\n")
    before = files(inside.folder)
    theirs = world.others_push()
    world.mine.write("five", add=True)

    answer = world.mine.commit("--push", *MESSAGE)

    assert_on_top(world, answer, theirs)
    assert before == files(inside.folder)
    assert world.mine.status() == ["", " M library"]


def test_a_submodule_is_a_repository_like_any_other(world: World) -> None:
    outer = Repo(world.project / "outer")
    subprocess.run(["git", "init", "-q", outer.folder], check=True)
    outer.git("submodule", "--quiet", "add", str(world.upstream.folder), "library")
    inside = Repo(outer.folder / "library")
    theirs = world.others_push()
    inside.write("two", "not finished\n")
    inside.write("five", add=True)

    answer = inside.commit("--push", *MESSAGE)

    assert answer["result"] == "rebased"
    assert theirs == inside.git("rev-parse", "HEAD~1")
    assert inside.head == world.upstream.git("rev-parse", "main")
    assert inside.status() == ["", " M two"]


@pytest.mark.parametrize("conflict", [False, True])
def test_a_work_tree_named_by_the_environment_is_not_rebased_itself(
    world: World, conflict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is in hooks, and with managers of dot files."""
    mine = world.mine
    mine.put("one", "mine for a while\n")
    mine.put("one", "one\n" * 3, "back again")
    theirs = world.others_push("one" if conflict else "theirs", "theirs\n")
    photograph = photograph_when_pushing(mine)
    mine.write("five", "mine\n", add=True)
    for name, path in (("GIT_DIR", ".git"), ("GIT_WORK_TREE", ""), ("GIT_INDEX_FILE", ".git/index")):
        monkeypatch.setenv(name, str(mine.folder / path))

    told = mine.run("--json", "--push", *MESSAGE)

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    answer = json.loads(told.stdout)
    if conflict:
        assert answer["cause"] == "conflict", answer
        assert files(photograph, is_news) == files(mine.folder, is_news)
    else:
        assert_on_top(world, answer, theirs, ours=3)
        assert mine.status() == [""]


def test_whoever_commits_or_switches_meanwhile_loses_nothing(world: World) -> None:
    """Plain git waits for no turn of ours."""
    world.others_push()
    second = world.project / "second"
    world.mine.hook(
        "pre-push",
        f"test -e {second} || {{ touch {second}; exit 0; }}\n"
        "unset $(git rev-parse --local-env-vars); echo meanwhile > one; git commit -qm meanwhile one",
    )
    world.mine.write("five", add=True)

    world.mine.commit("--push", *MESSAGE)

    assert world.mine.subjects() == ["meanwhile", "message", "first"]
    assert world.mine.status() == [""]


def test_only_the_branch_that_was_committed_on_is_moved(world: World) -> None:
    world.others_push()
    second = world.project / "second"
    world.mine.hook(
        "pre-push",
        f"test -e {second} || {{ touch {second}; exit 0; }}\n"
        "unset $(git rev-parse --local-env-vars); git switch -qc another",
    )
    world.mine.write("five", add=True)

    world.mine.commit("--push", *MESSAGE)

    assert world.mine.subjects("another") == ["message", "first"]
    assert world.mine.status() == [""]


def test_files_that_cannot_be_kept_do_not_stop_a_push(world: World) -> None:
    """A repository without a commit, in the middle of ours: git cannot add it."""
    theirs = world.others_push()
    subprocess.run(["git", "init", "-q", world.mine.folder / "scratch"], check=True)
    world.mine.write("scratch/file")
    world.mine.write("five", add=True)

    answer = world.mine.commit("--push", *MESSAGE)

    assert_on_top(world, answer, theirs)


# -- conflicts -------------------------------------------------------------------------------------------------------


def test_on_a_conflict_everything_is_as_it_was_byte_for_byte(world: World) -> None:
    world.others_push("five", "theirs\n")
    photograph = photograph_when_pushing(world.mine)
    make_dirty(world.mine)
    world.mine.write("five", "mine\n", add=True)

    answer = world.mine.commit("--push", *MESSAGE, "--", "five", code=1)

    assert (answer["result"], answer["cause"], answer["files"]) == ("committed", "conflict", ["five"])
    assert files(photograph, is_news) == files(world.mine.folder, is_news)
    assert world.upstream.subjects("main") == ["put five", "first"]
    world.assert_tidy()
    (told,) = world.told()
    assert ("escalated", ["five"], answer["rescue"], answer["commands"]) == (
        told["action"], told["evidence"]["files"], told["evidence"]["rescue"], told["evidence"]["commands"],
    )  # fmt: skip
    assert any(answer["rescue"] in command for command in answer["commands"])


def test_a_conflict_of_a_step_that_the_ends_do_not_show_changes_nothing_either(world: World) -> None:
    world.mine.put("one", "mine for a while\n")
    world.mine.write("one", "one\n" * 3, add=True)
    world.mine.git("commit", "-qm", "back again")
    world.others_push("one", "theirs\n")
    photograph = photograph_when_pushing(world.mine)
    world.mine.write("two", "not finished\n")
    world.mine.write("five", add=True)

    answer = world.mine.commit("--push", *MESSAGE, code=1)

    assert (answer["cause"], answer["files"]) == ("conflict", ["one"])
    assert files(photograph, is_news) == files(world.mine.folder, is_news)
    world.assert_tidy()


def test_the_rescue_holds_index_work_tree_and_untracked_files(world: World, tmp_path: Path) -> None:
    world.others_push("five", "theirs\n")
    make_dirty(world.mine)
    world.mine.write("five", "mine\n", add=True)

    answer = world.mine.commit("--push", *MESSAGE, "--", "five", code=1)

    staged = world.mine.git("write-tree")
    assert staged == world.mine.git("rev-parse", f"{answer['rescue']}^2^{{tree}}")
    out = tmp_path / "rescued"
    world.mine.git("worktree", "add", "-q", "--detach", str(out), answer["rescue"])
    rescued = {name: (mode, content) for name, (mode, _, content) in files(out).items() if name != ".git"}
    ours = files(world.mine.folder, lambda name: name.startswith(".git/") or name == "ignored")
    assert {name: (mode, content) for name, (mode, _, content) in ours.items()} == rescued


def test_the_rescue_can_be_applied_like_a_stash_in_a_clean_clone(world: World, tmp_path: Path) -> None:
    world.others_push("five", "theirs\n")
    make_dirty(world.mine)
    world.mine.write("five", "mine\n", add=True)
    answer = world.mine.commit("--push", *MESSAGE, "--", "five", code=1)
    clean = Repo(tmp_path / "clean")
    subprocess.run(["git", "clone", "-q", world.mine.folder, clean.folder], check=True)
    clean.git("fetch", "-q", "origin", f"{answer['rescue']}:rescue")

    clean.git("stash", "apply", "-q", "rescue")

    theirs, ours = (
        {
            name: (mode, content)
            for name, (mode, _, content) in files(
                repo.folder, lambda n: n.startswith(".git/") or n == "ignored"
            ).items()
        }
        for repo in (clean, world.mine)
    )
    assert ours == theirs


def test_a_conflict_is_solved_by_the_commands_it_tells(world: World) -> None:
    world.others_push("five", "theirs\n")
    world.mine.write("two", "not finished\n")
    world.mine.write("five", "mine\n", add=True)
    *begin, push, _ = world.mine.commit("--push", *MESSAGE, code=1)["commands"]

    told = subprocess.run(["sh", "-c", "\n".join(begin)], capture_output=True, text=True, check=False)
    assert "CONFLICT" in told.stdout, told.stderr
    world.mine.write("five", "both\n", add=True)
    world.mine.git("rebase", "--continue", env={**os.environ, "GIT_EDITOR": "true"})
    world.mine.git(*push.split()[1:])

    assert (world.mine.folder / "two").read_text() == "not finished\n"
    assert world.upstream.subjects("main") == ["message", "put five", "first"]


# -- many at once ----------------------------------------------------------------------------------------------------

MANY, EACH = (8, 25) if SOAK else (4, 2)


def at_once(deed: Callable[[int], object], number: int = MANY) -> None:
    with ThreadPoolExecutor(number) as threads:
        list(threads.map(deed, range(number)))


def land(repo: Repo, name: str, *words: str) -> None:
    """Add and commit a file, among others that do. ``git add`` does not wait for them; and what it has added is
    forgotten at times by a plain ``git commit -- FILES`` that has read the index before: so they are one step."""
    repo.write(name, f"{name}\n")

    def landed() -> bool:
        subprocess.run(["git", "add", "--", name], cwd=repo.folder, capture_output=True, check=False)
        told = repo.run("--json", *words, "-m", name, "--", name, timeout=300)
        assert told.returncode == 0 or json.loads(told.stdout)["cause"] == "usage", told
        return told.returncode == 0

    wait_until(landed, f"{name} to land", limit_s=300)


@pytest.mark.parametrize("push", [False, True])
def test_many_commit_in_one_work_tree_and_none_is_lost(world: World, push: bool) -> None:
    def agent(number: int) -> None:
        for turn in range(EACH):
            name = f"agent-{number}-{turn}"
            land(world.mine, name, *["--push"] * push)

    at_once(agent)

    made = [f"agent-{number}-{turn}" for number in range(MANY) for turn in range(EACH)]
    assert sorted([*made, "first"]) == sorted(world.mine.subjects())
    assert world.mine.status() == [""]
    if push:
        assert world.mine.head == world.upstream.git("rev-parse", "main")
    for name in made:
        assert name == world.mine.content(name)
    world.assert_tidy()


@pytest.mark.parametrize("others", [False, True])
def test_many_commit_in_work_trees_of_one_repository_and_none_is_lost(world: World, others: bool) -> None:
    """With ``others``, all their branches are pushed to the same one over there."""
    trees = [Repo(world.project / f"tree-{number}") for number in range(MANY)]
    for number, tree in enumerate(trees):
        world.mine.git("worktree", "add", "-q", "-b", f"branch-{number}", str(tree.folder))
        if others:
            tree.git("branch", "-q", "--set-upstream-to", "origin/main")
    if others:
        world.mine.git("config", "push.default", "upstream")

    def agent(number: int) -> None:
        for turn in range(EACH):
            name = f"agent-{number}-{turn}"
            land(trees[number], name, *["--push"] * others)

    at_once(agent)

    made = {f"agent-{number}-{turn}" for number in range(MANY) for turn in range(EACH)}
    if others:
        assert sorted([*made, "first"]) == sorted(world.upstream.subjects("main"))
    else:
        assert made <= {subject for tree in trees for subject in tree.subjects()}
    assert all(tree.status() == [""] for tree in trees)


def test_whoever_comes_by_a_link_waits_for_the_same_turn(world: World) -> None:
    world.mine.write("sub/file")
    link = world.project / "link"
    link.symlink_to(world.mine.folder / "sub")
    world.mine.hook("pre-commit", f"mkdir {world.project}/busy && sleep 0.3 && rmdir {world.project}/busy")
    wheres = (["--project", str(link)], ["--project", str(world.mine.folder)])

    with ThreadPoolExecutor() as threads:
        told = list(
            threads.map(lambda where: world.mine.run(*where, "--allow-empty", *MESSAGE, at=world.project), wheres * 2)
        )

    assert [each.returncode for each in told] == [0, 0, 0, 0], told


INNER = f"unset $(git rev-parse --local-env-vars); {shlex.join(HURRIED)} commit --json --allow-empty -m inner"


def test_a_hook_may_commit_in_another_repository(world: World) -> None:
    world.mine.hook("pre-commit", f"cd {world.theirs.folder} && {INNER}")

    world.mine.commit("--allow-empty", *MESSAGE)

    assert world.theirs.subjects()[0] == "inner"
    assert world.mine.subjects()[0] == "message"


def test_a_hook_that_commits_in_the_repository_that_is_being_committed_to_is_told_no(world: World) -> None:
    world.mine.write("one")
    told = world.project / "told"
    world.mine.hook("pre-commit", f"test -e {told} || {INNER} > {told}")

    world.mine.commit("-am", "message", code=1)

    assert json.loads(told.read_text())["cause"] == "locked"
    assert world.mine.subjects() == ["first"]


def test_hooks_that_commit_in_a_circle_wait_for_no_turn_of_their_own(world: World) -> None:
    told = world.project / "told"
    world.mine.hook("pre-commit", f"test -e {told} && exit 1; cd {world.theirs.folder} && {INNER}")
    world.theirs.hook("pre-commit", f"cd {world.mine.folder} && {INNER} > {told}")

    world.mine.run("--allow-empty", *MESSAGE)

    assert json.loads(told.read_text())["result"] != "busy"


# -- cut off ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A pipe with a name: it is at its end when all have ended that have it open."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("when", ["pre-commit", "pre-push"])
def test_a_signal_ends_git_and_its_hooks(
    world: World, children: Children, fifo: Path, when: str, number: signal.Signals
) -> None:
    hook = world.mine.hook(when, f"exec 3> {fifo}; echo ready >&3; sleep 600")
    world.mine.write("new", add=True)
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=world.mine.folder, stderr=subprocess.PIPE)
    with fifo.open() as pipe:
        assert pipe.readline() == "ready\n"

        child.send_signal(number)

        assert pipe.read() == ""
    assert child.wait(LIMIT_S) != 0
    assert child.stderr is not None
    with child.stderr:
        assert b"Traceback" not in child.stderr.read()
    hook.unlink()
    world.mine.commit("--push", "--allow-empty", *MESSAGE)
    assert world.mine.head == world.upstream.git("rev-parse", "main")


def killed(children: Children, repo: Repo, ready: Callable[[], object], all_of_it: bool) -> None:
    """Start a commit with a push, and kill it once ``ready``: itself only, or with all that it has started."""
    child = children.start(*PROGRAM, "commit", "--push", *MESSAGE, cwd=repo.folder, stderr=subprocess.DEVNULL)
    wait_until(lambda: child.poll() is not None or ready(), "the moment")
    if child.poll() is None:
        tree = psutil.Process(child.pid).children(recursive=True) if all_of_it else []
        child.kill()
        for each in tree:
            if each.is_running():
                each.kill()
    child.wait()


@pytest.mark.parametrize("at", ["", "sub"], ids=["from its top", "from a sub-folder"])
def test_a_move_that_is_killed_with_all_its_git_is_finished_by_the_next(
    world: World, children: Children, own_git: Path, at: str
) -> None:
    """Of their files one is written, one half written, one away; and the index is locked."""
    mine, ready = world.mine, world.project / "ready"
    mine.write(".gitattributes", "middle filter=slow\n", add=True)
    for name in ("*", "early", "middle", "sub/late"):
        mine.put(name, "first\n")
    mine.git("push", "-q")
    world.theirs.git("pull", "-q")
    for name in ("*", "early", "middle", "sub/late"):
        world.theirs.put(name, "theirs\n")
    theirs = world.others_push()
    with own_git.open("a") as config:
        script = f"test $PWD != {mine.folder} -o -e {ready} || {{ touch {ready}; sleep 600; }}; cat"
        config.write(f'[filter "slow"]\nclean = cat\nsmudge = "{script}"\nrequired = true\n')
    mine.write("one", "not finished\n")
    mine.write("five", add=True)
    killed(children, Repo(mine.folder / at), ready.exists, all_of_it=True)
    assert (mine.folder / "early").read_text() == "theirs\n"
    mine.write("early", "the")
    assert (mine.folder / ".git" / "index.lock").exists()

    mine.write("six")
    mine.run("--json", "--push", "-am", "second", program=HURRIED)
    mine.run("--json", "--push", "-am", "second", program=HURRIED)

    assert theirs in mine.git("rev-list", "origin/main").splitlines()
    for name in ("*", "early", "middle", "sub/late"):
        assert mine.content(name, "origin/main") == "theirs"
    assert "not finished" in (mine.folder / "one").read_text()
    assert [each for each in mine.status() if each != "?? six"] == [""]
    assert mine.head == world.upstream.git("rev-parse", "main")
    assert mine.subjects().count("message") == 1
    world.assert_tidy()


@pytest.mark.parametrize("all_of_it", [False, True], ids=["alone", "with its git"])
@pytest.mark.parametrize("seed", range(15 if SOAK else 2))
def test_whenever_it_is_killed_it_lands_once_when_run_again(
    world: World, children: Children, seed: int, all_of_it: bool
) -> None:
    world.others_push()
    theirs = world.others_push("four", "theirs\n")
    world.mine.write("one", "staged\n", add=True)
    world.mine.write("two", "not finished\n")
    world.mine.write("untracked")
    world.mine.write("five", add=True)
    world.mine.write(".git/info/exclude", "ignored\n")
    world.mine.write("ignored", "secret\n")
    moments = iter(range(random.Random(seed).randrange(20, 300)))

    killed(children, world.mine, lambda: next(moments, None) is None, all_of_it)
    told = world.mine.run("--json", "--push", *MESSAGE, program=HURRIED)

    assert theirs in world.upstream.git("rev-list", "main").splitlines()
    assert world.upstream.subjects("main").count("message") == 1, told
    for name, content in (("one", "staged\n"), ("two", "not finished\n"), ("untracked", "new\n"), ("five", "new\n"),
                          ("ignored", "secret\n")):  # fmt: skip
        assert content == (world.mine.folder / name).read_text()
    assert world.mine.run("--push", "--allow-empty", "-m", "another", program=HURRIED).returncode == 0
    assert world.mine.head == world.upstream.git("rev-parse", "main")
    assert world.mine.git("diff", "origin/main", "--", "four", "theirs") == ""
    world.assert_tidy()


def test_what_is_left_of_a_work_tree_that_is_gone_is_cleared_away(world: World) -> None:
    own = world.mine.folder / ".git" / "yolo-supervisor"
    (own / "tree-1").mkdir(parents=True)
    gone = {"folder": str(world.project / "gone"), "branch": "refs/heads/gone", "before": "x", "after": "y"}
    (own / "move-1.json").write_text(json.dumps(gone))

    world.mine.commit("--allow-empty", *MESSAGE)

    assert list(own.iterdir()) == []


def test_the_turn_ends_with_whoever_has_it(world: World, children: Children, fifo: Path) -> None:
    """Though a hook of its git lives on."""
    hook = world.mine.hook("pre-commit", f"exec 3> {fifo}; echo ready >&3; sleep 600")
    child = children.start(*PROGRAM, "commit", "--allow-empty", *MESSAGE, cwd=world.mine.folder)
    with fifo.open() as pipe:
        pipe.readline()
        tree = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        hook.unlink()
        try:
            world.mine.commit("--allow-empty", *MESSAGE)
        finally:
            for each in tree:
                if each.is_running():
                    each.kill()


# -- a unit of it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "git"),
    [
        ("commit -m x", ["-m", "x"]),
        ("--json commit --push --timeout 5 -m x --json", ["-m", "x", "--json"]),
        ("--project . commit --timeout=5 -- a --push", ["--", "a", "--push"]),
        ("commit commit", ["commit"]),
    ],
)
def test_options_of_ours_end_where_gits_begin(line: str, git: list[str]) -> None:
    command_line = fast_path.CommandLine(line.split())

    assert (git, None) == (command_line.arguments, command_line.error)


def test_the_word_commit_in_another_command_is_not_ours(world: World, project: Path) -> None:
    told = subprocess.run(
        [*PROGRAM, "exec", "--", "git", "commit", "--allow-empty", *MESSAGE],
        cwd=world.mine.folder, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip

    assert told.returncode == 0
    assert world.mine.subjects()[0] == "message"
