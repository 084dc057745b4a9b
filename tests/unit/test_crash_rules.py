"""Crash causes: classified, reported without secrets, and used by retries and alerts."""

from __future__ import annotations

import json
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.crash_cases import BLIND, NOW, OTHERS, TALK, Case, asked, failed, used
from support.project import FakeClock, agent_of, given_back, read_task
from yolo_supervisor.config import Config, TasksConfig
from yolo_supervisor.formats import crash_report, transcripts
from yolo_supervisor.formats.crash_report import CrashCause, Evidence, Report, Verdict
from yolo_supervisor.inventory import crash_evidence
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.crash_evidence import Crash, CrashInvestigator
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import ProcessId, Task, from_iso
from yolo_supervisor.policy.crash_bursts import CrashBursts
from yolo_supervisor.policy.crash_rules import classify
from yolo_supervisor.policy.retry import RetryDecision, RetryPolicy, requeue_or_dead_letter
from yolo_supervisor.store import crash_reports
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.quotas import CRASHES
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.death_watch import DeathWatch
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

PROCESS = ProcessId(4711, 12345, "here")
AGENT = agent_of("dev-1", "red", PROCESS)


def evidence_of(case: Case) -> Evidence:
    transcript = "\n".join(case.transcript).encode()
    return Evidence(
        at=NOW, status=case.status, signal=case.signal, oom=case.oom, pane=tuple(case.pane.splitlines()),
        tail=transcripts.tail(transcript[:-20] if case.cut else transcript), hooks=case.hooks,
    )  # fmt: skip


def report_of(**known: Any) -> Report:
    evidence = Evidence(**{"at": NOW, **known})
    return Report(agent=AGENT, evidence=evidence, verdict=classify(evidence))


# -- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*BLIND, *OTHERS, *TALK], ids=lambda case: case.name)
def test_a_death_is_classified_as_by_a_person(case: Case) -> None:
    verdict = classify(evidence_of(case))

    assert verdict.cause == case.cause, f"{verdict.confidence}: {verdict.reason}"
    assert (verdict.confidence >= 0.5) == (case.cause != "unknown")
    assert all(other.confidence <= verdict.confidence for other in verdict.others)


def test_every_cause_has_cases_and_a_third_were_written_before_the_rules() -> None:
    assert {case.cause for case in BLIND} == {str(cause) for cause in CrashCause}
    assert len(BLIND) * 3 >= len(BLIND) + len(OTHERS) >= 60


def test_a_running_tool_is_no_cause_of_a_death_that_was_not_observed() -> None:
    evidence = evidence_of(Case(name="", cause="", transcript=(used("Bash", 3600, command="npm start"),)))

    assert classify(evidence).cause is CrashCause.TOOL_HANG
    assert classify(replace(evidence, observed=False)).cause is CrashCause.UNKNOWN


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300), st.lists(st.text(max_size=60), max_size=5))
def test_any_transcript_and_screen_yield_a_verdict(data: bytes, screen: list[str]) -> None:
    report = report_of(tail=transcripts.tail(data), pane=tuple(screen))

    assert crash_report.load(crash_report.dump(report)) is not None


