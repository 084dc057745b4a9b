"""The delay of one project by another at its worst: the longest pause of the daemon's loop, and deaths healed then.

Each kind of bad input lies in one project; beside it a sound project loses agents. The first line is the sound project
beside an empty one.

python tests/bench/bulkhead.py [--seconds 8] [--where] [KIND ...]
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import anyio

from yolo_supervisor import log
from yolo_supervisor.daemon.daemon import Daemon, Options
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.read import LIMIT
from yolo_supervisor.models import Agent, ProcessId
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.state_folder import enrol
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

SETTINGS = """
[agents]
interval_s = 1.0
[sessions]
interval_s = 1.0
[tasks]
interval_s = 1.0
[leases]
interval_s = 1.0
[state]
interval_s = 1.0
[flags]
interval_s = 1.0
"""

MOST_S = 0.25
"""The longest delay, in seconds, that one project may cause another."""

PROBE_S = 0.005


class Bad:
    """The project with the bad input."""

    def __init__(self, project: Path, claude: Path) -> None:
        self.project = project
        self.planning = project / ".yolo-planning"
        self.own = Paths(project)
        self.claude = claude
        self.change: Callable[[], object] = lambda: None
        """Called twice a second: nothing that is read stays as it was."""


def empty(bad: Bad) -> None:
    """Nothing."""


def many_pids(bad: Bad) -> None:
    """2,000,000 pids in .agent-pids."""
    pids = "".join(f"{pid}\n" for pid in range(2, 2_000_002)).encode()
    bad.own.agent_pids.write_bytes(pids)
    bad.change = bad.own.agent_pids.touch


def quarantine(bad: Bad) -> None:
    """296 MiB in the quarantine, in 20,000 files."""
    bad.own.quarantine.mkdir(parents=True, exist_ok=True)
    for number in range(20_000):
        (bad.own.quarantine / f"config.json-{number:012x}").write_bytes(b"x" * 15_500)


def health(bad: Bad) -> None:
    """20,000 health files."""
    bad.own.agent_health.mkdir()
    for number in range(20_000):
        (bad.own.agent_health / f"dev{number}.json").write_text(json.dumps({"pid": number + 2, "role": "dev"}))


def hooks(bad: Bad) -> None:
    """1,000 hook notes of 60 KB, as many as hooks leave."""
    bad.own.hooks.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        note = f'1:1:sh:1 2:2:sh:1\n{{"session_id": "s{number}", "prompt": "{"x" * 60_000}"}}'
        (bad.own.hooks / f"SessionStart.{number}.{number}-5").write_text(note)


def large_state(bad: Bad) -> None:
    """15 MiB of execution state, sound, replaced twice a second."""
    plans = [{"id": f"{n:06}", "status": "pending", "title": "t" * 20} for n in range(200_000)]
    _replaced(bad, ".execution-state.json", {"phase": 1, "status": "running", "plans": plans})


def large_config(bad: Bad) -> None:
    """12 MiB of config.json, sound, replaced twice a second."""
    _replaced(bad, "config.json", {f"key{n}": n for n in range(600_000)})


def broken_log(bad: Bad) -> None:
    """15 MiB of event log, torn twice a second."""
    path = bad.planning / ".events" / "event-log.jsonl"
    path.parent.mkdir()
    path.write_bytes((b'{"event": "x", "data": "' + b"y" * 200 + b'"}\n') * (15 * 2**20 // 228))

    def tear() -> None:
        with path.open("ab") as file:
            file.write(b'{"half')

    bad.change = tear


def nested_state(bad: Bad) -> None:
    """As much execution state and config.json as is read, of the most expensive kind, replaced twice a second."""
    objects = [{}] * (LIMIT // 5)
    _replaced(bad, ".execution-state.json", {"phase": 1, "status": "running", "plans": [], "x": objects})
    first = bad.change
    _replaced(bad, "config.json", {"x": objects})
    second = bad.change
    bad.change = lambda: (first(), second())


def nested_tasks(bad: Bad) -> None:
    """40 tasks as large as is read, of the most expensive kind, touched twice a second."""
    _team(bad, "bad", 0, 0)
    folder = bad.claude / "tasks" / "bad"
    task = {"subject": "x", "status": "in_progress", "owner": "dev", "blocks": [], "blockedBy": []}
    for number in range(40):
        (folder / f"{number}.json").write_text(json.dumps({**task, "id": str(number), "x": [{}] * (LIMIT // 5)}))
    bad.change = lambda: [path.touch() for path in folder.iterdir()]


def broken_state(bad: Bad) -> None:
    """15 MiB of execution state, torn, replaced twice a second."""
    numbers = iter(range(10**9))
    text = b'{"status": "running", "x": [' + b"[1]," * (3 * 2**20)
    path = bad.planning / ".execution-state.json"
    bad.change = lambda: path.write_bytes(text + str(next(numbers)).encode())


def deep_state(bad: Bad) -> None:
    """15 MiB of opening brackets."""
    (bad.planning / ".execution-state.json").write_bytes(b"[" * (15 * 2**20))
    (bad.planning / "config.json").write_bytes(b'{"a":' * (3 * 2**20))


def _replaced(bad: Bad, name: str, document: dict[str, object]) -> None:
    numbers = iter(range(10**9))
    text = json.dumps(document)[:-1]
    path = bad.planning / name

    def change() -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(f'{text}, "n": {next(numbers)}}}')
        temporary.rename(path)

    change()
    bad.change = change


def huge_files(bad: Bad) -> None:
    """8 GiB, sparse, in each file that is read."""
    names = [
        ".execution-state.json",
        "config.json",
        "STATE.md",
        ".agent-pids",
        ".active-agent",
        ".events/event-log.jsonl",
    ]
    names += [
        ".events/event-log.jsonl",
        ".metrics/run-metrics.jsonl",
        ".locks/a.lease",
        ".locks/.lock",
        ".contracts/1-1.json",
    ]
    for name in (*names, ".agent-health/dev.json", "supervisor.toml"):
        path = bad.planning / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(8 * 2**30)


def devices(bad: Bad) -> None:
    """Links to /proc/self/pagemap, and FIFOs."""
    for name in (".execution-state.json", "config.json", ".agent-pids", ".active-agent"):
        (bad.planning / name).symlink_to("/proc/self/pagemap")
    for name in ("STATE.md", ".active-agent-count"):
        os.mkfifo(bad.planning / name)
    for folder in (".agent-health", ".locks", ".contracts", ".events", ".metrics"):
        (bad.planning / folder).mkdir()
        for number in range(500):
            (bad.planning / folder / f"{number}.json").symlink_to("/proc/self/pagemap")
            os.mkfifo(bad.planning / folder / f"{number}.lease")


def unreadable(bad: Bad) -> None:
    """Files where folders are expected, folders where files are, and loops of links."""
    for name in (".agent-health", ".locks", ".contracts", ".events", "phases"):
        (bad.planning / name).symlink_to(name)
    for name in (".execution-state.json", "config.json", "STATE.md", ".agent-pids"):
        (bad.planning / name).mkdir()


def many_tasks(bad: Bad) -> None:
    """50,000 tasks in 50 lists, a quarter of them in progress."""
    for number in range(50):
        _team(bad, f"bad{number}", 1000, 200)


def large_tasks(bad: Bad) -> None:
    """60 tasks of 4 MiB."""
    _team(bad, "bad", 60, 4 * 2**20)
    folder = bad.claude / "tasks" / "bad"
    bad.change = lambda: [path.touch() for path in folder.iterdir()]


def _team(bad: Bad, name: str, count: int, size: int) -> None:
    folder = bad.claude / "teams" / name
    folder.mkdir(parents=True)
    members = [{"agentId": f"dev@{name}", "name": "dev", "cwd": str(bad.project), "backendType": "tmux"}]
    (folder / "config.json").write_text(json.dumps({"name": name, "members": members}))
    tasks = bad.claude / "tasks" / name
    tasks.mkdir(parents=True)
    for number in range(1, count + 1):
        status = {"status": "in_progress", "owner": f"dev{number}"} if number % 4 == 0 else {"status": "pending"}
        task = {"id": str(number), "subject": "x", "description": "d" * size, "blocks": [], "blockedBy": [], **status}
        (tasks / f"{number}.json").write_text(json.dumps(task))


def many_leases(bad: Bad) -> None:
    """10,000 leases that have run out, and 10,000 contracts."""
    (bad.planning / ".locks").mkdir()
    (bad.planning / ".contracts").mkdir()
    for number in range(10_000):
        data = plugin_leases.dump_lease(f"r{number}", "dev", datetime(2026, 1, 1, tzinfo=UTC), 60)
        (bad.planning / ".locks" / f"r{number}.lease").write_bytes(data)
        (bad.planning / ".contracts" / f"1-{number}.json").write_text(json.dumps({"phase": 1, "plan": number}))


def large_log(bad: Bad) -> None:
    """256 MiB of event log that grows, and of metrics; a line of 64 MiB."""
    line = json.dumps({"event": "task_completed_confirmed", "data": {"x": "y" * 200}}).encode() + b"\n"
    for name in (".events/event-log.jsonl", ".metrics/run-metrics.jsonl"):
        path = bad.planning / name
        path.parent.mkdir()
        with path.open("wb") as file:
            for _ in range(256):
                file.write(line * (2**20 // len(line)))
            file.write(b"x" * (64 * 2**20) + b"\n")
    events = bad.planning / ".events/event-log.jsonl"

    def grow() -> None:
        with events.open("ab") as file:
            file.write(line * 10_000)

    bad.change = grow


def dead_records(bad: Bad) -> None:
    """1,000 records of agents that died while no supervisor ran, each with a task."""
    bad.own.agents.mkdir(parents=True, exist_ok=True)
    _team(bad, "bad", 0, 0)
    boot = Processes(backend()).boot
    for number in range(1000):
        process = ProcessId(4_000_000 + number, 5, boot)
        agent = Agent(id=f"dev{number}@bad", name=f"dev{number}", role="dev", team="bad", source="process",
                      since=datetime(2026, 1, 1, tzinfo=UTC), process=process, pid=process.pid, claude_dir=bad.claude,
                      home=bad.own.agents.stat().st_ino)  # fmt: skip
        (bad.own.agents / own_files.agent_file(agent)).write_bytes(own_files.dump_agent(agent))
        task = {"id": str(number), "subject": "x", "description": "", "status": "in_progress",
                "owner": f"dev{number}", "blocks": [], "blockedBy": []}  # fmt: skip
        (bad.claude / "tasks" / "bad" / f"{number}.json").write_text(json.dumps(task))


def transcripts(bad: Bad) -> None:
    """2,000 transcripts, one of 512 MiB with lines of 32 MiB, and 3,000 session files."""
    folder = bad.claude / "projects" / str(bad.project).replace("/", "-").replace(".", "-")
    folder.mkdir(parents=True)
    _team(bad, "bad", 8, 10)
    for number in range(2000):
        record = {"type": "assistant", "agentName": f"dev{number % 8}", "teamName": "bad", "message": {"content": []}}
        (folder / f"s{number}.jsonl").write_text(json.dumps(record) + "\n")
    with (folder / "large.jsonl").open("wb") as file:
        for _ in range(16):
            file.write(b'{"agentName": "dev4", "teamName": "bad", "x": "' + b"y" * (32 * 2**20) + b'"}\n')
    (bad.claude / "sessions").mkdir()
    for number in range(3000):
        session = {"pid": 4_000_000 + number, "sessionId": f"s{number}", "cwd": str(bad.project), "procStart": "1"}
        (bad.claude / "sessions" / f"{4_000_000 + number}.json").write_text(json.dumps(session))


def lost_sessions(bad: Bad) -> None:
    """3,000 files of killed sessions of this boot, each with a task list and a task in progress of another."""
    machine, _, namespace = Processes(backend()).boot.split("/", 2)
    _team(bad, "bad", 8, 10)
    (bad.claude / "sessions").mkdir()
    for number in range(3000):
        pid, ident = 4_000_000 + number, f"{number:08}-0000"
        session = {"pid": pid, "sessionId": ident, "cwd": str(bad.project), "procStart": "1",
                   "pidDomain": f"linux:{machine}:pid:[{namespace}]"}  # fmt: skip
        (bad.claude / "sessions" / f"{pid}.json").write_text(json.dumps(session))
        (bad.claude / "tasks" / ident).mkdir()
        task = {"id": "1", "subject": "x", "description": "", "status": "in_progress", "owner": "x", "blocks": [],
                "blockedBy": []}  # fmt: skip
        (bad.claude / "tasks" / ident / "1.json").write_text(json.dumps(task))


def work_trees(bad: Bad) -> None:
    """2,000 linked work trees."""
    _work_trees(bad, 2000)


def few_work_trees(bad: Bad) -> None:
    """299 linked work trees, as many as are looked through, each with three locks of git's that were left."""
    _work_trees(bad, 299)
    for folder in (bad.project / ".git", *(bad.project / ".git" / "worktrees").iterdir()):
        for name in ("index.lock", "HEAD.lock", "packed-refs.lock"):
            (folder / name).touch()


