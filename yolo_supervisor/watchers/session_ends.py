"""Countdowns before agents of a left session are ended, and what people at their tmux clients are shown of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby

import msgspec

from yolo_supervisor.actions.agents import ShowMessage
from yolo_supervisor.formats.session_ends import Clients, Countdown, EndedAgent, SessionEnds
from yolo_supervisor.models import ProcessId, from_iso, iso

KEPT_FOR = timedelta(days=3)
"""The longest wait of an ended agent for a person who is shown its end."""

KEPT = 100
"""The number of ended agents, the newest, that wait for that."""

NAMED = 3
"""The number of agents that a message names: a client shows one line."""

SAME_S = 1.0
"""Two looks at one countdown differ by less: then the time of the first one stands."""


def follow(
    before: SessionEnds,
    countdowns: Sequence[Countdown],
    clients: Mapping[str, Clients],
    is_dead: Callable[[ProcessId], bool],
    now: datetime,
) -> SessionEnds:
    """The ends after a look that shows these countdowns, and these clients on the servers that have answered.

    An agent that is not counted down any more was spared, or ended if that was decided and its process is dead.
    """
    known = {countdown.process: countdown for countdown in before.countdowns}
    still = tuple(_with_clients(_steady(countdown, known.get(countdown.process)), clients) for countdown in countdowns)
    counted = {countdown.process for countdown in countdowns}
    gone = [c for c in before.countdowns if c.ending and c.process not in counted and is_dead(c.process)]
    over = [_ended(countdown, now) for countdown in gone]
    ended = [_with_clients_left(end, clients) for end in (*before.ended, *over) if now - from_iso(end.at) < KEPT_FOR]
    return SessionEnds(countdowns=still, ended=tuple(ended[-KEPT:]))


def _steady(countdown: Countdown, before: Countdown | None) -> Countdown:
    if before is None:
        return countdown
    due_s = before.due_s if abs(before.due_s - countdown.due_s) < SAME_S else countdown.due_s
    ending = countdown.ending or before.ending
    return msgspec.structs.replace(countdown, due_s=due_s, ending=ending, clients=before.clients)


def _with_clients(countdown: Countdown, clients: Mapping[str, Clients]) -> Countdown:
    there = clients.get(countdown.socket)
    return countdown if there is None else msgspec.structs.replace(countdown, clients=frozenset(there))


def _with_clients_left(end: EndedAgent, clients: Mapping[str, Clients]) -> EndedAgent:
    """The pid of a client that has left may be given to the next one."""
    there = clients.get(end.socket)
    return end if there is None else msgspec.structs.replace(end, clients=end.clients & there.keys())


def _ended(countdown: Countdown, now: datetime) -> EndedAgent:
    return EndedAgent(
        agent=countdown.agent,
        name=countdown.name,
        socket=countdown.socket,
        session=countdown.session,
        reason=countdown.reason,
        at=iso(now),
        clients=countdown.clients,
    )


# -- messages ---------------------------------------------------------------------------------------------------------


def messages(ends: SessionEnds, clients: Mapping[str, Clients], now_s: float) -> Iterator[ShowMessage]:
    """Messages for people at tmux: each countdown, and once the ended agents of a server that they have come to since.

    ``now_s`` is monotonic.
    """
    for (socket, session), group in groupby(sorted(ends.countdowns, key=_place), key=_place):
        begun = list(group)
        for client in clients.get(socket, {}).values():
            yield _message(begun, socket, session, client, "countdown", _countdown_text(begun, session, now_s))
    for socket, there in clients.items():
        ended = [end for end in ends.ended if end.socket == socket]
        if not ended:
            continue
        new = there.keys() - frozenset().union(*(end.clients for end in ended))
        for pid in sorted(new):
            session = ended[-1].session or ""
            yield _message(ended, socket, session, there[pid], "ended", _ended_text(ended))


def _place(end: Countdown | EndedAgent) -> tuple[str, str]:
    return end.socket, end.session or ""


def _message(
    of: Sequence[Countdown] | Sequence[EndedAgent], socket: str, session: str, client: str, about: str, text: str
) -> ShowMessage:
    agents = [end.agent for end in of]
    return ShowMessage(
        key=session or "tmux",
        reason=text,
        evidence={"agents": agents, "tmux": socket, "client": client},
        socket=socket,
        client=client,
        about=about,
        agents=tuple(agents),
    )


def _countdown_text(countdowns: Sequence[Countdown], session: str, now_s: float) -> str:
    left_s = max(0.0, min(countdown.due_s for countdown in countdowns) - now_s)
    why = f"session {session} was left. Attach to it to stop this" if session else "the tmux session is gone"
    return f"yolo-supervisor will end {_named(countdowns)} in {left_s:.0f} s: {why}"


def _ended_text(ended: Sequence[EndedAgent]) -> str:
    parts = []
    for (_, session), group in groupby(sorted(ended, key=_place), key=_place):
        ends = list(group)
        why = f"session {session} was left" if session else "the tmux session was gone"
        parts.append(f"{_named(ends)} ({why}, {from_iso(ends[-1].at).astimezone():%H:%M})")
    return f"yolo-supervisor has ended {'; '.join(parts)}"


def _named(ends: Iterable[Countdown | EndedAgent]) -> str:
    names = [end.name for end in ends]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
