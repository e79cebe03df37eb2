"""Submit the compiled pipeline to Kubeflow Pipelines and ask for a run's state: kfp's client, with errors that help."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rairl.core.errors import RairlError

TIMEOUT = 15.0
"""Seconds until a server that does not answer counts as unreachable."""


class Status(NamedTuple):
    """State of a run, of its tasks, and what went wrong."""

    state: str
    tasks: dict[str, str]
    error: str


class Endpoint:
    """A Kubeflow Pipelines server.

    Args:
        url: its address, such as ``http://localhost:8080`` behind ``kubectl port-forward``.
        token: for a server that asks who is there; a bearer token.
        namespace: of a multi-user installation.

    Raises:
        RairlError: when it can't be reached, wants another token, or is no such server.
    """

    def __init__(self, url: str, token: str | None = None, namespace: str | None = None) -> None:
        self.url, self.token, self.namespace = url.rstrip("/"), token, namespace
        self._probe()
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kfp

            self._client = kfp.Client(host=self.url, existing_token=token, namespace=namespace or "kubeflow")

    def _probe(self) -> None:
        """Ask once before kfp's client does: it tries five times and prints a traceback each time."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            request = urllib.request.Request(f"{self.url}/apis/v2beta1/healthz", headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise self._refusal(error.code, str(error.reason)) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RairlError(
                f"{self.url} answers with a page, not with an API; it may be a login page: give --token-file"
            ) from error
        except (OSError, ValueError) as error:
            raise RairlError(
                f"{self.url} can't be reached ({getattr(error, 'reason', error)}); check --endpoint and the way there, "
                "for instance: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
            ) from error

    def _refusal(self, code: int, reason: str) -> RairlError:
        if code in (401, 403):
            return RairlError(f"{self.url} refuses this user ({code} {reason}); give a valid token with --token-file")
        if code == 404:
            return RairlError(
                f"{self.url} does not know that (404 {reason}): no such run, or no Kubeflow Pipelines 2 at this address"
            )
        return RairlError(f"{self.url} refuses the request ({code}): {reason}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import kfp_server_api
        import urllib3

        try:
            yield
        except kfp_server_api.ApiException as error:
            raise self._refusal(error.status, _message(error.body) or str(error.reason)) from error
        except urllib3.exceptions.HTTPError as error:
            raise RairlError(f"{self.url} can't be reached any more: {error}") from error

    def submit(
        self, package: Path, arguments: dict[str, Any], *, name: str, experiment: str, service_account: str | None
    ) -> str:
        """Start a run of a compiled pipeline; returns its id.

        Raises:
            RairlError: for a file that is no compiled pipeline, and for whatever the server refuses.
        """
        _require_pipeline(package)
        with self._explained():
            return self._client.create_run_from_pipeline_package(
                str(package),
                arguments,
                run_name=name,
                experiment_name=experiment,
                namespace=self.namespace,
                service_account=service_account,
            ).run_id

    def page(self, run_id: str) -> str:
        """Address of a run's page."""
        return f"{self.url}/#/runs/details/{run_id}"

    def status(self, run_id: str) -> Status:
        """State of a run and its tasks.

        Raises:
            RairlError: for a run that the server does not know.
        """
        with self._explained():
            run = self._client.get_run(run_id)
        details = run.run_details.task_details if run.run_details else None
        tasks = {task.display_name: task.state for task in details or [] if task.display_name}
        return Status(run.state, tasks, run.error.message if run.error else "")


def _require_pipeline(package: Path) -> None:
    from kfp import components

    if not package.is_file():
        raise RairlError(f"{package} does not exist; write it with `rairl pipeline compile --output {package}`")
    try:
        components.load_component_from_file(str(package))
    except Exception as error:  # kfp lets through what yaml and protobuf raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RairlError(f"{package} is no compiled pipeline ({reason}); compile it again") from error


def _message(body: Any) -> str:
    """What Kubeflow Pipelines says is wrong."""
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return ""
