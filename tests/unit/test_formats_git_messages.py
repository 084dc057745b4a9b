"""Classifying git's error messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.formats.git_messages import ADVICE, TRANSIENT, Cause, Failure, classify

EXITS = st.none() | st.integers(-64, 255)
COMMANDS = st.sampled_from(["", "commit", "push"])
FRAGMENTS = st.sampled_from(
    ["fatal: ", "error: ", "Unable to create '", ".lock': File exists", "\n", "[rejected]", "\0", "\udcff",
     "nothing to commit", "No space left on device", "usage: git", "gpg failed to sign"]
)  # fmt: skip
WORDS = st.text() | st.lists(FRAGMENTS | st.text(max_size=5)).map("".join)


@given(EXITS, WORDS, COMMANDS)
def test_every_output_has_a_cause_and_advice(exit_code: int | None, said: str, command: str) -> None:
    failure = classify(exit_code, said, command)

    assert ADVICE[failure.cause]
    assert failure.exit == exit_code
    assert (failure.cause is Cause.TIMED_OUT) == (exit_code is None)
    assert failure.lock is None or failure.lock.endswith(".lock")


@given(WORDS)
def test_failed_hook_is_never_transient(said: str) -> None:
    said = said.replace("Error building trees", "")

    assert classify(1, said, "commit").cause not in TRANSIENT


@given(st.integers(1, 255), WORDS)
def test_commit_never_has_a_cause_of_pushes(exit_code: int, said: str) -> None:
    assert "the commit is made" not in ADVICE[classify(exit_code, said, "commit").cause]


def test_only_the_end_of_the_output_is_kept() -> None:
    assert classify(128, "x" * 10_000 + "the end").output == ("x" * 10_000 + "the end")[-4000:]


@pytest.mark.parametrize(
    ("said", "lock"),
    [
        ("fatal: Unable to create '/a b/.git/index.lock': File exists.\n\nAnother git process", "/a b/.git/index.lock"),
        ("fatal: cannot lock ref 'HEAD': Unable to create '/a/.git/HEAD.lock': File exists.", "/a/.git/HEAD.lock"),
        ("fatal: cannot lock ref 'HEAD': is at 1 but expected 2", None),
    ],
)
def test_lock_is_read_from_gits_message(said: str, lock: str | None) -> None:
    assert classify(128, said, "commit") == Failure(Cause.LOCKED, 128, said)
    assert classify(128, said, "commit").lock == lock


@pytest.mark.parametrize("reason", ["Permission denied", "Read-only file system"])
def test_lock_without_permission_is_not_locked(reason: str) -> None:
    assert (
        classify(128, f"fatal: Unable to create '/a/.git/index.lock': {reason}", "commit").cause is Cause.NO_PERMISSION
    )


def test_lock_without_room_is_not_locked() -> None:
    said = "fatal: Unable to create '/a/.git/index.lock': No space left on device"

    assert classify(128, said, "commit").cause is Cause.NO_ROOM


TO = "To /x\n!\trefs/heads/main:refs/heads/main\t"


@pytest.mark.parametrize(
    ("code", "said", "cause"),
    [
        (1, TO + "[rejected] (fetch first)\nDone", Cause.REJECTED),
        (1, TO + "[rejected] (non-fast-forward)\nDone", Cause.REJECTED),
        (1, TO + "[remote rejected] (failed to update ref)\nDone", Cause.REJECTED),
        (1, TO + "[remote rejected] (pre-receive hook declined)\nDone", Cause.REFUSED),
        (1, TO + "[remote rejected] (protected branch hook declined)\nDone", Cause.REFUSED),
        (1, "remote: please fetch first\n" + TO + "[remote rejected] (pre-receive hook declined)", Cause.REFUSED),
        (128, "fatal: The current branch main has no upstream branch.", Cause.NO_UPSTREAM),
        (128, "fatal: No configured push destination.", Cause.NO_UPSTREAM),
        (128, "fatal: '/x' does not appear to be a git repository\nfatal: Could not read", Cause.NO_UPSTREAM),
        (128, "ssh: Could not resolve hostname x\nfatal: Could not read from remote repository.", Cause.UNREACHABLE),
        (128, "fatal: unable to access 'https://x/': Could not resolve host: x", Cause.UNREACHABLE),
        (1, "error: RPC failed; HTTP 502\nfatal: the remote end hung up unexpectedly", Cause.UNREACHABLE),
        (128, "fatal: You are not currently on a branch.", Cause.DETACHED),
        (1, "error: failed to push some refs to '/x'", Cause.HOOK),
        (1, "File config.yml does not exist\nerror: failed to push some refs to '/x'", Cause.HOOK),
        (1, "fetch first [rejected]\nerror: it is protected branch\nerror: failed to push", Cause.HOOK),
    ],
)  # fmt: skip
def test_causes_of_failed_pushes(code: int, said: str, cause: Cause) -> None:
    assert classify(code, said, "push").cause is cause
