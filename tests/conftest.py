"""What every test may rely on: no network, the embedded tracking store, one thread of arithmetic."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from hypothesis import settings

from rairl.core.params import Params, parse_params
from rairl.core.traces import Trace
from rairl.models.calibration import Calibration, TraceScore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor
    from transformers import PreTrainedModel

    from rairl.models.reads import Scores

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ[name] = value
os.environ.pop("MLFLOW_TRACKING_URI", None)

# `make test` tries a few examples of each property, `make test-all` all that the property asks for.
settings.register_profile("full")
settings.register_profile("quick", max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "full"))


def examples(count: int) -> settings:
    """At most this many examples of a property, fewer in the quick profile; as long as each may take."""
    return settings(max_examples=min(count, settings.default.max_examples), deadline=None)


LONGEST = ("test_dvc.py", "test_logged_run.py", "test_tracking.py", "test_report.py", "test_trainjob.py")
"""Files of a minute or more that come late in the alphabet, and the longest: first, or a worker would end with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (with ``--no-loadscope-reorder``), the others as they were."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project; the test is skipped where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    return DATA


@pytest.fixture
def miniature() -> Params:
    """Parameters so small that the whole pipeline runs in a minute."""
    return parse_params(yaml.safe_load((ROOT / "tests" / "miniature.yaml").read_text()), source="tests/miniature.yaml")


def tuned(params: Params, **sections: dict[str, object]) -> Params:
    """The parameters with some keys of some sections changed."""
    values = params.model_dump()
    return parse_params({**values, **{name: {**values[name], **changes} for name, changes in sections.items()}})


def spied_rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """The rates of all optimiser steps from now on, by the kind of model."""
    from rairl.learn.learner import Learner

    seen: dict[str, list[float]] = defaultdict(list)
    step = Learner.step

    def noted(self: Learner, rate: float) -> float:
        seen[type(self.model).__name__].append(rate)
        return step(self, rate)

    monkeypatch.setattr(Learner, "step", noted)
    return seen


@pytest.fixture(scope="session")
def first_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tracking store made by a stage in a fresh project (it takes MLflow seconds), and what the console showed."""
    folder = tmp_path_factory.mktemp("first")
    code = (
        "import sys\n"
        "from rairl.tracking.run import stage_run; from rairl.core.params import load_params\n"
        "params = load_params(sys.argv[1]); tracking = params.tracking.model_copy(update={'experiment': 'first'})\n"
        "params = params.model_copy(update={'tracking': tracking})\n"
        "with stage_run('sft', params) as run: run.log({'loss': 1.0}, 0)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests" / "miniature.yaml")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return folder / "mlflow.db", done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path, first_store: tuple[Path, str]) -> Path:
    """An empty project folder with a tracking store that is ready and holds no run of the experiment ``rairl``."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copyfile(first_store[0], folder / "mlflow.db")
    return folder


@pytest.fixture
def client(project: Path) -> MlflowClient:
    """Of the project's tracking store."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def until(true: Callable[[], bool]) -> None:
    """Wait until something has come true that another process does."""
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise TimeoutError("not after a minute")


def in_environment(clone: Path) -> dict[str, str]:
    """Environment of a command in ``clone``: its own copy of the package, this environment's programs."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(clone), "PATH": path}


def make_clone(folder: Path) -> Path:
    """A repository with the project's files as they are now, committed, and the miniature parameters."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file() and name not in ("dvc.lock", "metrics.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    shutil.copyfile(ROOT / "tests" / "miniature.yaml", folder / "params.yaml")
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "clone"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the whole pipeline has run at miniature size, and DVC knows it as after ``dvc repro``.

    The stages run in this process: a process each would import torch and MLflow ten times. ``test_dvc`` holds the two
    equal, in a slow test.
    """
    from rairl.cli.stages import inputs
    from rairl.core.params import load_params
    from rairl.stages.layout import STAGES
    from rairl.stages.runner import run_stage

    clone = make_clone(tmp_path_factory.mktemp("clone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        inputs(Path("params.yaml"), Path("inputs.json"))
        for name in STAGES:
            run_stage(name, load_params())
    done = subprocess.run(["dvc", "commit", "-f"], cwd=clone, env=in_environment(clone), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return clone


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny causal model with random weights and a tokenizer trained in code."""
    from rairl.core.params import load_params
    from rairl.datasets import arithmetic
    from rairl.models.base import new_model, train_tokenizer
    from rairl.models.policy import save_policy

    params = load_params(ROOT / "tests" / "miniature.yaml").base
    tokenizer = train_tokenizer((f"{p}\n{t}" for p, t in arithmetic.corpus(200, 0)), params.vocab_size)
    folder = tmp_path_factory.mktemp("models") / "policy"
    save_policy(folder, new_model(params, tokenizer, max_tokens=400, seed=0), tokenizer)
    return folder


LATENT_ATTENTION = {
    "num_key_value_heads": 4, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12, "q_lora_rank": 8,
    "kv_lora_rank": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
"""Of a tiny ``deepseek_v3``, whose cache holds keys compressed."""


def small_model(kind: str, **options: Any) -> PreTrainedModel:
    """A tiny random model of a kind that transformers knows, with a vocabulary of 64."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    small = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    more = LATENT_ATTENTION if kind == "deepseek_v3" else {}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**small, **more, **options})).eval()


def token_logprobs(model: PreTrainedModel, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token given those before it, on whole rows: ``(B, T)``; column 0 is 0."""
    from torch.nn.functional import pad

    logprobs = (model(input_ids=ids, use_cache=False).logits[:, :-1] / temperature).log_softmax(-1)
    return pad(logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1), (1, 0))


class FixedReward:
    """A reward that reads its step logits out of the traces' ``meta["reads"]``; the last one is that of the text."""

    calibration = Calibration(aggregator="mean", locator="drop", threshold=-1.5)

    def step_logits(self, traces: list[Trace], *, progress: bool = False) -> list[Scores]:
        from rairl.models.reads import Scores

        reads = [np.array(trace.meta["reads"], dtype=float) for trace in traces]
        return [Scores(row[: len(trace.steps)], row[-1]) for trace, row in zip(traces, reads, strict=True)]

    def score_traces(self, traces: list[Trace], *, progress: bool = False) -> list[TraceScore]:
        reads = self.step_logits(traces)
        return [self.calibration.apply(trace, read) for trace, read in zip(traces, reads, strict=True)]


@pytest.fixture(scope="session")
def demos() -> list[Trace]:
    """A few expert traces of the built-in benchmark."""
    from rairl.core.dataset_params import ArithmeticDataset
    from rairl.datasets import arithmetic

    dataset = ArithmeticDataset(name="arithmetic", demos=16, prompts=4, dev=4, test=4, ood=2)
    return arithmetic.build(dataset, 0)["demos"]
