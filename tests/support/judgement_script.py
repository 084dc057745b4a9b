"""The random script of one scenario in a ``JudgedWorld``."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from support.judgement import CLEAN, SIGNALS, Actor, Doing, JudgedWorld, OnStall

STEPS = 50
PAUSES_S = (0.3, 2.0, 10.0, 20.0, 40.0, 60.0, 150.0, 400.0)
SETTLE_S = 1300.0
"""A time above every limit, in which nothing happens at the end; waiting agents keep their tasks."""


class Script:
    """One scenario, given by a seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        chance = self._chance = random.Random(seed)
        on_stall: OnStall = chance.choice(("notify", "notify", "requeue"))
        self.world = JudgedWorld(
            seed, folder, newest=chance.random() < 0.7, hooks=chance.random() < 0.5, on_stall=on_stall
        )
        self.world.local = chance.random() < 0.9

    def run(self) -> None:
        self.world.run(self._live)

    async def _live(self) -> None:
        world = self.world
        await world.pass_s(1.0)
        for _ in range(self._chance.randrange(2, 5)):
            self._newcomer()
        steps: dict[Callable[[], None], int] = {
            self._newcomer: 6, self._hire: 14, self._begin_task: 34, self._finish_task: 6, self._turn: 40,
            self._work: 14, self._die: 22, self._clear: 4, self._resume: 5, self._end_supervisor: 5,
            self._start_supervisor: 10, self._move_away: 1, self._reboot: 1, self._end_daemon: 1,
        }  # fmt: skip
        for step in self._chance.choices(list(steps), list(steps.values()), k=STEPS):
            step()
            await world.pass_s(self._chance.choice(PAUSES_S))
            if world.wrongs:
                return
        world.start_supervisor()
        await world.pass_s(SETTLE_S)
        for actor in world.living():
            world.count(actor)

    def _session(self) -> Actor | None:
        return self.world.some([actor for actor in self.world.living("lone", "lead") if not actor.unseen])

    def _newcomer(self) -> None:
        world = self.world
        match self._chance.choice(("lone", "lead", "lead", "hosted", "unseen", "unseen team")):
            case "lone":
                world.lone()
            case "lead":
                world.found_team(world.lone())
            case "hosted":
                if world.daemon is None:
                    world.start_daemon()
                world.lone(hosted=True)
            case "unseen":
                world.lone(unseen=True)
            case "unseen team":
                lead = world.lone(unseen=True)
                world.found_team(lead)
                if (mate := world.hire(lead, in_process=False)) is not None:
                    world.begin_task(mate)

    def _hire(self) -> None:
        lead = self.world.some([lead for lead in self.world.living("lead") if lead.team and lead.team.there])
        if lead is None:
            session = self.world.some([a for a in self.world.living("lone") if not a.unseen])
            if session is not None and not session.process.environment:
                self.world.found_team(session)
            return
        mate = self.world.hire(lead, in_process=self._chance.random() < 0.3)
        if mate is not None and self._chance.random() < 0.7:
            self.world.begin_task(mate)

    def _begin_task(self) -> None:
        awake = [actor for actor in self.world.living() if actor.doing is Doing.WORKING]
        idle = [actor for actor in awake if not self.world.papers_of(actor)]
        if (actor := self.world.some(idle or awake)) is not None:
            self.world.begin_task(actor)

    def _finish_task(self) -> None:
        own = [p for p in self.world.papers.values() if p.owner and p.owner.doing is Doing.WORKING and p.owner.alive]
        if (paper := self.world.some(own)) is not None:
            self.world.finish_task(paper)

    def _turn(self) -> None:
        world = self.world
        busy = [actor for actor in world.living() if world.papers_of(actor)]
        actor = world.some(busy or world.living())
        kinds = [doing for doing in Doing if doing is not Doing.BACKGROUND or world.hooks]
        if actor is not None:
            doing = self._chance.choice(kinds)
            if doing is Doing.SUSPENDED and actor.unseen:
                return
            if doing is Doing.BACKGROUND and (actor.unseen or actor.kind == "mate"):
                return
            world.turn(actor, doing)

    def _work(self) -> None:
        waiting = [actor for actor in self.world.living() if actor.doing is not Doing.WORKING]
        if (actor := self.world.some(waiting)) is not None:
            self.world.turn(actor, Doing.WORKING)

    def _die(self) -> None:
        world = self.world
        busy = [actor for actor in world.living() if world.papers_of(actor)]
        actor = world.some(busy if self._chance.random() < 0.8 else world.living())
        if actor is None:
            return
        how = self._chance.choice(list(SIGNALS))
        if actor.doing is Doing.SUSPENDED and how in CLEAN:
            how = "KILL"
        world.die(actor, how)

    def _clear(self) -> None:
        actor = self._session()
        if actor is not None and actor.doing is not Doing.SUSPENDED:
            self.world.clear(actor)

    def _resume(self) -> None:
        """Resume a session after its end, or while it lives."""
        dead = [a for a in self.world.actors if not a.alive and a.kind in ("lone", "lead") and not a.unseen]
        actor = self.world.some(dead) if self._chance.random() < 0.7 else self._session()
        if actor is not None:
            self.world.resume(actor)

    def _start_supervisor(self) -> None:
        self.world.start_supervisor()

    def _end_supervisor(self) -> None:
        self.world.end_supervisor(killed=self._chance.random() < 0.5)

    def _move_away(self) -> None:
        self.world.end_supervisor(killed=True)
        self.world.move_away()

    def _reboot(self) -> None:
        self.world.end_supervisor(killed=True)
        self.world.reboot()

    def _end_daemon(self) -> None:
        self.world.end_daemon()
