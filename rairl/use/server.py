"""A small web server for one reward model: ``rairl serve``.

``POST /invocations`` takes ``{"inputs": [{"problem": ..., "text": ...}, ...]}`` and answers ``{"predictions": [...]}``,
as ``mlflow models serve`` does for a registered model, so that a client need not know which of them it talks to. Unlike
that one it has limits, and no body makes it fail: what it can't use it refuses with a status of 4xx and a sentence.
``GET /health`` says that the model is loaded.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rairl.core.errors import RairlError
from rairl.use.scoring import Solution, judge, to_traces

if TYPE_CHECKING:
    from rairl.models.reward import RewardModel

logger = logging.getLogger(__name__)

MAX_BYTES = 4_000_000
"""Of a request's body."""
MAX_WAITING = 64
"""Requests that wait while one is scored; the next is told to come again."""


class Refused(Exception):
    """A request that can't be served, with the status that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def application(model: RewardModel) -> Starlette:
    """The server's application around a loaded reward. One request is scored at a time: scoring uses every core."""
    busy = asyncio.Lock()
    waiting = 0

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def invocations(request: Request) -> Response:
        nonlocal waiting
        if waiting >= MAX_WAITING:
            return _refusal(429, f"{MAX_WAITING} requests are waiting; send this one again later", {"Retry-After": "1"})
        waiting += 1
        try:
            solutions = parse(await _body(request), request.headers.get("content-type", ""))
            async with busy:
                verdicts = await asyncio.to_thread(score, model, solutions)
        except Refused as refused:
            return _refusal(refused.status, str(refused))
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            waiting -= 1
        return JSONResponse({"predictions": verdicts})

    return Starlette(routes=[Route("/health", health), Route("/invocations", invocations, methods=["POST"])])


def _refusal(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": why}, status, headers)


async def _body(request: Request) -> bytes:
    """The body, given up as soon as it is too long: what a header says of its length need not be true."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise Refused(413, f"the body has more than {MAX_BYTES} bytes; send fewer solutions at once")
    return bytes(body)


def parse(body: bytes, content_type: str) -> list[Solution]:
    """The solutions in a request.

    Raises:
        Refused: when the body is no JSON object of the form ``{"inputs": [solution, ...]}``; naming the place.
    """
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise Refused(415, f"the body must be application/json, not {content_type[:80]!r}")
    try:
        values: Any = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise Refused(400, "the body is nested too deeply") from error
    except ValueError as error:  # malformed, or a number of thousands of digits
        raise Refused(400, f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict) or set(values) != {"inputs"} or not isinstance(values["inputs"], list):
        raise Refused(400, 'the body must be {"inputs": [...]}, a list of solutions')
    solutions = []
    for number, value in enumerate(values["inputs"]):
        try:
            solutions.append(Solution.model_validate(value))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(str(part)[:40] for part in first["loc"])
            raise Refused(422, f"input {number}: {place or 'the solution'}: {first['msg']}") from error
    return solutions


def score(model: RewardModel, solutions: list[Solution]) -> list[dict[str, Any]]:
    """The verdicts as JSON.

    Raises:
        Refused: when a solution makes no sense or the model can't read it.
    """
    try:
        return [verdict.model_dump() for verdict in judge(model, to_traces(solutions))]
    except RairlError as error:
        raise Refused(422, str(error)) from error


def serve(model: RewardModel, host: str, port: int) -> None:
    """Serve until the process is told to end; requests that are under way are answered."""
    import uvicorn

    uvicorn.run(
        application(model),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
        server_header=False,
    )
