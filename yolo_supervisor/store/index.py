"""What follows from the journal's lines so far, and what a checkpoint carries on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from yolo_supervisor.formats.plugin import outcome_table

VERSIONS = 5
"""How many good versions of a document are remembered."""


class JournalState:
    """What follows from the lines so far, and what a checkpoint carries on."""

    def __init__(self) -> None:
        self.seq = 0
        self.pending: dict[int, dict[str, Any]] = {}
        """Lines that promise a change or begin a deed and have no mark yet, by their number."""
        self.requeues: Counter[str] = Counter()
        """How often each task was given back since it was last redriven."""
        self.good: dict[str, list[str]] = {}
        """The digests of each document's good versions, the newest last."""
        self.lent: dict[str, dict[str, Any]] = {}
        """Of each lease given through the store and not given back: the digest of its file, since when by the
        monotonic clock of which boot, and its fencing token, which is the number of its line."""
        self.claims: dict[str, dict[str, Any]] = {}
        """Of each task the newest claim made through the store: ``token`` (the number of its line), ``owner``, the
        last sign of life ``since_s`` by the monotonic clock of ``boot``, and whether it was not given back since."""
        self.failures: dict[str, dict[str, Any]] = {}
        """Of each task how its newest attempt failed: ``cause``, ``since_s`` and ``boot`` of when it was given back,
        and the ``reports`` of the attempts before and of that one."""
        self.set_aside: dict[str, str] = {}
        """The dead letters, and why each is one."""
        self.flags: dict[str, dict[str, Any]] = {}
        """Of each feature flag that was ever switched here the newest time: ``epoch`` (the number of its line),
        ``off``, ``by`` whom, why, when, and how many ``times`` in a row it was switched off for its errors."""
        self.outcomes: Counter[tuple[str, bool]] = Counter()
        """How often our actions were an outcome of a flag: a success, or (True) a failure."""
        self.releases = 0
        """How many leases' files were removed by us."""
        self._deaths: dict[str, dict[str, int]] = {}
        """The newest line for each action on an agent that is not forgotten yet."""

    def told(self, agent: str, action: str, since: str) -> bool:
        """Whether ``action`` was written of this agent after the newest line with the action ``since``."""
        told = self._deaths.get(agent, {})
        return told.get(action, 0) > told.get(since, 0)

    def terminated(self, agent: str) -> bool:
        """Whether we have ended the agent ourselves, or are at it; what it left behind when it was dead is another
        thing."""
        told = self._deaths.get(agent, {})
        begun = [seq for seq, each in self.pending.items() if "begun" in each and each.get("key") == agent]
        ours = max([told.get("terminated", 0), *begun])
        registered, died = told.get("registered", 0), told.get("died", 0)
        return ours > registered and not registered < died < ours

    def learn(self, record: Mapping[str, Any]) -> None:
        """Take in one more line; one that stands in two segments counts once."""
        if record["seq"] <= self.seq:
            return
        if "checkpoint" in record:
            self._take_up(record["checkpoint"])
        self.seq = record["seq"]
        for ending in ("done", "failed"):
            if ending in record:
                started = self.pending.pop(record[ending], None)
                if ending == "done" and started is not None:
                    self.count(started)
                if "action" not in record:  # else it is the end of a deed, and tells how it went
                    return
        if "good" in record:
            self._keep(*record["good"])
        elif "beat" in record:
            self._beat(*record["beat"])
        elif "write" in record or "begun" in record:
            self.pending[record["seq"]] = dict(record)
            if "begun" in record:
                return
        elif "action" in record:
            self.count(record)

    def _keep(self, path: str, digest: str) -> None:
        versions = self.good.setdefault(path, [])
        if digest in versions:
            versions.remove(digest)
        versions.append(digest)
        del versions[:-VERSIONS]

    def _beat(self, key: str, token: int, since_s: float, boot: str) -> None:
        claim = self.claims.get(key)
        if claim is not None and claim["token"] == token:
            claim |= {"since_s": since_s, "boot": boot}

    def count(self, record: Mapping[str, Any]) -> None:
        """Take in what is done."""
        kind, key, action = str(record.get("kind")), str(record.get("key")), str(record.get("action"))
        if kind == "agent" and action == "forgotten":
            self._deaths.pop(key, None)
        elif kind == "agent":
            told = self._deaths.setdefault(key, {})
            told[action] = max(record["seq"], told.get(action, 0))
        if kind == "lease" and "write" in record:
            self._lend(record)
        if kind == "task":
            self._count_task(key, action, record)
        if kind == "flag" and action in ("disabled", "enabled"):
            self._switch(key, action == "disabled", record)
        write = record.get("write", {})
        self.releases += write.get("after", "") is None and str(write.get("path")).endswith(".lease")
        self.outcomes.update(outcome_table.in_journal_entry(record))

    def _switch(self, flag: str, off: bool, record: Mapping[str, Any]) -> None:
        evidence = record.get("evidence", {})
        times = self.flags.get(flag, {}).get("times", 0)
        told = {name: evidence[name] for name in ("errors", "samples", "since_s", "boot") if name in evidence}
        told |= {"by": record.get("by"), "at": record.get("at"), "reason": record.get("reason")}
        if "errors" in told:
            times += 1
        elif "probation" not in evidence:  # a person has decided
            times = 0
        self.flags[flag] = {"epoch": record["seq"], "off": off, "times": times, **told}

    def _count_task(self, key: str, action: str, record: Mapping[str, Any]) -> None:
        evidence = record.get("evidence", {})
        clock = {name: evidence[name] for name in ("since_s", "boot") if name in evidence}
        if action == "claimed":
            self.claims[key] = {"token": record["seq"], "owner": evidence.get("owner"), "live": True, **clock}
        elif action == "requeued":
            reports = {"reports": evidence["reports"]} if "reports" in evidence else {}
            if evidence.get("charged", True):
                self.requeues[key] += 1
                self.failures[key] = {"cause": evidence.get("cause"), **clock, **reports}
            elif reports:
                self.failures[key] = {**self.failures.get(key, {}), **reports}
            if key in self.claims:
                self.claims[key]["live"] = False
        elif action == "dead_lettered":
            self.set_aside[key] = str(record.get("reason"))
            if key in self.claims:
                self.claims[key]["live"] = False
        elif action in (
            "redriven",
            "dropped",
            "completed",
            "dead_letter_removed",
            "put_away",
        ):  # the last one stands in a journal of 0.1.0
            for memory in (self.requeues, self.failures, self.set_aside):
                memory.pop(key, None)
            if action in ("dropped", "completed"):
                self.claims.pop(key, None)

    def _lend(self, record: Mapping[str, Any]) -> None:
        write, evidence = record["write"], record["evidence"]
        if write["after"] is None or "since_s" not in evidence:
            self.lent.pop(write["path"], None)
        else:
            before = self.lent.get(write["path"], {})
            if record["action"] != "renewed" or before.get("judged") != write["before"]:
                before = {}  # what is renewed was not given by us: its holder's token is not the one that we know
            self.lent[write["path"]] = {
                "judged": write["after"],
                "since_s": evidence["since_s"],
                "boot": evidence["boot"],
                "token": before.get("token", record["seq"]),  # who renews goes on with the token that it has
            }

    def checkpoint(self) -> dict[str, Any]:
        return {
            "pending": list(self.pending.values()),
            "requeues": dict(self.requeues),
            "good": self.good,
            "lent": self.lent,
            "claims": self.claims,
            "failures": self.failures,
            "set_aside": self.set_aside,
            "flags": self.flags,
            "outcomes": [[flag, failed, number] for (flag, failed), number in self.outcomes.items()],
            "releases": self.releases,
            "agents": self._deaths,
        }

    def _take_up(self, checkpoint: Mapping[str, Any]) -> None:
        self.pending = {record["seq"]: record for record in checkpoint["pending"]}
        self.requeues = Counter(checkpoint["requeues"])
        self.good = {path: list(digests) for path, digests in checkpoint["good"].items()}
        self.lent = {path: dict(lent) for path, lent in checkpoint.get("lent", {}).items()}
        self.claims = {task: dict(claim) for task, claim in checkpoint.get("claims", {}).items()}
        self.failures = {task: dict(failure) for task, failure in checkpoint.get("failures", {}).items()}
        self.set_aside = dict(checkpoint.get("set_aside", {}))
        self.flags = {flag: dict(told) for flag, told in checkpoint.get("flags", {}).items()}
        self.outcomes = Counter({(flag, failed): number for flag, failed, number in checkpoint.get("outcomes", ())})
        self.releases = checkpoint.get("releases", 0)
        self._deaths = {agent: dict(told) for agent, told in checkpoint["agents"].items()}
