"""Build the images and run the whole pipeline in containers: ``make image-test``. Needs a docker engine.

The pipeline is the one of tests/miniature.yaml, run by kfp's DockerRunner: each task in a container of its own, as an
ordinary user, with an MLflow server beside them as on a cluster. The serving command is tried on the reward it learns.
Options for ``docker build`` go behind ``--``: ``python scripts/image_test.py -- --network host``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def docker(*words: str) -> str:
    """Output of a docker command."""
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()


def build(image: str, options: list[str]) -> None:
    """Build the image; say how long it took and how large it is."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    start = time.monotonic()
    arguments = ["--build-arg", f"COMMIT={commit.stdout.strip()}", *options]
    subprocess.run(["docker", "build", *arguments, "-t", image, str(ROOT)], check=True)
    print(f"built in {time.monotonic() - start:.0f} s; {gigabytes(image):.2f} GB", flush=True)


def gigabytes(image: str) -> float:
    """Size of an image."""
    return int(docker("image", "inspect", "-f", "{{.Size}}", image)) / 1e9


def look(image: str) -> None:
    """The image is an ordinary user's, holds no build tools and no tools of development, and finds the package."""
    run = ["run", "--rm", "--network", "none", image]
    assert docker(*run, "id", "-u") == "1000"
    for program in ("gcc", "git", "pytest", "ruff", "mypy"):
        assert docker(*run, "sh", "-c", f"command -v {program} || echo none") == "none", program
    assert "second_model" in docker(*run, "rairl", "stage", "--help")
    assert docker(*run, "sh", "-c", "echo $RAIRL_COMMIT") != "none"
    assert "valid" in subprocess.run(
        ["docker", *run, "rairl", "params", "--check", "/opt/rairl/rairl/presets/gsm8k-logged.yaml"],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip


def build_server(image: str, options: list[str]) -> None:
    """Build the image of the MLflow server on it; the drivers of deploy/mlflow.yaml are there, and the command is."""
    made = f"{image}-mlflow"
    dockerfile = ["-f", str(ROOT / "deploy" / "mlflow.Dockerfile"), "--build-arg", f"IMAGE={image}"]
    subprocess.run(["docker", "build", *dockerfile, *options, "-t", made, str(ROOT)], check=True)
    run = ["run", "--rm", "--network", "none"]
    assert docker(*run, "--entrypoint", "python", made, "-c", "import boto3, psycopg2; print('fine')") == "fine"
    assert docker(*run, "--entrypoint", "id", made, "-u") == "1000"
    assert "--artifacts-destination" in docker(*run, made, "server", "--help")
    print(f"the server's image: {gigabytes(made):.2f} GB", flush=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], url: str, seconds: float = 120) -> Iterator[None]:
    """A server while it is needed, from the moment that it answers."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)  # with its workers, to be ended together
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(1)
        yield
    finally:
        for way in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, way)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)


def pipeline(image: str, folder: Path, uri: str) -> dict[str, list[Path]]:
    """Run every task in a container."""
    os.environ["RAIRL_IMAGE"] = image
    from pipelines.run import run_local
    from rairl.core.params import load_params

    def runner(local: Any) -> Any:
        # The network is for MLflow on this machine, nothing else is asked. Of such small models more threads only wait.
        return local.DockerRunner(network_mode="host", environment={"OMP_NUM_THREADS": "1"})

    start = time.monotonic()
    found = run_local(load_params(ROOT / "tests/miniature.yaml"), folder, runner=runner, tracking_uri=uri)
    print(f"pipeline in containers: {time.monotonic() - start:.0f} s", flush=True)
    return found


def serve(image: str, reward: str, uri: str) -> None:
    """Serve the champion from the registry and ask it."""
    port = free_port()
    name = f"rairl-serve-{port}"
    run = ["docker", "run", "--rm", "--init", "--name", name, "--network", "host"]
    command = [*run, "-e", f"MLFLOW_TRACKING_URI={uri}", image]
    words = ["rairl", "serve", reward, "--port", str(port)]
    start = time.monotonic()
    try:
        with server([*command, *words], f"http://127.0.0.1:{port}/health"):
            body = {"inputs": [{"problem": "1 + 1", "steps": ["1 + 1 = 2"], "answer": "2"}]}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                [verdict] = json.loads(reply.read())["predictions"]
            print(f"served {time.monotonic() - start:.0f} s after its start", flush=True)
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True)
    assert len(verdict["step_scores"]) == 1, verdict


def main() -> None:
    """Everything in order; the first thing that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="rairl-python:test")
    parser.add_argument("--no-build", action="store_true", help="the images are there already")
    parser.add_argument("options", nargs="*", help="for docker build, behind --")
    args = parser.parse_args()
    if not args.no_build:
        build(args.image, args.options)
        build_server(args.image, args.options)
    look(args.image)
    os.umask(0)  # the containers' user writes into folders that kfp makes here
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as scratch:
        store = [f"sqlite:///{scratch}/mlflow.db", "--artifacts-destination", f"{scratch}/artifacts"]
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", *store]
        with server(command, f"{uri}/health"):
            found = pipeline(args.image, Path(scratch) / "outputs", uri)
            figures = json.loads(found["summary"][0].read_text())
            print(f"{len(figures)} figures; SFT pass@1 {figures['posttrain.sft.pass@1']['value']:.3f}")
            serve(args.image, "models:/rairl-reward@champion", uri)
    print("the image is fine")


if __name__ == "__main__":
    main()