# -- the rate-limit window ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "after_s"),
    [
        ("Request rejected (429)", 300),
        ("Claude AI usage limit reached|1795438800", 3600),
        ("resets at 2026-11-23T12:30:00Z", 1800),
        ("resets in 1h 5m", 3900),
        ("try again in 20s", 20),
        ("You've hit your session limit · resets 3pm (Europe/Berlin)", 7200),
        ("You've hit your session limit · resets 2:30pm (UTC)", 9000),
        ("You've hit your weekly limit · resets 11am (UTC)", 21600),  # tomorrow: limited to six hours
        ("usage limit reached|1000000000", 300),  # long past: the text is not about this window
        ("resets 3pm (Nowhere/Land)", 300),
        ("resets 99pm (UTC)", 300),
        ("resets 25:00 (UTC)", 300),
        ("resets Feb 31, 2am (UTC)", 300),
        ("resets 3", 300),
        ("resets 3pm (../../etc/passwd)", 300),
        ("You've hit your weekly limit · resets Oct 12, 3pm (Europe/Berlin)", 300),  # last October: long past
        ("You've hit your weekly limit · resets Nov 23, 3pm (Europe/Berlin)", 7200),
        ("You've hit your weekly limit · resets Nov 23 at 5pm (UTC)", 18000),
        ("You've hit your weekly limit · resets Dec 2 at 5pm (UTC)", 21600),
        ("resets Jul 31, 2am (UTC)", 300),
        ("resets 15:00 (Europe/Berlin)", 7200),
        ("resets 14:30 (UTC)", 9000),
        ("resets 10am (Etc/GMT+5)", 10800),
        ("resets in 3 days", 21600),
        ("resets in 999999 days", 21600),
        ("resets in 1 hour and 20 minutes", 4800),
        ("Try again in 90 minutes", 5400),
        ("Please retry after 3600 seconds", 3600),
        ("Resets in 1h5m", 3900),
        ("resets 2026-11-23T13:00:00+00:00", 3600),
        ("resets 2026-11-23T09:00:00-05:00", 7200),
    ],
)
def test_a_window_lasts_until_its_named_end_within_bounds(text: str, after_s: float) -> None:
    error = transcripts.ApiError(text=text, kind="rate_limit", status=429, at=NOW)

    assert classify(Evidence(at=NOW, tail=transcripts.Tail(error=error))).until == NOW + timedelta(seconds=after_s)


@pytest.mark.parametrize(("ago_s", "cause"), [(3599, CrashCause.RATE_LIMITED), (3600, CrashCause.SIGNAL)])
def test_an_agent_killed_after_the_window_did_not_die_of_the_limit(ago_s: float, cause: CrashCause) -> None:
    transcript = (asked("fix"), failed("resets in 1h", "rate_limit", 429, ago_s))
    verdict = classify(evidence_of(Case(name="", cause="", signal=signal.SIGTERM, transcript=transcript)))

    assert verdict.cause is cause
    assert (verdict.until is not None) == (cause is CrashCause.RATE_LIMITED)


def test_a_limit_that_had_reset_is_an_unlikely_cause_and_opens_no_window() -> None:
    transcript = (asked("fix"), failed("resets in 1h", "rate_limit", 429, 7200))
    evidence = evidence_of(Case(name="", cause="", status=1, transcript=transcript))

    assert classify(evidence).confidence < 0.5
    assert classify(evidence).until is None
    assert classify(replace(evidence, observed=False)).confidence > 0.5  # it may have died long ago


@pytest.mark.parametrize("ago_s", [300, 299])
def test_a_hook_names_the_time_of_a_limit_and_its_end(ago_s: float) -> None:
    payload = {"error": "rate_limit", "at": (NOW - timedelta(seconds=ago_s)).isoformat()}
    verdict = classify(Evidence(at=NOW, signal=signal.SIGKILL, hooks=(("StopFailure", payload),)))

    assert (verdict.cause is CrashCause.SIGNAL) == (ago_s == 300)
    payload |= {"error_details": "resets in 2h"}
    assert classify(Evidence(at=NOW, status=1, hooks=(("StopFailure", payload),))).until == NOW + timedelta(
        seconds=7200 - ago_s
    )


def test_errors_and_waits_of_an_earlier_process_of_the_session_are_no_cause() -> None:
    before = [used("Bash", 7200, command="make"), failed("Request rejected (429)", "rate_limit", 429, 3600)]

    assert transcripts.tail("\n".join(before).encode()).error is not None
    tail = transcripts.tail("\n".join(before).encode(), NOW - timedelta(seconds=3599))
    assert (tail.error, tail.tool, tail.tool_at, tail.stop) == (None, None, None, None)
    assert "API error: Request rejected (429)" in tail.turns
    own = "\n".join([*before, failed("Overloaded", "server_error", 529, 10)]).encode()
    error = transcripts.tail(own, NOW - timedelta(seconds=3599)).error
    assert error is not None
    assert error.status == 529


@pytest.mark.parametrize(
    ("at", "text", "after_s"),
    [
        ("2026-12-31T23:00:00+00:00", "resets Jan 1, 1am (UTC)", 7200),
        ("2027-01-01T01:00:00+00:00", "resets Dec 31, 11pm (UTC)", 300),  # two hours ago
        ("2028-02-28T23:00:00+00:00", "resets Feb 29, 1am (UTC)", 7200),
        ("2026-12-31T23:30:00+00:00", "resets 12:30am (UTC)", 3600),
    ],
)
def test_a_window_that_names_a_date_ends_on_the_nearest_such_date(at: str, text: str, after_s: float) -> None:
    now = from_iso(at)
    error = transcripts.ApiError(text=text, kind="rate_limit", status=429, at=now)

    assert classify(Evidence(at=now, tail=transcripts.Tail(error=error))).until == now + timedelta(seconds=after_s)


