"""The server over a real socket: what it answers, what it refuses, and that no body makes it fail."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rairl.core.params import load_params
from rairl.models.reward import RewardModel, new_reward
from rairl.use.scoring import MAX_SOLUTIONS
from rairl.use.server import MAX_BYTES, MAX_WAITING, application

SOLUTION = {"problem": "How many are 2 and 2?", "steps": ["2 + 2 = 4", "so 4"], "answer": "4"}
JSON = "application/json"


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> RewardModel:
    params = load_params(Path(__file__).with_name("miniature.yaml"))
    return new_reward(tiny_policy, params.reward, seed=0).calibrated(threshold=-0.5).eval()


@pytest.fixture(scope="module")
def port(model: RewardModel) -> Iterator[int]:
    """A server in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(application(model), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


def ask(port: int, body: bytes, kind: str | None = JSON, method: str = "POST", path: str = "/invocations"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Content-Type": kind} if kind is not None else {})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, text


def post(port: int, value: Any) -> tuple[int, dict[str, Any]]:
    status, text = ask(port, json.dumps(value).encode())
    return status, json.loads(text)


def test_single_and_batch(port: int, model: RewardModel) -> None:
    status, reply = post(port, {"inputs": [SOLUTION]})
    assert status == 200
    (verdict,) = reply["predictions"]
    assert set(verdict) == {"step_scores", "score", "first_error", "rank"}
    assert len(verdict["step_scores"]) == 2
    other = {**SOLUTION, "steps": ["2 + 2 = 5", "so 5"]}
    status, reply = post(port, {"inputs": [SOLUTION, other, {"problem": "another", "text": "It is so. Yes."}]})
    assert status == 200 and len(reply["predictions"]) == 3
    assert reply["predictions"][0]["step_scores"] == pytest.approx(verdict["step_scores"], abs=1e-5)


def test_it_is_healthy_and_knows_its_ways(port: int) -> None:
    assert ask(port, b"", None, "GET", "/health") == (200, b'{"status":"ok"}')
    assert ask(port, b"", None, "GET", "/invocations")[0] == 405
    assert ask(port, b"", None, "GET", "/nothing")[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not UTF-8 (byte 0)"),
        (b"[" * 200_000, 400, ("nested too deeply", "not JSON")),
        (b'{"inputs": ' + b"9" * 100_000 + b"}", 400, ("not JSON", 'must be {"inputs"')),
        (b"[]", 400, 'must be {"inputs": [...]}'),
        (b'{"inputs": 1}', 400, 'must be {"inputs": [...]}'),
        (b'{"inputs": [], "params": {}}', 400, 'must be {"inputs": [...]}'),
        (b'{"inputs": []}', 422, "1 to 256 solutions"),
        (b'{"inputs": [7]}', 422, "input 0: the solution:"),
        (b'{"inputs": [{"problem": "p"}]}', 422, "input 0: 'text' or 'steps'"),
        (b'{"inputs": [{"problem": "p", "text": 1}]}', 422, "input 0: text:"),
        (b'{"inputs": [{"problem": "p", "text": "\\ud800"}]}', 422, "half of a surrogate pair"),
        (b'{"inputs": [{"problem": "p", "text": "' + b"1 " * 900 + b'"}]}', 422, "reads at most"),
        (json.dumps({"inputs": [SOLUTION] * (MAX_SOLUTIONS + 1)}).encode(), 422, "not 257"),
        (b" " * (MAX_BYTES + 1), 413, "more than 4000000 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_it_cannot_use_it_refuses_in_words(port: int, body: bytes, status: int, words: str | tuple) -> None:
    got, text = ask(port, body)
    error = json.loads(text)["error"]
    assert got == status, error
    assert any(one in error for one in ([words] if isinstance(words, str) else words)), error


@pytest.mark.parametrize("kind", [None, "", "text/csv", "application/jsonx", "application/json; charset=utf-8"])
def test_the_content_type_is_json(port: int, kind: str | None) -> None:
    status, _ = ask(port, json.dumps({"inputs": [SOLUTION]}).encode(), kind)
    assert status == (200 if kind and kind.startswith("application/json;") else 415)


def test_a_client_that_leaves_or_lies_about_its_length_harms_nobody(port: int) -> None:
    for length in (b"1000", b"-1", b"99999999999999", b"nonsense"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            client.sendall(b"Content-Length: " + length + b"\r\n\r\n{")
    assert post(port, {"inputs": [SOLUTION]})[0] == 200


def test_clients_at_once_get_the_same_answer_and_too_many_are_told_to_wait(port: int) -> None:
    alone = post(port, {"inputs": [SOLUTION]})
    with ThreadPoolExecutor(8) as pool:
        assert all(reply == alone for reply in pool.map(lambda _: post(port, {"inputs": [SOLUTION]}), range(24)))
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(MAX_WAITING)]
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    for client in idle:
        client.sendall(head)
    deadline = time.monotonic() + 30
    while (reply := post(port, {"inputs": [SOLUTION]}))[0] == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reply[0] == 429 and "send this one again later" in reply[1]["error"]
    for client in idle:
        client.close()
    deadline = time.monotonic() + 30
    while (reply := post(port, {"inputs": [SOLUTION]}))[0] == 429 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reply == alone


# --- whatever it is sent ----------------------------------------------------------------------------------------------

odd = st.text(st.characters(categories=("Cs", "Cc", "Cf", "Co", "Cn", "Mn", "Nd", "Lo", "So", "Zs", "Zl")), max_size=30)
marked = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", "\n", "Step 1:", "a. ", "####", "\\boxed{", " 2 = 2"]
    )
).map("".join)
texts = st.one_of(odd, marked, st.text(max_size=30))
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)
solutions = st.fixed_dictionaries(
    {"problem": texts}, optional={"text": texts, "steps": st.lists(texts, max_size=4), "answer": texts}
)
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def survives(port: int, body: bytes) -> None:
    status, text = ask(port, body)
    reply = json.loads(text)
    assert (status == 200 and "predictions" in reply) or (400 <= status < 500 and reply["error"]), (status, reply)


@fuzz
@given(body=st.binary(max_size=300))
def test_no_bytes_make_it_fail(port: int, body: bytes) -> None:
    survives(port, body)


@fuzz
@given(value=values | st.fixed_dictionaries({"inputs": values}))
def test_no_json_makes_it_fail(port: int, value: Any) -> None:
    survives(port, json.dumps(value).encode())


@fuzz
@given(inputs=st.lists(solutions, min_size=1, max_size=3))
def test_no_solution_makes_it_fail(port: int, inputs: list[dict[str, Any]]) -> None:
    survives(port, json.dumps({"inputs": inputs}).encode())
