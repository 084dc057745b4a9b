"""``commit`` killed at random moments under real lint-staged and pre-commit: no change of the user's is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_commit_hooks import State, rescue_refs

from support import npm, pip
from support.budget import budget
from support.cli import PROGRAM
from support.processes import Children
from support.wait import LIMIT_S, wait_until
from test_commit import HASTY, Repo, Repositories, clean_git_environment, git_config, repos, template_repos

__all__ = ["clean_git_environment", "git_config", "repos", "template_repos"]

ROUNDS = budget(quick=1, full=8, soak=100)
FILES = {"partly.js": "staged, and changed again", "other.js": "changed", "untracked.js": "new"}
"""Files of the user, with the unstaged change in each."""

TASK = 'for file; do echo formatted >> "$file"; done; sleep 0.2'
LINES = "".join(f"line {number}\n" for number in range(30))
ARGUMENTS = ((), ("-a",), ("--", "partly.js", "staged.js"))
HOW = ("TERM", "INT", "KILL", "KILL all")


def with_lint_staged(repo: Repo) -> None:
    programs = npm.installed("lint-staged@15.5.2") / ".bin"
    repo.write("package.json", f'{{"lint-staged": {{"*.js": "{repo.folder / "task"}"}}}}\n', add=True)
    repo.hook("pre-commit", f"PATH={programs}:$PATH exec lint-staged")


def with_pre_commit(repo: Repo) -> None:
    programs = pip.installed("pre-commit")
    hook = f"{{id: task, name: task, entry: {repo.folder / 'task'}, language: system, files: '[.]js$'}}"
    repo.write("task", "#!/bin/sh\nsleep 0.2\n", add=True)  # one that changed a file would stop the commit
    repo.write(".pre-commit-config.yaml", f"repos: [{{repo: local, hooks: [{hook}]}}]\n", add=True)
    repo.hook("pre-commit", f"PATH={programs}:$PATH exec pre-commit hook-impl --hook-type=pre-commit --color=never "
              "--hook-dir .git/hooks --config=.pre-commit-config.yaml -- \"$@\"")  # fmt: skip


TOOLS = {"lint-staged": with_lint_staged, "pre-commit": with_pre_commit}


@pytest.fixture
def template(repos: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """A work tree with an entry in its stash list and tracked files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    repo = repos.mine
    repo.write("two", "stashed\n")
    repo.git("stash", "push", "-q", "-m", "of before")
    for name in ("partly.js", "other.js", "deleted.js"):
        repo.write(name, LINES, add=True)
    repo.write("task", f"#!/bin/sh\n{TASK}\n", add=True).chmod(0o755)
    return repo


def new_round(template: Repo, number: int) -> Repo:
    """A copy of the template with staged and unstaged changes."""
    repo = Repo(template.folder.with_name("round"))
    shutil.rmtree(repo.folder, ignore_errors=True)
    shutil.copytree(template.folder, repo.folder, symlinks=True)
    repo.git("update-index", "-q", "--refresh")
    repo.write("partly.js", LINES.replace("line 15\n", f"line 15, staged {number}\n"), add=True)
    repo.write("staged.js", f"staged {number}\n", add=True)
    for name, change in FILES.items():
        path = repo.folder / name
        text = path.read_text() if path.exists() else LINES
        path.write_text(text.replace("line 2\n", f"line 2, {change} {number}\n"))
    (repo.folder / "deleted.js").unlink()
    return repo


def killed(
    children: Children, repo: Repo, how: str, after_s: float, arguments: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Commit, and end that after a while; the exit code and the output."""
    child = children.start(
        *PROGRAM, "commit", "-qm", "round", *arguments, cwd=repo.folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    end_s = time.monotonic() + after_s
    while child.poll() is None and time.monotonic() < end_s:
        time.sleep(0.002)
    tree: list[psutil.Process] = []
    if child.poll() is None:
        tree = psutil.Process(child.pid).children(recursive=True)
        if how.startswith("KILL"):
            child.kill()
            for process in tree if how == "KILL all" else []:
                process.kill() if process.is_running() else None
        else:
            os.kill(child.pid, signal.Signals[f"SIG{how}"])
    assert child.stderr is not None
    with child.stderr:
        said = child.stderr.read().decode()
    psutil.wait_procs(tree, LIMIT_S)
    wait_until(lambda: not any(session_of(pid) in {p.pid for p in tree} for pid in psutil.pids()), "the hooks to end")
    return child.wait(LIMIT_S), said


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def where(repo: Repo, change: str, name: str, said: str) -> str:
    """The place of a change: the work tree, history, or a copy that was named."""
    path = repo.folder / name
    if path.exists() and change in path.read_text():
        return "in the work tree"
    if change in repo.git("log", "-p", "-3"):
        return "committed"
    for ref in rescue_refs(repo):
        done = subprocess.run(["git", "show", f"{ref}:{name}"], cwd=repo.folder, capture_output=True, text=True)
        if change in done.stdout:
            return "in a copy that was named" if ref in said else "in a copy that was not named"
    return "nowhere"


@pytest.mark.thorough
@pytest.mark.parametrize("tool", TOOLS)
def test_no_change_is_lost_when_a_commit_is_ended_at_any_moment(
    template: Repo, children: Children, tool: str, record_property: Callable[[str, object], None]
) -> None:
    TOOLS[tool](template)
    template.git("commit", "-qnm", "base")
    rng, counts = random.Random(f"{tool}-{ROUNDS}"), Counter[str]()
    began = time.monotonic()
    code, said = killed(children, new_round(template, 0), "TERM", LIMIT_S)
    assert code == 0, said
    whole_s = time.monotonic() - began
    for number in range(1, ROUNDS + 1):
        repo, how = new_round(template, number), rng.choice(HOW)
        before, head = State(repo), repo.head

        code, said = killed(children, repo, how, rng.uniform(0, whole_s), rng.choice(ARGUMENTS))

        made = repo.head != head
        counts[f"{how}: {'committed' if made else 'not committed'}"] += 1
        if how.startswith("KILL"):
            repo.git("config", "core.hooksPath", os.devnull)
            said += repo.run("--allow-empty", "-qm", "next", program=HASTY).stderr
        elif not made and "not in the work tree" not in said:
            now = State(repo)  # tasks may have formatted files
            assert (now.index, now.staged, now.stashes) == (before.index, before.staged, before.stashes), said
        for name, change in (*FILES.items(), ("staged.js", "staged"), ("partly.js", "line 15, staged")):
            place = where(repo, f"{change} {number}", name, said)
            assert place not in ("nowhere", "in a copy that was not named"), f"round {number}, {how}, {name}: {said}"
            counts[place] += 1
        if how.startswith("KILL") or made:
            left = [*(repo.folder / ".git" / "yolo-supervisor").glob("hooks-*")]
            assert left == [], f"round {number}, {how}, {code}, {made}: {said}"
    print(tool, ROUNDS, "rounds:", dict(sorted(counts.items())))
    record_property(tool, dict(counts))
