"""Load on ``rairl serve``: latency, throughput and memory with many clients at once, over the loopback interface.

    python benchmarks/serve_load.py models/reward --traces candidates/sft.test.jsonl --clients 8 --seconds 60

The server is a process of its own, started here as a user would. Each client keeps its connection and sends the next
request when the last one is answered; a request holds ``--solutions`` candidate solutions of one problem. Memory is the
server's resident set, read every second once every client has been answered for the first time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from rairl.tracking.pyfunc import EXAMPLE

JSON = {"Content-Type": "application/json"}


@dataclass
class Found:
    """What a run of load found.

    Attributes:
        latencies: of answered requests, in seconds, in the order they ended.
        statuses: how many replies had each HTTP status.
        memory: the server's resident set in bytes, once a second.
        seconds: that the load lasted.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self, solutions: int) -> list[str]:
        """The figures in words, for requests of ``solutions`` each."""
        p50, p95, p99 = (1000 * float(value) for value in np.percentile(self.latencies, [50, 95, 99]))
        rate = len(self.latencies) / self.seconds
        tenth = max(1, len(self.memory) // 10)
        start, end = (float(np.mean(part)) / 2**20 for part in (self.memory[:tenth], self.memory[-tenth:]))
        return [
            f"{len(self.latencies)} requests in {self.seconds:.0f} s: {rate:.1f} requests/s, "
            f"{rate * solutions:.0f} solutions/s",
            f"latency p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, "
            f"longest {1000 * max(self.latencies):.0f} ms",
            "status " + ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items())),
            f"memory {start:.0f} MB at the start, {end:.0f} MB at the end, at most {max(self.memory) / 2**20:.0f} MB",
        ]


def bodies(traces: Path | None, solutions: int) -> list[bytes]:
    """Requests of ``solutions`` candidates of one problem each: from a file of traces, or the registered example."""
    if traces is None:
        return [json.dumps({"inputs": [EXAMPLE] * solutions}).encode()]
    by_problem: dict[str, list[dict[str, str]]] = {}
    for line in traces.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_problem.setdefault(row["problem"], []).append({"problem": row["problem"], "text": row["text"]})
    chosen = [(rows * solutions)[:solutions] for rows in by_problem.values()]
    return [json.dumps({"inputs": rows}).encode() for rows in chosen]


@contextmanager
def server(reward: str, seconds: float = 300) -> Iterator[tuple[int, psutil.Process]]:
    """``rairl serve`` in a process of its own, from the moment that it answers: its port and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, "-m", "rairl", "serve", reward, "--port", str(port)])
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                if ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "GET", "/health") == 200:
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> int:
    """The status of one request; the reply is read to its end."""
    connection.request(method, path, body, JSON if body else {})
    reply = connection.getresponse()
    reply.read()
    return reply.status


def load(port: int, requests: Sequence[bytes], *, clients: int, seconds: float, process: psutil.Process) -> Found:
    """Let ``clients`` ask for ``seconds``, each as fast as it is answered, and watch the server's memory."""
    found, lock = Found(), threading.Lock()
    ready = threading.Barrier(clients + 1)
    stop = threading.Event()
    troubles: list[Exception] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        turn = number
        try:
            ask(connection, "POST", "/invocations", requests[turn % len(requests)])  # not counted
            ready.wait()
            while not stop.is_set():
                turn += clients
                start = time.monotonic()
                status = ask(connection, "POST", "/invocations", requests[turn % len(requests)])
                with lock:
                    found.statuses[status] += 1
                    if status == 200:
                        found.latencies.append(time.monotonic() - start)
        except Exception as error:  # told by the main thread
            troubles.append(error)
            ready.abort()
            stop.set()
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
        start = time.monotonic()
        while not stop.is_set() and time.monotonic() - start < seconds:
            found.memory.append(process.memory_info().rss)
            stop.wait(min(1.0, seconds / 10))
        found.seconds = time.monotonic() - start
    except threading.BrokenBarrierError:
        pass
    stop.set()
    for thread in threads:
        thread.join()
    if troubles:
        raise troubles[0]
    return found


def main() -> None:
    """Start a server, put load on it and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reward", help="folder, models:/name@alias, or owner/name@commit of the hub")
    parser.add_argument("--traces", type=Path, help="candidate solutions as JSON lines")
    parser.add_argument("--solutions", type=int, default=4, help="in a request")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    requests = bodies(args.traces, args.solutions)
    with server(args.reward) as (port, process):
        found = load(port, requests, clients=args.clients, seconds=args.seconds, process=process)
    print(f"{args.clients} clients, {args.solutions} solutions a request")
    print("\n".join(found.lines(args.solutions)))


if __name__ == "__main__":
    main()
