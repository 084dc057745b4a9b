"""Find the changes of the user that a hook has hidden and not given back; put them back, or say where they are.

A change counts as hidden where the file is as it was staged, or as in HEAD, although the copy of before has more: that
is how hooks hide changes. A file with any other content was changed by another program, and is never written.
"""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import stat
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.commits.backup import copy_file
from yolo_supervisor.commits.branch_update import index_locked, write_held
from yolo_supervisor.commits.quick_git import QuickGit, QuickGitError, null_separated
from yolo_supervisor.commits.result import CommitResult, missing_work, restored_work, write_to_journal
from yolo_supervisor.commits.work_copy import NOW_INDEX, RECORD, USER_INDEX, StashEntry, WorkCopy, stash_list
from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.system.git import GitError
from yolo_supervisor.system.git_files import LOCKS_DOCUMENT
from yolo_supervisor.system.subprocesses import undisturbed

LINES_LIMIT = 100
"""The number of files that are compared line by line; more are reported as missing."""

GITLINK = "160000"
"""The mode of a submodule."""


@dataclass
class Findings:
    """The changes that hooks had hidden."""

    restored: list[str] = field(default_factory=list)
    """Files whose changes were put back."""
    missing: list[str] = field(default_factory=list)
    """Files whose changes are not in the work tree."""
    is_index_changed: bool = False
    """Whether the index is not as it was, although nothing was committed."""
    commands: list[str] = field(default_factory=list)
    """Commands that show the missing changes, and where they are."""


@dataclass(frozen=True)
class Comparison:
    """The work tree now, compared with the copy of before."""

    hidden: set[str]
    """Files that are as staged before, or as in HEAD before, or cut off, or left unmerged."""
    changed: set[str]
    """Other files that lack lines of the user's."""


def give_back(copy: WorkCopy, result: CommitResult, committed: bool, was_ended: bool) -> None:
    """Put back what hooks have hidden, or say where it is, in the result and as an alert."""
    ref = copy.backup.ref
    try:
        with undisturbed():
            findings = settle(copy, committed, was_ended)
    except (QuickGitError, OSError) as error:
        sys.stderr.write(f"yolo-supervisor: {error}: the work tree of before the hooks is in {ref}\n")
        return
    result.restored += findings.restored
    result.missing += findings.missing
    if findings.restored:
        result.notes.append(restored_work(findings.restored))
    if findings.commands:
        result.notes.append(missing_work(findings.missing))
        result.rescue, result.unkept = ref, copy.backup.omitted
        result.commands += findings.commands
        report_missing(copy, findings)


def report_missing(copy: WorkCopy, findings: Findings) -> None:
    """Report changes of the user that are not in the work tree."""
    root, reason = Path(copy.places.root), missing_work(findings.missing)
    evidence = {"files": findings.missing, "rescue": copy.backup.ref, "commands": findings.commands}
    alert = Escalate(kind="commit", code=AlertCode.WORK_HIDDEN, key=str(root), reason=reason, evidence=evidence)
    write_to_journal(root, alert)


def settle(copy: WorkCopy, committed: bool, was_ended: bool) -> Findings:
    """Look after the hooks; ``was_ended`` if git and its hooks did not end by themselves.

    ``QuickGitError``, OSError if git fails: then the record stays for the next commit.
    """
    comparison = compare(copy, was_ended)
    proven = was_ended or (not committed and bool(new_entries(copy) or _patches(copy)))
    restored = _put_back(copy, comparison.hidden) if proven else set[str]()
    unstashed = _unstash(copy) if proven else set[str]()
    restored |= unstashed
    missing = (comparison.hidden | _only_stashed(copy)) - restored | comparison.changed
    findings = Findings(sorted(restored), sorted(missing))
    if not committed and (was_ended or restored):
        findings.is_index_changed = not _restore_index(copy)
        _drop_stashes(copy, unstashed)
        copy.resume_operation()
    if findings.missing or findings.is_index_changed:
        findings.commands = _show(copy, findings)
    copy.forget(keep_ref=bool(findings.commands))
    return findings


