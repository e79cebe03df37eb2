"""The load generator counts what happens, and a server under load answers everybody and keeps its memory."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from rairl.core.params import Params
from rairl.core.traces import Trace, write_traces
from rairl.models.reward import new_reward


@pytest.fixture(scope="module")
def tool(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_load", root / "benchmarks" / "serve_load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_load"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_reply_is_counted_and_refusals_have_no_latency(tool: ModuleType) -> None:
    lock, asked = threading.Lock(), Counter[str]()

    class Every3rdBusy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                asked["all"] += 1
                busy = asked["all"] > 4 and asked["all"] % 3 == 0
                asked["busy"] += busy
            self.send_response(429 if busy else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Every3rdBusy)
    threading.Thread(target=server.serve_forever).start()
    try:
        found = tool.load(server.server_port, [b"{}"], clients=4, seconds=0.5, process=psutil.Process(os.getpid()))
    finally:
        server.shutdown()
        server.server_close()
    assert sum(found.statuses.values()) == asked["all"] - 4  # the first of each client is not counted
    assert found.statuses[429] == asked["busy"] > 0
    assert len(found.latencies) == found.statuses[200]
    assert found.memory and found.seconds == pytest.approx(0.5, abs=0.4)


def test_the_figures_by_hand(tool: ModuleType) -> None:
    found = tool.Found(
        latencies=[number / 1000 for number in range(1, 101)],
        statuses=Counter({200: 100, 429: 1}),
        memory=[2**20, 3 * 2**20],
        seconds=10.0,
    )
    assert found.lines(4) == [
        "100 requests in 10 s: 10.0 requests/s, 40 solutions/s",
        "latency p50 50 ms, p95 95 ms, p99 99 ms, longest 100 ms",
        "status 200: 100, 429: 1",
        "memory 1 MB at the start, 3 MB at the end, at most 3 MB",
    ]


def test_requests_hold_candidates_of_one_problem(tool: ModuleType, tmp_path: Path) -> None:
    write_traces(tmp_path / "c.jsonl", [Trace(f"{n}", f"p{n % 2}", f"text {n}") for n in range(6)])
    one, other = (json.loads(body)["inputs"] for body in tool.bodies(tmp_path / "c.jsonl", 4))
    assert [row["text"] for row in one] == ["text 0", "text 2", "text 4", "text 0"]
    assert {row["problem"] for row in other} == {"p1"}
    assert len(json.loads(tool.bodies(None, 3)[0])["inputs"]) == 3


@pytest.mark.slow
def test_a_server_under_load_answers_everybody_and_keeps_its_memory(
    tool: ModuleType, tiny_policy: Path, miniature: Params, tmp_path: Path
) -> None:
    new_reward(tiny_policy, miniature.reward, seed=0).calibrated(threshold=-0.5).save_pretrained(tmp_path / "reward")
    with tool.server(str(tmp_path / "reward")) as (port, process):
        found = tool.load(port, tool.bodies(None, 4), clients=16, seconds=20, process=process)
    assert set(found.statuses) == {200}
    start, end = (sum(part) / len(part) for part in (found.memory[2:6], found.memory[-4:]))
    assert end < 1.1 * start