def test_a_time_without_a_zone_is_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    error = transcripts.ApiError(text="resets 11pm", kind="rate_limit", status=429, at=NOW)  # NOW is 9 pm in Tokyo

    try:
        assert classify(Evidence(at=NOW, tail=transcripts.Tail(error=error))).until == NOW + timedelta(hours=2)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_only_a_rate_limit_opens_a_window() -> None:
    assert (
        classify(evidence_of(Case(name="", cause="", transcript=(failed("500", "server_error", 500),)))).until is None
    )


# -- the report -----------------------------------------------------------------------------------------------------


def dumped(seen: str, nested: bool = False) -> str:
    """The report and the index entry of a death with this text in all its evidence."""
    content = json.dumps({"body": json.dumps({"text": seen})}) if nested else seen
    turns = [asked(seen), used("Bash", command=seen), used("Write", content=content), failed(seen, "unknown")]
    tail = transcripts.tail("\n".join(turns).encode())
    report = report_of(status=1, pane=tuple(seen.splitlines()), tail=tail, hooks=(("StopFailure", {"error": seen}),))
    report = replace(report, more={"processes": [{"pid": 1, "command": seen}]})
    return crash_report.dump(report).decode() + json.dumps(Crash(report=report).summary)


SECRETS = {
    "sk-ant-api03-" + "Ab1" * 12: "{}",
    "hunter2": "export DB_PASSWORD={}",
    "s3cr3t-w0rd": '{{"command": "curl -H \\"Authorization: Bearer {}\\" x"}}',
    "tok3nvalue": "X_API_TOKEN: {}",
    "opensesame": "postgres://shop:{}@db.internal/shop",
    "quite plain": "MY_SECRET={}",
    "ghp_" + "a1B2" * 9: "git clone with {} now",
    "AKIAIOSFODNN7EXAMPLE": "id {}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl": "jwt {}",
    "MIIEvQIBADANBgkqhkiG9w0": "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
    "MIIEowIBAAKCAQEA7f2xk9sPq3/ab+cd1234567890abcdefGHIJKLMNOPQRSTUV": "{}",
    "cookie-of-mine": "Set-Cookie: session={}; Path=/",
    "pa55": "mysql --password={} shop",
    "0123456789abcdef" * 3: "key {}",
}
TEMPLATES = """\
export DB_PASSWORD={}
export MY_PASSPHRASE={}
export my_pass={}
X_API_TOKEN: {}
x-api-key: {}
db_password = a,{}
password: ab&{}
password: ab){}
password = "ab\\\\{}"
password = "it's {}"
password: 'it\\'s {}'
password => '{}'
:password => "{}"
password := "{}"
if password == "{}":
password: string = '{}'
password: str | None = "{}"
config["password"] = "{}"
login("bob", password="{}")
{{"password": "ab\\"{}"}}
{{"auth":{{"user":"bob","pass":"{}"}}}}
{{"tokens": ["{}", "b"]}}
{{"name": "DB_PASSWORD", "value": "{}"}}
curl -d "{{\\"password\\":\\"{}\\"}}" x
"body": "{{\\\\\\"password\\\\\\":\\\\\\"{}\\\\\\"}}"
smtp_pass={}
pass: {}
DbPwd={}; Uid=sa
Server=x;Uid=sa;Pwd={};
pwd={}
signing_key: {}
encryption_key={}
master_key: {}
API key: {}
Secret key: {}
AWS Secret Access Key [None]: {}
Password for bob: {}
Password for 'https://bob@host': {}
machine a login b password {}
Authorization: Bearer {}
Authorization: ApiKey {}
authorization: SSWS 00 {}
Authorization: Digest username="bob", response="{}"
curl -H "Authorization: token {}" x
{{"Authorization":"Custom {}"}}
Set-Cookie: session={}; Path=/
"cookie": "sid={}; b=2"
'Cookie': 'sid={}'
\\"cookie\\": \\"sid={}\\"
cookies={{'sid': '{}'}}
curl -u admin:{} https://x
curl --user 'admin:{}' https://x
mysql -uroot -p{} shop
mysql --password={} shop
sshpass -p {} ssh x
docker login -u bob -p {}
redis-cli -a {}
foo --pass {}
foo --api-token '{}'
fish -c 'set -x API_KEY {}'
set -gx API_KEY {}
postgres://shop:{}@db.internal/shop
postgres://shop:p@{}@db/shop
postgres://shop:p/{}@db/shop
https://00000000{}@git.example.com/x.git
https://x.blob.core.windows.net/c?sv=2020&sig=ab%2F{}%3D
<password>{}</password>
<smtp-password type="a">{}</smtp-password>
+API_KEY='a b {}'
openssl enc -pass pass:{}
kubectl create secret generic x --from-literal=foo={}
https://hooks.slack.com/services/T0/B0/{}""".splitlines()
LINES = ["  password {}", "   12→DB_KEY=ab {}", 'APP_SECRET="a b\n{} c"']
"""Secrets that are recognised only at the beginning of a line."""
LETTERS = st.text("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789abcdefghkmnpqrstuvwxyz", min_size=10, max_size=24)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("template", [*TEMPLATES, *LINES])
@settings(deadline=None, max_examples=8)
@given(secret=LETTERS.filter(lambda text: not text.isdigit() and text.lower() not in "".join(TEMPLATES).lower()))
def test_a_secret_of_any_value_is_hidden_by_its_context(template: str, secret: str) -> None:
    assert secret not in dumped(template.format(secret), nested=template not in LINES)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "template",
    [
        "dop_v1_" + "{0}" * 8, "sbp_" + "{0}" * 5, "rubygems_" + "{0}" * 6, "shpat_" + "{0}" * 4, "x{0}{0}{0}{0}_y",
        "AGE-SECRET-KEY-1{0}{0}QPZRY9X8", "the key is wJalrXUtnFEMI/K7MDENG/bPxRfiCY{0}EX ok",
        "xfn/ygWyF8PbnGy0AHB7MaC1Z2ZXC8m3{0}\n{0}EFGHIJ\n{0}=\n-----END RSA PRIVATE KEY-----",
        "│ {0} │\n│ {0}== │\n│ -----END PRIVATE KEY----- │",
        "-----BEGIN PRIVATE KEY-----\n{0}\n-----END PRIVATE KEY-----\n",
    ],
)  # fmt: skip
@settings(deadline=None, max_examples=8)
@given(secret=st.text("0123456789ABCDEF", min_size=8, max_size=8).filter(lambda text: not text.isdigit()))
def test_a_key_is_recognised_by_its_form_also_without_its_first_line(template: str, secret: str) -> None:
    assert secret not in dumped(template.format(secret).replace("sbp_" + secret * 5, "sbp_" + (secret * 5).lower()))