def left_by_killed(copy: WorkCopy) -> Findings:
    """The work that a killed commit has left; nothing is changed, and the copy stays.

    Content that has been committed or staged since is not missing.
    """
    comparison = compare(copy, True)
    staged_now = copy.staged_now()
    missing = comparison.hidden | comparison.changed
    for tree in (copy.git.or_none("rev-parse", "--verify", "--quiet", "HEAD^{tree}"), staged_now):
        missing = missing & copy.git.changed(copy.backup.tree, tree) if tree else missing
    missing |= _only_stashed(copy)
    is_lost = bool(_lost_from_index(copy, staged_now))
    findings = Findings(missing=sorted(missing), is_index_changed=is_lost)
    if missing or is_lost:
        findings.commands = _show(copy, findings)
    return findings


def _lost_from_index(copy: WorkCopy, staged_now: str | None) -> set[str]:
    """The files that were staged, are as in HEAD of before in the index now, and whose staged content is nowhere."""
    backup = copy.backup
    if backup.index_tree is None or staged_now is None:
        return set()
    head = copy.git.or_none("rev-parse", "--verify", "--quiet", "HEAD^{tree}")
    was_staged = copy.git.changed(_head_tree(copy), backup.index_tree)
    lost = was_staged - copy.git.changed(_head_tree(copy), staged_now)
    lost &= copy.git.changed(backup.index_tree, copy.tree_now())
    return lost & copy.git.changed(backup.index_tree, head) if head else lost


# -- comparing -------------------------------------------------------------------------------------------------------


def compare(copy: WorkCopy, was_ended: bool) -> Comparison:
    """Compare the work tree with the copy.

    Files with other content are looked at only if hooks were ended: otherwise it is what they meant to write.
    """
    git, backup = copy.git, copy.backup
    now = copy.tree_now()
    differing = git.changed(backup.tree, now)
    if not differing:
        return Comparison(set(), set())
    staged, head = backup.index_tree or _head_tree(copy), _head_tree(copy)
    as_staged, as_head = differing - git.changed(staged, now), differing - git.changed(head, now)
    untracked = git.changed(staged, backup.tree, "A") & git.changed(head, backup.tree, "A")
    gone = {name for name in differing & untracked if not os.path.lexists(os.path.join(copy.places.root, name))}
    hidden = (as_staged | as_head) - (gone - _stashed_untracked(copy) if gone else gone)
    if was_ended:  # a hook that could not merge the changes back
        hidden |= differing & {line.partition("\t")[2] for line in git.names("ls-files", "-u", "-z")}
    others = sorted(differing - hidden) if was_ended else []
    changed = {*others[LINES_LIMIT:]}
    for name in others[:LINES_LIMIT]:
        if _is_cut_off(copy, name, staged, head):
            hidden.add(name)
        elif not _keeps_lines(git, name, staged, backup.tree, now):
            changed.add(name)
    return Comparison(hidden, changed)


def _head_tree(copy: WorkCopy) -> str:
    if copy.backup.head:
        return f"{copy.backup.head}^{{tree}}"
    return copy.git("hash-object", "-t", "tree", "--stdin")  # the empty tree


def _stashed_untracked(copy: WorkCopy) -> set[str]:
    """The untracked files in new stash entries."""
    return {name for entry in new_entries(copy) for name in _untracked_in(copy, entry)}


def _untracked_in(copy: WorkCopy, entry: StashEntry) -> set[str]:
    """The untracked files in a stash entry."""
    listed = copy.git.or_none("ls-tree", "-r", "-z", "--name-only", f"{entry.commit}^3") or ""
    return {*listed.split("\0")} - {""}


def _only_stashed(copy: WorkCopy) -> set[str]:
    """The files that only a new stash entry holds: the copy does not, since they are large for instance."""
    gone = {name for name in copy.backup.omitted if not os.path.lexists(os.path.join(copy.places.root, name))}
    return gone & _stashed_untracked(copy) if gone else gone


def _is_cut_off(copy: WorkCopy, name: str, *trees: str) -> bool:
    """Whether the file holds the beginning of what it was before, since the program that wrote it was killed."""
    for tree in (*trees, copy.backup.tree):
        try:
            whole = copy.git.output("cat-file", "--filters", f"{tree}:{name}")
            content = read_regular(os.path.join(copy.places.root, name), len(whole))
        except (QuickGitError, OSError):
            continue
        if len(content) < len(whole) and whole.startswith(content):
            return True
    return False


