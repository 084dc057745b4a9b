"""``agent``: list, register, stop, start, restore, hold, reset and forget agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn

import click

from yolo_supervisor import config as configuration
from yolo_supervisor.actions.agents import Register, held, restart_reset
from yolo_supervisor.actions.agents import forget as forget_action
from yolo_supervisor.cli import restoring, returning
from yolo_supervisor.cli.consent import YES, confirm, refuse_agents
from yolo_supervisor.cli.context import EX_NO, Shared, fail, out, out_json, print_result, printable, shared
from yolo_supervisor.cli.project_view import ProjectView
from yolo_supervisor.cli.restart_text import restart_text
from yolo_supervisor.cli.returning import CannotStart
from yolo_supervisor.cli.stopping import CannotStop, choose_agent, describe_end, end_agent, refusal_to_stop
from yolo_supervisor.config import Config
from yolo_supervisor.formats import claude
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.models import Agent
from yolo_supervisor.store.store import Outcome
from yolo_supervisor.system.processes import RefusalCode
from yolo_supervisor.system.tmux import pane_of


@click.group()
def command() -> None:
    """List, register, stop, start, restore, hold, reset and forget agents.

    \b
    Examples:
      yolo-supervisor agent list
      yolo-supervisor agent stop dev-1
      yolo-supervisor agent hold dev-1
      yolo-supervisor agent start dev-1
      yolo-supervisor agent restore
      yolo-supervisor agent register --pid $$ --role dev --name dev-1 --team my-team
      yolo-supervisor agent forget dev-1@my-team
    """


@command.command("list")
@shared
@click.pass_obj
def list_agents(options: Shared) -> None:
    """List the agents of the project, from every source.

    \b
    Example:
      yolo-supervisor agent list --json
    """
    project = options.project()
    agents = ProjectView(project, _config(options)).agents_json()
    if options.json:
        out_json({"version": 2, "project": str(project), "agents": agents})
        return
    for agent in agents:
        out(
            f"{agent['id']}  {agent['role']}  {agent['state']}  pid {agent['pid'] or '-'}  by {agent['source']}"
            f"  since {agent['since']}"
            + (f"  {restart_text(agent['id'], agent['restart'])}" if agent["restart"] is not None else "")
        )
    if not agents:
        out(f"no agents in {project}")


@command.command("register")
@click.option("--pid", type=int, required=True, help="The agent's process; its identity is recorded now.")
@click.option("--role", required=True, help="Its role: dev, qa, lead, …")
@click.option("--name", help="The name that its tasks have as their owner (default: the role).")
@click.option("--team", help="The task list it works on.")
@shared
@click.pass_obj
def register(options: Shared, pid: int, role: str, name: str | None, team: str | None) -> None:
    """Register an agent that is not discovered.

    \b
    Example:
      yolo-supervisor agent register --pid 4711 --role dev --name dev-1 --team my-team
    """
    if not plugin_agents.is_pid(pid):
        raise click.UsageError(f"--pid {pid}: no process of an agent can have this pid")
    if not role.strip() or (name is not None and not name.strip()):
        raise click.UsageError("--role and --name must not be empty")
    project = options.project()
    view = ProjectView(project, _config(options))
    process = view.processes.identify(pid)
    if process is None:
        fail(EX_NO, f"no process {pid}")
    refusal = view.processes.refusal(process)
    if refusal is not None and refusal.code is not RefusalCode.ANCESTOR:  # a script may register the shell it runs in
        fail(EX_NO, f"process {pid} cannot be registered: {refusal.text}")
    name = name or role
    ident = f"{name}@{team}" if team else name
    try:
        environment = view.processes.backend.environment(pid)
    except OSError:
        environment = {}
    view.store.open()
    agent = Agent(
        id=ident,
        name=name,
        role=plugin_agents.normal_role(role),
        team=team,
        source="registered",
        since=datetime.fromtimestamp(view.processes.backend.started_at(process.started), UTC),
        process=process,
        pid=pid,
        pane=pane_of(environment),
        claude_dir=claude.config_dir(environment),
        home=view.registry.records_folder_id(),
    )
    records = view.registry.records()
    others = {name: other for name, other in records.items() if other.process == process and other.lead is None}
    record = own_files.agent_file(agent)
    action = Register(
        key=ident,
        path=view.store.paths.agents / record,
        agent=agent,
        reason="registered on the command line",
        evidence={"pid": pid, "started": process.started, "boot": process.boot, "role": role, "team": team},
    )
    outcome = view.carry_out(action)
    for name_of_other, other in others.items():  # discovered before: the registration overrides that
        if name_of_other != record:
            _forget(view, name_of_other, other, f"registered as {ident}")
    result = "registered" if outcome is Outcome.DONE else "known"
    document = {"result": result, "id": ident, "pid": pid}
    print_result(options, document, f"{ident}: {result}, process {pid} is watched")


@command.command("forget")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def forget(options: Shared, ident: str) -> None:
    """Stop watching an agent.

    The agent, its tasks and its leases are not touched. An agent that runs is discovered again if its command line or
    its session identifies it.

    \b
    Example:
      yolo-supervisor agent forget dev-1@my-team
    """
    view = ProjectView(options.project(), _config(options))
    agents = {name: agent for name, agent in view.registry.records().items() if agent.id == ident}
    if not agents:
        fail(EX_NO, f"no agent {ident}; see: yolo-supervisor agent list")
    view.store.open()
    for name, agent in agents.items():
        _forget(view, name, agent, "forgotten on the command line")
    print_result(options, {"result": "forgotten", "id": ident}, f"{ident}: forgotten")


@command.command("stop")
@click.argument("name", metavar="NAME")
@YES
@shared
@click.pass_obj
def stop(options: Shared, name: str, yes: bool) -> None:
    """Stop an agent: end its process and all that it has started.

    NAME is the name, the id or the pid of an agent. Its processes get SIGTERM, and SIGKILL after the grace period
    ([processes] grace_s). Its tasks are requeued by the daemon, and no attempt is charged. It is held, too: it is not
    started again by itself until ``agent start`` or ``agent reset``. Exit code 1 if the agent may not be stopped, or
    did not end.

    \b
    Example:
      yolo-supervisor agent stop dev-1@my-team --yes
    """
    view = ProjectView(options.project(), _config(options))
    agent = choose_agent(view, name)
    if isinstance(agent, CannotStop):
        _refuse(options, agent)
    if (cannot := refusal_to_stop(view, agent)) is not None:
        _refuse(options, cannot)
    below = " Its client ends its teammates, too." if agent.is_session and agent.team else ""
    question = f"End {agent.id} (process {agent.pid}) and all that it has started?{below}"
    confirm(view, question, yes)
    view.store.open()
    view.carry_out(held(key=agent.id, reason="stopped by hand"))
    stopped = end_agent(view, agent)
    ending = stopped.ending
    document = {
        "result": "stopped" if stopped.gone else "not_stopped",
        "id": agent.id,
        "pid": agent.pid,
        "terminated": [process.pid for process in ending.terminated],
        "killed": [process.pid for process in ending.killed],
        "survived": [process.pid for process in ending.survived],
        "refused": {str(process.pid): refusal.code for process, refusal in ending.refused.items()},
    }
    print_result(options, document, describe_end(view, agent, stopped))
    if not stopped.gone:
        raise SystemExit(EX_NO)


@command.command("hold")
@click.argument("name", metavar="NAME")
@shared
@click.pass_obj
def hold(options: Shared, name: str) -> None:
    """Forbid further starts of an agent, alive or dead.

    NAME is its name or id. The supervisor does not start it again by itself until ``agent start`` or ``agent reset``,
    whatever [restart] says; this outlasts restarts of the supervisor. A running process goes on.

    \b
    Example:
      yolo-supervisor agent hold dev-1@my-team
    """
    view, ident = _named(options, name)
    state = view.store.index.restarts.get(ident)
    if state is not None and state.held:
        print_result(options, {"result": "known", "id": ident}, f"{ident}: held already")
        return
    view.store.open()
    view.carry_out(held(key=ident, reason="held by hand"))
    until = f"yolo-supervisor agent start {ident}, or agent reset {ident}"
    print_result(options, {"result": "held", "id": ident}, f"{ident}: held, it is not started again until: {until}")


@command.command("reset")
@click.argument("name", metavar="NAME")
@shared
@click.pass_obj
def reset(options: Shared, name: str) -> None:
    """Forget an agent's starts so far, and a hold.

    NAME is its name or id. The next start is the first again. An agent whose recovery is complete is not started by
    that: use agent start. Not accepted from an agent.

    \b
    Example:
      yolo-supervisor agent reset dev-1@my-team
    """
    view, ident = _named(options, name)
    refuse_agents(view)
    if ident not in view.store.index.restarts:
        print_result(options, {"result": "known", "id": ident}, f"{ident}: nothing to reset")
        return
    view.store.open()
    view.carry_out(restart_reset(key=ident, reason="reset by hand"))
    dead = all(agent.id != ident for agent in returning.living(view))
    how = f"; start it now: yolo-supervisor agent start {ident}" if dead else ""
    print_result(options, {"result": "reset", "id": ident}, f"{ident}: its starts count from zero again{how}")


@command.command("start")
@click.argument("name", metavar="NAME")
@shared
@click.pass_obj
def start(options: Shared, name: str) -> None:
    """Start a dead agent again now, with its conversation.

    NAME is its name or id; it may be forgotten since: the last 200 dead agents are remembered for 14 days. Its restart
    policy, a hold and the number of its starts do not matter. There is no start while any process runs its session,
    without its folder or transcript, or in a tmux server inside the service of the running supervisor. It ends a hold.
    Not accepted from an agent.

    Exit code 1 if it is not known, runs already or cannot be started, 69 if its tmux server is gone (agent restore
    starts one) or may not be used, 75 if other agents of this machine were started a moment ago: try again.

    \b
    Example:
      yolo-supervisor agent start dev-1@my-team
    """
    view = ProjectView(options.project(), _config(options))
    ended = returning.choose_dead(view, name)
    if isinstance(ended, CannotStart):
        _refuse(options, ended)
    refuse_agents(view)
    plan = returning.plan_start(view, ended)
    if isinstance(plan, CannotStart):
        _refuse(options, plan)
    view.store.open()
    result = returning.start(view, ended, plan)
    code, text = returning.exit_code(result), returning.describe(ended, result)
    if code and not options.json:
        fail(code, text)
    print_result(options, returning.document(ended, result), text)
    if code:
        raise SystemExit(code)


@command.command("restore")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="Start all that are listed.")
@YES
@shared
@click.pass_obj
def restore(options: Shared, names: tuple[str, ...], everyone: bool, yes: bool) -> None:
    """Start the agents again that went down with their host.

    They were at work when the machine was rebooted or their tmux server ended.

    Without a NAME and --all it lists them, with their tasks: those that were at work when the machine was rebooted, or
    when their tmux server ended. Left out are agents that run again, that a person or the supervisor has ended, or that
    are held.

    Each start is that of agent start, in a tmux session of the old name; it waits for the pace of the machine
    ([restart] host_pause_s). Where the agent's tmux server is gone, one is started: yolo-tmux@agents if that unit is
    installed, else one at the old socket, unless this shell runs in a service. Not accepted from an agent.

    Exit code 1 if an agent is not listed or cannot be started, 69 if there is no tmux server for it, 75 if the pace of
    the machine allowed no start for long: try again.

    \b
    Examples:
      yolo-supervisor agent restore
      yolo-supervisor agent restore dev-1 qa-1@my-team
      yolo-supervisor agent restore --all --yes
    """
    if names and everyone:
        raise click.UsageError("--all is for all agents: name none beside it")
    view = ProjectView(options.project(), _config(options))
    found = restoring.listed(view)
    chosen = restoring.choose(found, names) if names else found
    if isinstance(chosen, CannotStart):
        _refuse(options, chosen)
    if not chosen or not (names or everyone):
        rows = [restoring.row(view, one) for one in chosen]
        _print_lines(options, {"agents": rows}, restoring.describe_list(view, chosen))
        return
    which = ", ".join(one.ended.agent.id for one in chosen)
    confirm(view, f"Start {which} again, with their conversations?", yes)
    view.store.open()
    ends = restoring.restore(view, chosen, lambda text: click.echo(printable(text), err=True))
    _print_lines(options, {"agents": [end.document for end in ends]}, [end.text for end in ends])
    if code := restoring.exit_code(ends):
        raise SystemExit(code)


def _print_lines(options: Shared, document: Mapping[str, object], lines: Sequence[str]) -> None:
    if options.json:
        out_json(document)
        return
    for line in lines:
        out(line)


def _named(options: Shared, name: str) -> tuple[ProjectView, str]:
    """The view of the project, and the id of the agent with this id or name."""
    view = ProjectView(options.project(), _config(options))
    ident = returning.choose_id(view, name)
    if isinstance(ident, CannotStart):
        _refuse(options, ident)
    return view, ident


def _refuse(options: Shared, cannot: CannotStop | CannotStart) -> NoReturn:
    if options.json:
        out_json({"result": "refused", "id": cannot.agent, "code": cannot.code, "reason": cannot.text})
        raise SystemExit(EX_NO)
    fail(EX_NO, cannot.text)


def _config(options: Shared) -> Config:
    return configuration.load(options.project(), options.config)


def _forget(view: ProjectView, record: str, agent: Agent, reason: str) -> None:
    path, lists = view.store.paths.agents / record, view.registry.task_lists
    folders = lists.of(agent, view.registry.snapshot())
    left = {str(folder): [task.id for task in lists.at_work(folder)[0]] for folder in folders}
    evidence = {"left": left} if left else {}
    entries = view.agents.registry_entries(agent)  # without the record nothing says whose pid they name
    view.carry_out(*entries, forget_action(key=agent.id, path=path, reason=reason, evidence=evidence))