@given(st.integers(0, 80), st.sampled_from(["ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8", "api_token='a bc hunter2'"]))
@settings(deadline=None, max_examples=20)
def test_cutting_a_text_leaves_no_part_of_a_secret(before: int, secret: str) -> None:
    written = dumped("k" * before + " " + " ".join([secret] * 100))

    assert "ghp_" not in written
    assert "hunter" not in written


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_from_any_source_is_written(secret: str) -> None:
    assert secret not in dumped(SECRETS[secret].format(secret))


@pytest.mark.thorough
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3000), st.sampled_from(["x", "é", "\0", '"', "\\", "\ud800"]))
def test_a_report_never_exceeds_its_size_limit(times: int, what: str) -> None:
    line = what * 2000
    report = report_of(pane=(line,) * 60, tail=transcripts.Tail(turns=(line,) * 12, tool=line))
    report = replace(report, more={"processes": [{"command": line[:times]}] * times})

    data = crash_report.dump(report)

    assert len(data) <= crash_report.MAX_SIZE
    loaded = crash_report.load(data)
    assert loaded is not None
    assert loaded.ident == report.ident


@pytest.mark.parametrize("event", ["StopFailure", "Notification", "SessionEnd"])
@pytest.mark.parametrize("wrong", [json.loads("[" * 900 + "]" * 900), {"a": {"b": 7}}, 7, None])
def test_any_hook_payload_yields_a_report(event: str, wrong: object) -> None:
    payload = dict.fromkeys(("error", "error_details", "message", "notification_type", "reason", "at"), wrong)

    report = report_of(hooks=((event, payload),), signal=signal.SIGKILL)

    loaded = crash_report.load(crash_report.dump(report))
    assert loaded is not None
    (first,) = loaded.hooks
    assert isinstance(first, dict)
    assert first["event"] == event