def _keeps_lines(git: QuickGit, name: str, staged: str, work: str, now: str) -> bool:
    """Whether all lines that the user had added to the file since it was staged are still in it."""
    try:
        before, ours, present = (
            Counter(line.strip() for line in git.output("cat-file", "blob", f"{tree}:{name}").splitlines())
            if git.or_none("rev-parse", "--verify", "--quiet", f"{tree}:{name}")
            else Counter[bytes]()
            for tree in (staged, work, now)
        )
    except QuickGitError:
        return False
    return not (ours - before) - present and all(present[line] <= ours[line] for line in before - ours)


# -- putting back ----------------------------------------------------------------------------------------------------


def _put_back(copy: WorkCopy, hidden: set[str]) -> set[str]:
    """Write the hidden files as they were; those that were written."""
    copied = _tree_entries(copy.git, copy.backup.tree)
    changing = copy.changed_since()
    ours = {
        name for name in hidden - changing
        if copied.get(name, ("",))[0] != GITLINK and not _is_blocked(copy.places.root, name)
    }  # fmt: skip
    for name in ours - copied.keys():  # the user had deleted it
        os.unlink(os.path.join(copy.places.root, name))
    written = sorted(ours & copied.keys())
    if written:
        copy.write(written)
    return ours


def _unstash(copy: WorkCopy) -> set[str]:
    """Write the files that are in no copy, and that a hook has put into a stash entry; those that were written."""
    gone, written = _only_stashed(copy), set[str]()
    for entry in new_entries(copy) if gone else ():
        found = (gone - written) & _untracked_in(copy, entry)
        names = sorted(name for name in found if not _is_blocked(copy.places.root, name))
        if names:
            index = copy.git.at(copy.places.root, GIT_INDEX_FILE=copy.path + NOW_INDEX)
            index("read-tree", f"{entry.commit}^3")
            index("checkout-index", "-z", "--stdin", given=null_separated(names))
            written |= {name for name in names if os.path.lexists(os.path.join(copy.places.root, name))}
    return written


def _tree_entries(git: QuickGit, tree: str) -> dict[str, tuple[str, str]]:
    """Mode and object of the files in a tree."""
    lines = (line.partition("\t") for line in git.names("ls-tree", "-r", "-z", tree))
    return {name: (facts.split()[0], facts.split()[2]) for facts, _, name in lines}


def _is_blocked(root: str, name: str) -> bool:
    """Whether a folder, or a link in place of a folder, is where the file is to be written."""
    if any(os.path.islink(os.path.join(root, parent)) for parent in Path(name).parents):
        return True
    return os.path.isdir(os.path.join(root, name)) and not os.path.islink(os.path.join(root, name))


def _restore_index(copy: WorkCopy) -> bool:
    """Give back the index as it was, without what others have staged since; whether it is as it was."""
    before, now = _entries(copy.user_index()), _entries(copy.git)
    differing = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    if not differing:
        return True
    if not os.path.exists(copy.places.index_file):
        return False
    staged = copy.git.changed(_head_tree(copy), copy.backup.index_tree or _head_tree(copy))
    foreign = {name for name in differing if name not in staged and name in now and name not in before}
    foreign |= {name for name in differing & before.keys() - staged if name in now}
    if any(len(entry) > 1 for entry in now.values()):  # left unmerged, with what the hook could merge staged
        copied = _tree_entries(copy.git, copy.backup.tree)
        foreign = {name for name in foreign if now[name] != [" ".join((*copied.get(name, ()), "0"))]}
    index, new = Path(copy.places.index_file), Path(copy.path + NOW_INDEX)
    document = Path(copy.places.own_folder, f"{LOCKS_DOCUMENT}{os.getpid()}.json")
    try:
        with undisturbed(), index_locked(index) as lock:
            write_held(document, {lock: os.getpid()})
            copy_file(str(index) if foreign else copy.path + USER_INDEX, str(new))
            if foreign:
                git = copy.git.at(copy.places.root, GIT_INDEX_FILE=str(new))
                lines = [entry for name in differing - foreign for entry in _index_info(name, before, now)]
                git("update-index", "-z", "--index-info", given=null_separated(lines))
            shutil.copymode(index, new)
            new.rename(index)
            lock.unlink()
    except (GitError, QuickGitError, OSError):
        return False
    finally:
        document.unlink(missing_ok=True)
    return True


