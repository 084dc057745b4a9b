"""``flag``: the plugin's feature flags, their failure rates, and their switches."""

from __future__ import annotations

import difflib
from datetime import timedelta
from typing import Any

import click

from yolo_supervisor.actions import flags as flag_actions
from yolo_supervisor.cli.context import EX_DATAERR, EX_NO, Shared, fail, fail_busy, out, out_json, print_result, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.clock import until_next
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.inventory.flag_outcomes import Flag
from yolo_supervisor.models import iso
from yolo_supervisor.policy.failure_rate import Rule
from yolo_supervisor.store.store import Outcome

BARS = "▁▂▃▄▅▆▇█"


@click.group()
def command() -> None:
    """Show and switch the plugin's feature flags.

    A flag that fails too often is disabled by the daemon, and you are alerted.

    \b
    Examples:
      yolo-supervisor flag list
      yolo-supervisor flag record v3_smart_routing error
      yolo-supervisor flag enable v3_smart_routing
    """


def _flag_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("the name of the flag is missing")
    return value


FLAG = click.argument("name", callback=_flag_name)


@command.command("list")
@shared
@click.pass_obj
def list_flags(options: Shared) -> None:
    """Show every flag, its failure rate and the verdict.

    \b
    Example:
      yolo-supervisor flag list --json | jq '.flags[] | select(.verdict == "disabled")'
    """
    view = project_view(options)
    observation = view.flags.observe(view.now)
    next_at = _next_tick(view)
    rows = [
        {
            "name": flag.name,
            "enabled": flag.enabled,
            "errors": flag.errors,
            "samples": flag.samples,
            "error_rate": round(flag.errors / flag.samples, 4) if flag.samples else 0.0,
            "window_s": round(flag.length_s, 1),
            "verdict": _verdict(flag, observation.rule),
            "why": flag.disabled.reason if flag.disabled else None,
            "disabled_at": flag.disabled.at if flag.disabled else None,
            "probation_in_s": _probation_in_s(flag),
            "next_look_at": next_at,
            "rates": [round(rate, 3) for rate in flag.rates],
        }
        for flag in observation.flags
    ]
    if options.json:
        out_json({"version": 2, "project": str(view.project), "next_look_at": next_at, "flags": rows})
        return
    _show(rows)
    out()
    if next_at:
        out(f"next check: {next_at}")
    else:
        out("no daemon is running, so no flag is disabled automatically. Start one: yolo-supervisor run")


def _probation_in_s(flag: Flag) -> float | None:
    if flag.disabled is None or flag.disabled.probation_in_s is None:
        return None
    return round(flag.disabled.probation_in_s, 1)


def _next_tick(view: ProjectView) -> str | None:
    """The time of the daemon's next regular check; a recorded outcome wakes it earlier. None without a daemon."""
    if view.holder() is None:
        return None
    return iso(view.now + timedelta(seconds=until_next(view.config.flags.interval_s)))


def _verdict(flag: Flag, rule: Rule) -> str:
    if not flag.enabled and (flag.disabled is not None or flag.enabled is False):
        return "disabled" if flag.disabled is not None else "off"
    if flag.detection is not None:
        return "failing"
    if flag.samples < rule.min_samples:
        return "too few"
    return "unsure" if flag.errors > rule.limit * flag.samples else "ok"


def _show(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out("there are no feature flags")
        return
    table = [("flag", "", "failed", "rate", "window", "verdict", "")]
    for row in rows:
        state = {True: "on", False: "off", None: "-"}[row["enabled"]]
        bars = "".join(BARS[min(7, int(rate * 8))] for rate in row["rates"])
        failed = f"{row['errors']} of {row['samples']}" if row["samples"] else "-"
        rate = f"{row['error_rate']:.0%}" if row["samples"] else "-"
        window = f"{row['window_s'] / 60:.0f} min" if row["samples"] else "-"
        table.append((row["name"], state, failed, rate, window, row["verdict"], bars))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        out("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if row["verdict"] == "disabled":
            out(f"{row['name']} was disabled at {row['disabled_at']}: {row['why']}")


@command.command("record")
@FLAG
@click.argument("outcome", type=click.Choice(["ok", "error"]))
@shared
@click.pass_obj
def record(options: Shared, name: str, outcome: str) -> None:
    """Record a success or failure, from a script or a hook.

    \b
    Examples:
      yolo-supervisor flag record v3_smart_routing ok
      route || yolo-supervisor flag record v3_smart_routing error
    """
    view = project_view(options)
    view.store.open()
    flag = view.flags.record(name, outcome == "error")
    rate = flag.errors / flag.samples
    document = {
        "result": "recorded", "name": name, "outcome": outcome, "enabled": flag.enabled, "errors": flag.errors,
        "samples": flag.samples, "error_rate": round(rate, 4),
    }  # fmt: skip
    print_result(options, document, f"{name}: {flag.errors} of the last {flag.samples} failed ({rate:.0%})")


@command.command("enable")
@FLAG
@shared
@click.pass_obj
def enable(options: Shared, name: str) -> None:
    """Enable a flag. Its earlier outcomes no longer count.

    \b
    Example:
      yolo-supervisor flag enable v3_smart_routing
    """
    _switch(options, name, on=True)


@command.command("disable")
@FLAG
@shared
@click.pass_obj
def disable(options: Shared, name: str) -> None:
    """Disable a flag. Only its value changes in the plugin's config.json.

    \b
    Example:
      yolo-supervisor flag disable v3_smart_routing
    """
    _switch(options, name, on=False)


def _switch(options: Shared, name: str, on: bool) -> None:
    view = project_view(options)
    path = view.store.paths.plugin_config
    switches = _switches(view)
    if name not in switches:
        near = difflib.get_close_matches(name, [*switches], 1)
        hint = f": did you mean {near[0]}?" if near else ""
        fail(EX_NO, f"{name} is neither true nor false in {path}; nothing was written{hint}")
    view.store.open()
    reason = f"a person {'enabled' if on else 'disabled'} it"
    if switches[name] is not on:
        switch = flag_actions.enable if on else flag_actions.disable
        outcome = view.carry_out(switch(key=name, path=path, reason=reason))
        if outcome is Outcome.STALE and _switches(view).get(name) is not on:
            fail_busy(str(path))
    elif on:
        view.carry_out(flag_actions.found_on(key=name, reason="a person enabled it: earlier outcomes no longer count"))
    notes = _notes({**_switches(view), name: on}, name)
    result = "enabled" if on else "disabled"
    print_result(options, {"result": result, "name": name, "notes": notes}, f"{name}: {result}")
    if not options.json:
        for text in notes:
            click.echo(f"yolo-supervisor: note: {text}", err=True)


def _switches(view: ProjectView) -> dict[str, bool]:
    """The switches in the plugin's configuration; ends the program if it cannot be read."""
    path = view.store.paths.plugin_config
    data = view.store.disk.read(path)
    if data is None:
        fail(EX_NO, f"{path} does not exist; nothing was written")
    if load_object(data) is None:
        fail(EX_DATAERR, f"{path} cannot be read; nothing was written. See: yolo-supervisor state verify")
    return plugin_config.switches(data)


def _notes(switches: dict[str, bool], name: str) -> list[str]:
    """The features that do not work because a flag is enabled and another one, which it needs, is not."""
    return [
        f"{flag} is on while {needed} is off: {consequence}"
        for (flag, needed), consequence in plugin_config.NEEDS.items()
        if name in (flag, needed) and switches.get(flag) and not switches.get(needed)
    ]
