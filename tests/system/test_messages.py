"""Messages to people at tmux before an agent of a left session is ended, and afterwards, once."""

from __future__ import annotations

import signal

import pytest

from support.daemon import QUICK
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import wait_until
from yolo_supervisor.system import tmux as system_tmux


def shown(tmux: PrivateTmux) -> list[str]:
    """The messages that the server has shown, each with the client."""
    lines = tmux("show-messages").splitlines()
    return [line.split(": ", 1)[1] for line in lines if " message: yolo-supervisor" in line]


@pytest.mark.parametrize(
    "name",
    ["plain", "100%", "%H:%M", "#{pid}", "#[fg=red]", "a;b", "; kill-server ;", "$(touch x)", "line\nfeed",
     "\x1b]0;t\x07", "-d", "'\"", "ünï"],
)  # fmt: skip
async def test_a_message_is_shown_as_it_is(tmux: PrivateTmux, name: str) -> None:
    tmux.session("work")
    person = tmux.person("work")
    terminal = tmux.terminal(person)

    assert await system_tmux.show_message(tmux.socket, terminal, f"yolo-supervisor {name}")

    (message,) = shown(tmux)
    expected = "".join(c if c.isprintable() else "?" for c in name)
    assert message.replace("##[", "#[") == f"{terminal} message: yolo-supervisor {expected}."


async def test_a_person_in_the_control_mode_of_a_terminal_is_shown_messages(tmux: PrivateTmux) -> None:
    tmux.session("work")
    person = tmux.person("work", "-CC")

    assert await system_tmux.show_message(tmux.socket, tmux.terminal(person), "yolo-supervisor was here")


async def test_a_message_to_a_client_that_has_left_is_not_shown(tmux: PrivateTmux) -> None:
    tmux.session("work")
    person = tmux.person("work")
    terminal = tmux.terminal(person)
    tmux.leave(person)

    assert not await system_tmux.show_message(tmux.socket, terminal, "yolo-supervisor was here")


async def test_a_server_that_hangs_is_given_up(tmux: PrivateTmux, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_tmux, "LIMIT_S", 0.2)
    tmux.session("work")
    terminal = tmux.terminal(tmux.person("work"))
    tmux.server.send_signal(signal.SIGSTOP)

    assert not await system_tmux.show_message(tmux.socket, terminal, "yolo-supervisor was here")

    tmux.server.send_signal(signal.SIGCONT)


@pytest.mark.thorough
def test_status_counts_down_and_people_on_the_server_see_it_once(team: Team, tmux: PrivateTmux) -> None:
    team.supervise(QUICK.replace("detach_grace_s = 0.5", "detach_grace_s = 3600"))
    team.pane_agent(tmux, "work", "dev")
    tmux.session("other")
    bystander, person = tmux.person("other"), tmux.person("work")
    team.wait_sessions_looked_at()
    (dev,) = team.status()["agents"]
    assert (dev["ends_in_s"], dev["ends_because"]) == (None, None)

    tmux.leave(person)
    wait_until(lambda: shown(tmux), "the countdown to be shown")

    (dev,) = team.status()["agents"]
    assert 0 < dev["ends_in_s"] <= 3600
    assert dev["ends_because"] == "its tmux session work was left by its last person"
    assert "s: its tmux session work was left by its last person" in team.cli("status").stdout
    team.wait_sessions_looked_at()
    (message,) = shown(tmux)
    assert message.startswith(f"{tmux.terminal(bystander)} message: yolo-supervisor will end dev in ")

    tmux.person("work")
    team.wait_sessions_looked_at()
    (dev,) = team.status()["agents"]
    assert dev["ends_in_s"] is None


@pytest.mark.thorough
def test_a_person_who_comes_back_sees_the_ended_agents_once_also_after_a_restart(team: Team, tmux: PrivateTmux) -> None:
    running = team.supervise(QUICK)
    tmux.session("other")
    pid = team.pane_agent(tmux, "work", "dev")
    person = tmux.person("work")
    team.wait_sessions_looked_at()
    tmux.leave(person)
    wait_until(lambda: not team.alive(pid), "the agent of the left session to be ended")
    wait_until(lambda: [end["id"] for end in team.status()["ended_agents"]] == ["dev@red"], "its end to be noted")
    assert "dev@red  was ended at " in team.cli("status").stdout

    running.stop(signal.SIGKILL)
    team.supervise(QUICK)
    back = tmux.person("other")
    terminal = tmux.terminal(back)
    wait_until(lambda: team.status()["ended_agents"] == [], "the end to be shown")
    (message,) = shown(tmux)
    assert message.startswith(f"{terminal} message: yolo-supervisor has ended dev (session work was left, ")

    tmux.leave(back)
    tmux.person("other")
    team.wait_sessions_looked_at()
    assert shown(tmux) == [message]