def _work_trees(bad: Bad, count: int) -> None:
    git = bad.project / ".git"
    for name in ("objects", "refs", "worktrees"):
        (git / name).mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    for number in range(count):
        tree, admin = bad.project.parent / f"tree{number}", git / "worktrees" / f"tree{number}"
        (tree / ".yolo-planning").mkdir(parents=True)
        admin.mkdir()
        (tree / ".git").write_text(f"gitdir: {admin}\n")
        (admin / "gitdir").write_text(f"{tree}/.git\n")
        (admin / "commondir").write_text("../..\n")
        (admin / "HEAD").write_text("ref: refs/heads/main\n")


def left_locks(bad: Bad) -> None:
    """10,000 locks of the plugin whose owners are unknown."""
    (bad.planning / ".locks").mkdir()
    for number in range(10_000):
        data = plugin_leases.dump_lease(f"r{number}", "dev", datetime(2026, 1, 1, tzinfo=UTC), 60)
        (bad.planning / ".locks" / f"r{number}.lock").write_bytes(data)


def phases(bad: Bad) -> None:
    """3,000 plans in 100 phases, and no execution state that can be read."""
    (bad.planning / ".execution-state.json").write_text("{torn")
    for phase in range(1, 101):
        folder = bad.planning / "phases" / f"{phase:02}-x"
        folder.mkdir(parents=True)
        for plan in range(1, 31):
            (folder / f"{phase:02}-{plan:02}-PLAN.md").write_text(
                f"---\nphase: {phase}\nplan: {plan}\n---\n" + "x" * 5000
            )
    bad.change = (bad.planning / ".execution-state.json").touch


