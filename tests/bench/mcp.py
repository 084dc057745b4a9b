"""The cost of the relay: the same calls to the same server, directly and through the relay, alternately.

python tests/bench/mcp.py [--rounds 5]     (with the program installed beside that python)
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UPSTREAM = [sys.executable, str(Path(__file__).parents[1] / "support" / "upstream.py")]
RELAY = [str(Path(sys.executable).with_name("yolo-supervisor")), "mcp", "--"]
BIG = 10_000_000
IN_FLIGHT = 100
CALLS, FAILING = 1000, 0.2


class Client:
    """A minimal client over pipes."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self.server, self._to, self._from = server, server.stdin, server.stdout
        self._ident = 0

    def send(self, method: str, **params: Any) -> int:
        self._ident += 1
        message = {"jsonrpc": "2.0", "id": self._ident, "method": method, "params": params}
        self._to.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        return self._ident

    def call(self, tool: str, **arguments: Any) -> int:
        return self.send("tools/call", name=tool, arguments=arguments)

    def line(self) -> bytes:
        self._to.flush()
        return self._from.readline()

    def answer(self) -> dict[str, Any]:
        response: dict[str, Any] = json.loads(self.line())
        return response

    def initialize(self) -> None:
        self.send("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "b", "version": "1"})
        assert "result" in self.answer()
        self._to.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        self.send("tools/list")
        self.line()

    def memory_mib(self, what: str) -> float:
        """``VmRSS`` (present) or ``VmHWM`` (peak) of the process that the client has started."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        return int(re.findall(rf"{what}:\s+(\d+) kB", status)[0]) / 1024


@contextmanager
def connected(argv: list[str], project: Path) -> Iterator[Client]:
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(argv, bufsize=2**20, cwd=project, stdin=pipe, stdout=pipe, stderr=nothing) as server:
        client = Client(server)
        yield client
        assert server.stdin is not None
        server.stdin.close()
        server.wait(30)


@contextmanager
def both(project: Path, *options: str) -> Iterator[tuple[Client, Client]]:
    server = [*UPSTREAM, *options]
    with connected(server, project) as direct, connected([*RELAY, *server], project) as relayed:
        direct.initialize()
        relayed.initialize()
        yield direct, relayed


def start_ms(argv: list[str], project: Path) -> float:
    began = time.perf_counter()
    with connected(argv, project) as client:
        client.send("initialize", protocolVersion="2025-11-25", capabilities={})
        client.line()
        return (time.perf_counter() - began) * 1e3


def sequential_ms(client: Client, number: int) -> list[float]:
    took = []
    for _ in range(number):
        began = time.perf_counter()
        client.call("read_echo", text="hi")
        client.line()
        took.append((time.perf_counter() - began) * 1e3)
    return took


def pipelined(client: Client, number: int) -> float:
    """Responses per second with calls sent as fast as they are accepted."""

    def send() -> None:
        for _ in range(number):
            client.call("read_echo", text="hi")
        client._to.flush()

    began = time.perf_counter()
    sending = threading.Thread(target=send)
    sending.start()
    for _ in range(number):
        client._from.readline()
    taken = time.perf_counter() - began
    sending.join()
    return number / taken


def big_ms(client: Client) -> float:
    began = time.perf_counter()
    client.call("read_big", bytes=BIG)
    assert len(client.line()) > BIG
    return (time.perf_counter() - began) * 1e3


def succeeded(client: Client, tool: str, run: int) -> tuple[int, float]:
    """The number of calls answered with a result, and the seconds that all of them took."""
    good, open_, number = 0, 0, 0
    began = time.perf_counter()
    while number < CALLS or open_:
        while number < CALLS and open_ < IN_FLIGHT:
            client.call(tool, text=f"{run} {number}", rate=FAILING)
            number, open_ = number + 1, open_ + 1
        answer = client.answer()
        if "id" in answer:
            good, open_ = good + ("result" in answer), open_ - 1
    return good, time.perf_counter() - began


def percentile(values: list[float], part: float) -> float:
    return statistics.quantiles(values, n=1000)[round(part * 1000) - 1]


def report(what: str, values: Sequence[float], unit: str) -> None:
    direct, relayed = values
    more = f"{relayed - direct:+10.3f} {unit}" if unit == "ms" else ""
    print(f"{what:40} {direct:10.3f} {unit} direct, {relayed:10.3f} {unit} relayed {more}  x {relayed / direct:.2f}")


def medians(pairs: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(values) for values in zip(*pairs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = range(parser.parse_args().rounds)
    with tempfile.TemporaryDirectory() as name:
        project = Path(name).resolve()
        (project / ".yolo-planning").mkdir()
        ways = (UPSTREAM, [*RELAY, *UPSTREAM])
        starts = [[start_ms(argv, project) for argv in ways] for _ in range(2 * len(rounds) + 1)]
        report("start until initialize is answered", medians(starts[1:]), "ms")

        with both(project) as clients:
            times: tuple[list[float], list[float]] = ([], [])
            for _ in rounds:
                for measured, client in zip(times, clients, strict=True):
                    measured += sequential_ms(client, 1000)
            for part in (0.5, 0.99):
                report(f"sequential calls, p{part * 100:g}", [percentile(measured, part) for measured in times], "ms")
            report("pipelined", medians([[pipelined(client, 5000) for client in clients] for _ in rounds]), "/s")
            print(f"{'memory of the relay':40} {clients[1].memory_mib('VmRSS'):10.3f} MiB")

        with both(project) as clients:
            sizes = [[big_ms(client) for client in clients] for _ in rounds]
            report(f"a result of {BIG / 1e6:g} MB", medians(sizes), "ms")
            server, relay = (client.memory_mib("VmHWM") for client in clients)
            print(f"{'  peak memory':40} {server:10.3f} MiB the server, {relay:.3f} MiB the relay")

        for run in rounds:
            for tool in ("again_echo", "once_echo"):
                with both(project, "--seed", str(run)) as clients:
                    (alone, _), (healed, took_s) = (succeeded(client, tool, run) for client in clients)
                what = f"{FAILING:.0%} fail: of {CALLS} {tool}, run {run}"
                print(f"{what:40} {alone:10} succeed direct, {healed:4} relayed, in {took_s:.1f} s")


if __name__ == "__main__":
    main()