def _entries(git: QuickGit) -> dict[str, list[str]]:
    """The entries of the index by name: mode, object and stage of each."""
    entries: dict[str, list[str]] = {}
    for line in git.names("ls-files", "-s", "-z"):
        facts, _, name = line.partition("\t")
        entries.setdefault(name, []).append(facts)
    return entries


def _index_info(name: str, before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    if name in before:
        return [f"{facts}\t{name}" for facts in before[name]]
    null = "0" * len(now[name][0].split()[1])
    return [f"0 {null}\t{name}"]


def new_entries(copy: WorkCopy) -> list[StashEntry]:
    """The stash entries that were made since the copy, the newest first."""
    entries, known = stash_list(copy.git), len(copy.stashes)
    count = len(entries) - known
    return entries[:count] if count > 0 and entries[count:] == copy.stashes else []


def _drop_stashes(copy: WorkCopy, unstashed: set[str]) -> None:
    """Drop the stash entries that hooks have made, and whose content is in the work tree again.

    That is what the copy holds, and the files that were taken out of the entries.
    """
    entries = new_entries(copy)
    for number in reversed(range(len(entries))):
        commit = entries[number].commit
        if _is_covered(copy, commit, unstashed) and copy.git.or_none("rev-parse", f"stash@{{{number}}}") == commit:
            copy.git.or_none("stash", "drop", "--quiet", f"stash@{{{number}}}")


def _is_covered(copy: WorkCopy, stash: str, unstashed: set[str]) -> bool:
    """Whether all that the stash holds is in the copy, or was taken out of it."""
    git, backup = copy.git, copy.backup
    known = [backup.tree, backup.index_tree or backup.tree, _head_tree(copy)]
    parts = [stash, f"{stash}^2", f"{stash}^3"]
    for part in parts:
        if git.or_none("rev-parse", "--verify", "--quiet", part) is None:
            continue
        tree = f"{part}^{{tree}}"
        base = "" if part.endswith("^3") else _head_tree(copy)
        names = (
            git.changed(base, tree) if base else {*git.names("ls-tree", "-r", "-z", "--name-only", tree)} - unstashed
        )
        for other in known:
            names &= git.changed(other, tree)
        if names:
            return False
    return True


# -- saying where it is ----------------------------------------------------------------------------------------------


def _show(copy: WorkCopy, findings: Findings) -> list[str]:
    """The commands that show the missing changes, in the copy and where the hook has put them."""
    only_stashed = _only_stashed(copy)
    names = shlex.join([name for name in findings.missing if name not in only_stashed][:20])
    ref = copy.backup.ref
    commands = [f"cd {shlex.quote(copy.places.root)}"]
    if names:
        commands += [
            f"git diff {ref} -- {names}    # shows what is missing",
            f"git restore --source={ref} -- {names}    # writes these files as they were",
        ]
    if findings.is_index_changed:
        commands.append(f"git diff HEAD {ref}^2    # shows what was staged")
    for number, entry in enumerate(new_entries(copy)):
        commands.append(f"git stash show -p stash@{{{number}}}    # {entry.subject}")
        if stashed := only_stashed & _untracked_in(copy, entry):
            files = shlex.join(sorted(stashed)[:20])
            commands.append(
                f"git restore --source='stash@{{{number}}}^3' -- {files}    # writes these files as they were"
            )
    commands += [f"less {shlex.quote(patch)}    # a patch of the hook" for patch in _patches(copy)]
    commands.append(f"git update-ref -d {ref}    # removes the copy")
    return commands


def _patches(copy: WorkCopy) -> list[str]:
    """The patch files of lint-staged and pre-commit that were written since the copy."""
    since_s = os.stat(copy.path + RECORD).st_mtime
    environment = copy.git.environment
    cache = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", "/"), ".cache")
    home = environment.get("PRE_COMMIT_HOME") or os.path.join(cache, "pre-commit")
    found = [os.path.join(copy.places.git_dir, "lint-staged_unstaged.patch")]
    found += sorted(glob.glob(os.path.join(glob.escape(home), "patch*-*")))
    return [path for path in found if _written_since(path, since_s)]


def _written_since(path: str, since_s: float) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and status.st_mtime >= since_s