def journal(bad: Bad) -> None:
    """A journal of 60 MiB, whose last lines have the wrong shape."""
    bad.own.folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"n": 1, "kind": "task", "x": "y" * 500}).encode() + b"\n"
    bad.own.journal.write_bytes(line * (60 * 2**20 // len(line)) + b'{"n": []}\n')


KINDS = {
    kind.__name__: kind
    for kind in (
        empty, many_pids, quarantine, health, hooks, large_state, large_config, nested_state, nested_tasks,
        broken_log, broken_state, deep_state, huge_files,
        devices, unreadable, many_tasks, large_tasks, many_leases, large_log, dead_records, transcripts,
        lost_sessions, work_trees, few_work_trees, left_locks, phases, journal,
    )
}  # fmt: skip


class Sampler(threading.Thread):
    """Says where the loop is when it has not turned for long."""

    def __init__(self, turned: list[float]) -> None:
        super().__init__(daemon=True)
        self._turned = turned
        self._main = threading.main_thread().ident
        self.found: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        while True:
            time.sleep(0.02)
            if time.monotonic() - self._turned[0] > MOST_S / 2:
                frames = traceback.extract_stack(sys._current_frames()[self._main or 0])
                ours = [f for f in frames if "yolo_supervisor" in f.filename]
                self.found[" > ".join(f"{Path(f.filename).stem}.{f.name}:{f.lineno}" for f in ours[-5:])] += 1


def measure(kind: str, seconds: float, *, where: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        home = folder / "home"
        claude = home / ".claude"
        claude.mkdir(parents=True)
        os.environ.update(HOME=str(home), XDG_STATE_HOME=str(home / "state"), XDG_CONFIG_HOME=str(home / ".config"))
        os.environ.pop("CLAUDE_CONFIG_DIR", None)
        bad, good = folder / "bad", folder / "good"
        for project in (bad, good):
            (project / ".yolo-planning").mkdir(parents=True)
            (project / ".yolo-planning" / "supervisor.toml").write_text(SETTINGS)
            enrol(Disk(), Paths(project), 10.0)
            Paths(project).trusted.write_text(SETTINGS)
        made = Bad(bad, claude)
        KINDS[kind](made)
        turned = [time.monotonic()]
        sampler = Sampler(turned)
        if where:
            sampler.start()
        pauses: list[tuple[float, float]] = []
        heals: list[float] = []
        daemon = Daemon(Options((bad, good)))

        async def probe() -> None:
            while True:
                turned[0], cpu = time.monotonic(), time.thread_time()
                await anyio.sleep(PROBE_S)
                pauses.append((time.monotonic() - turned[0] - PROBE_S, time.thread_time() - cpu))

        async def end() -> None:
            while not all(project.runner or project.unavailable for project in daemon.projects.values()):
                await anyio.sleep(0.01)
            pauses.clear()
            kills = threading.Thread(target=kill_agents, args=(good, claude, seconds, made.change, heals))
            kills.start()
            while kills.is_alive():
                await anyio.sleep(0.1)
            daemon._stopping.set()

        async def run() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(probe)
                tasks.start_soon(end)
                await daemon.run()
                tasks.cancel_scope.cancel()

        anyio.run(run)
        errors = {project.path.name: project.unavailable for project in daemon.projects.values() if project.unavailable}
        worst = {"pause": max(pause for pause, _ in pauses), "cpu": max(cpu for _, cpu in pauses)}
        return {**worst, "heals": heals, "errors": errors, "where": sampler.found.most_common(6)}


def kill_agents(project: Path, claude: Path, seconds: float, change: Callable[[], object], heals: list[float]) -> None:
    """Kill agents of the sound project one after the other."""
    until = time.monotonic() + seconds
    number = 0
    changed = 0.0
    (claude / "tasks" / "good").mkdir(parents=True)
    while time.monotonic() < until:
        number += 1
        path = claude / "tasks" / "good" / f"{number}.json"
        task = {"id": str(number), "subject": "x", "description": "x", "status": "in_progress", "blocks": [],
                "blockedBy": [], "owner": f"dev-{number}"}  # fmt: skip
        path.write_text(json.dumps(task))
        words = ["sh", "-c", "read x", "sh", "--agent-id", f"dev-{number}@good", "--agent-name", f"dev-{number}",
                 "--team-name", "good"]  # fmt: skip
        child = subprocess.Popen(words, cwd=project, stdin=subprocess.PIPE)
        records = Paths(project).agents
        while time.monotonic() < until + 60 and not any(records.glob(f"*~{child.pid}-*")):
            time.sleep(0.02)
            if time.monotonic() - changed > 0.5:
                changed = time.monotonic()
                change()
        os.kill(child.pid, signal.SIGKILL)
        killed = time.monotonic()
        child.communicate()
        while b'"pending"' not in path.read_bytes() and time.monotonic() < killed + 30:
            time.sleep(0.002)
        heals.append(time.monotonic() - killed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--where", action="store_true", help="say where the loop was")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    log.configure("json", None)
    if options.one:
        print(json.dumps(measure(options.kinds[0], options.seconds, where=options.where)))
        return
    idle = 0.0
    for kind in dict.fromkeys(("empty", *options.kinds)):
        words = [sys.executable, __file__, kind, "--one", "--seconds", str(options.seconds)]
        done = subprocess.run(
            [*words, *(["--where"] if options.where else [])], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            print(f"{kind}: {done.stderr[-2000:]}")
            continue
        found = json.loads(done.stdout)
        heals = sorted(found["heals"])
        idle = idle or heals[-1]
        pause, cpu, worst = (round(1000 * value) for value in (found["pause"], found["cpu"], heals[-1]))
        print(
            f"{kind:<13} longest turn {cpu:5} ms of processor, {pause:5} ms; {len(heals):2} healed after {worst:5} ms "
            f"at most ({1000 * (heals[-1] - idle):+5.0f}): {KINDS[kind].__doc__} {found['errors'] or ''}"
        )
        for place, times in found["where"] if found["cpu"] > MOST_S / 2 else ():
            print(f"    {times:4} {place}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