def test_reports_are_private_to_the_user_and_old_ones_are_pruned(tmp_path: Path) -> None:
    for number in range(CRASHES.files + 2):
        crash_reports.save(Disk(), tmp_path, report_of(at=NOW + timedelta(seconds=number)))

    files = sorted(tmp_path.iterdir())

    assert len(files) == CRASHES.files
    assert files[-1].name.startswith("20261123T120321Z-dev-1@red")
    assert files[0].name.startswith("20261123T120002Z-")
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


# -- OOM kills ------------------------------------------------------------------------------------------------------


class CgroupFixture:
    """An investigator of agents in made-up cgroups."""

    def __init__(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.counts = {Path("/cg/pane-1.scope"): 0, Path("/cg/session-3.scope"): 0}
        self.places: dict[int, Path] = {}
        processes = Processes(backend())
        paths, scanner = Paths(project), ProcessScanner(processes)
        self._boot = processes.boot
        self._deaths = DeathWatch(processes.backend)
        self._registry = AgentRegistry(paths, processes, scanner, ())
        self.investigator = CrashInvestigator(
            Config(), self._registry, paths, processes, scanner, self._deaths, self.clock
        )
        monkeypatch.setattr(crash_evidence, "memory_kills", self._memory_kills)

    def _memory_kills(self, pid: int, folder: Path | None = None) -> tuple[Path, int]:
        folder = folder or self.places[pid]
        return folder, self.counts[folder]

    def agent(self, pid: int, scope: str = "pane-1") -> ProcessId:
        self.places[pid] = Path(f"/cg/{scope}.scope")
        process = ProcessId(pid, 1, self._boot)
        self.investigator.track(process)
        return process

    async def look(self, *dead: ProcessId) -> list[Verdict]:
        self._deaths.exits.update(dict.fromkeys(dead, signal.SIGKILL))
        agents = {str(process.pid): agent_of(f"dev-{process.pid}", "red", process) for process in dead}
        await self.investigator.collect(agents, self.clock.now(), {})
        crashes = [self.investigator.crash(name) for name in agents]
        return [crash.verdict for crash in crashes if crash is not None]


@pytest.fixture
def cgroups(project: Path, monkeypatch: pytest.MonkeyPatch) -> CgroupFixture:
    return CgroupFixture(project, monkeypatch)


async def test_an_oom_kill_in_the_cgroup_explains_a_death_soon_after_it_but_no_later_one(
    cgroups: CgroupFixture,
) -> None:
    first, second = cgroups.agent(1 << 22), cgroups.agent((1 << 22) + 1, "pane-1")
    cgroups.investigator.release("", second)
    cgroups.counts[Path("/cg/pane-1.scope")] += 1

    assert [verdict.cause for verdict in await cgroups.look(first)] == [CrashCause.OOM]

    cgroups.clock.wait(10)
    await cgroups.look()
    cgroups.clock.wait(10)
    await cgroups.look()
    assert [verdict.cause for verdict in await cgroups.look(first)] == [CrashCause.SIGNAL]


async def test_an_oom_kill_counted_before_its_victim_has_died_is_not_missed(cgroups: CgroupFixture) -> None:
    dying = cgroups.agent(1 << 22)
    cgroups.clock.wait(10)
    cgroups.counts[Path("/cg/pane-1.scope")] += 1
    await cgroups.look()
    cgroups.clock.wait(9)

    assert [verdict.cause for verdict in await cgroups.look(dying)] == [CrashCause.OOM]


async def test_an_oom_kill_in_a_shared_cgroup_is_only_a_second_finding(cgroups: CgroupFixture) -> None:
    alone, *others = cgroups.agent(1 << 22, "session-3"), cgroups.agent(5 << 20), cgroups.agent(6 << 20)
    for folder in cgroups.counts:
        cgroups.counts[folder] += 1

    for verdict in await cgroups.look(alone, others[0]):
        assert verdict.cause is CrashCause.SIGNAL
        assert [other.cause for other in verdict.others] == [CrashCause.OOM]


# -- bursts ---------------------------------------------------------------------------------------------------------


def test_three_deaths_of_one_cause_within_three_minutes_are_a_burst() -> None:
    bursts = CrashBursts()
    for number, at_s in enumerate((0.0, 100.0)):
        bursts.add(CrashCause.API_ERROR, f"dev-{number}", at_s)
    bursts.add(CrashCause.OOM, "dev-9", 100.0)
    assert not bursts.active(179.0)

    bursts.add(CrashCause.API_ERROR, "dev-3", 179.0)

    assert bursts.active(179.0) == {CrashCause.API_ERROR: "3 agents died of one cause (api_error) within 3 minutes"}
    assert bursts.active(359.0)
    assert not bursts.active(360.0)


def test_a_growing_burst_is_reported_again_only_when_it_has_doubled() -> None:
    bursts, sentences = CrashBursts(), set()
    for number in range(12):
        bursts.add(CrashCause.SIGNAL, f"dev-{number}", float(number))
        sentences |= set(bursts.active(float(number)).values())

    assert sorted(sentence.partition(" ")[0] for sentence in sentences) == ["12", "3", "6"]


# -- retries --------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.s = 5000.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.s)

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.s


class FailingTask:
    """A task that fails with one agent after the other."""

    def __init__(self, project: Path) -> None:
        self.clock = Clock()
        self.config = Config(tasks=TasksConfig(max_attempts=3, poison_s=60.0, backoff_s=0.0))
        self.store = Store(project, self.clock)
        self.store.open()
        self.queue = RetryPolicy(self.config, self.store, self.clock, "here")
        self.path = project / "red" / "3.json"
        self.path.parent.mkdir()
        self.letters = self.store.paths.folder / "dead-letters"

    def fails(self, cause: str, hold_s: float | None = None, report: str = "r") -> RetryDecision:
        """Apply the decision after this failure, if it is not too early, and return it."""
        self.path.write_text(json.dumps({"id": "3", "status": "in_progress", "owner": "dev-1"}))
        task = Task(list="red", number="3", status="in_progress", owner="dev-1", path=self.path)
        turn = self.queue.decide(task, cause, hold_s)
        for action in requeue_or_dead_letter(task, turn, self.letters, "it is dead", {"report": report}):
            assert self.store.commit(action, "test") is Outcome.DONE
        return turn


@pytest.fixture
def failing(project: Path) -> Iterator[FailingTask]:
    failing = FailingTask(project)
    yield failing
    failing.store.close()


def test_rate_limits_charge_no_attempt_and_are_never_poison(failing: FailingTask) -> None:
    for _ in range(10):
        assert failing.fails("rate_limited", hold_s=0.0).never is None

    assert failing.store.index.requeues["red/3"] == 0
    assert failing.fails("signal").attempt == 1


def test_no_task_is_requeued_during_the_window(failing: FailingTask) -> None:
    assert failing.fails("rate_limited", hold_s=0.1).wait_s == 0.1
    assert read_task(failing.path)["status"] == "in_progress"

    failing.fails("rate_limited", hold_s=0.0)
    assert given_back(failing.path)


def test_two_crashes_of_one_cause_are_poison_and_of_two_causes_are_not(failing: FailingTask) -> None:
    assert failing.fails("oom").never is None
    assert failing.fails("signal").never is None
    failing.queue.config = msgspec.structs.replace(failing.config, tasks=TasksConfig(max_attempts=9, backoff_s=0.0))

    assert "in the same way (signal)" in str(failing.fails("signal").never)


def test_a_dead_letter_names_the_reports_of_all_its_attempts(failing: FailingTask) -> None:
    failing.fails("oom", report="first")
    failing.fails("rate_limited", hold_s=0.0, report="second")
    failing.fails("signal", report="third")
    failing.fails("tool_hang", report="fourth")

    (letter,) = failing.letters.iterdir()
    assert json.loads(letter.read_text())["evidence"]["reports"] == ["first", "second", "third", "fourth"]


# -- the real daemon --------------------------------------------------------------------------------------------------


def test_a_verdict_without_findings_is_unknown() -> None:
    verdict = classify(Evidence(at=NOW))

    assert verdict == Verdict(cause=CrashCause.UNKNOWN, confidence=0.0, reason="no evidence")
    assert Crash(report=report_of()).cause is None
