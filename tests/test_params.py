"""A mistake in a parameter file is an error that names the key."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rairl.core.errors import RairlError
from rairl.core.params import load_params, parse_params
from rairl.core.yaml_files import dump_yaml, parse_yaml
from rairl.preflight import presets

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "params.yaml", ROOT / "tests" / "miniature.yaml", *sorted((ROOT / "rairl" / "presets").glob("*.yaml"))]


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(values)
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place[section]
    place[last] = value
    return values


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_parameter_file_is_valid(path: Path) -> None:
    load_params(path)


@pytest.mark.parametrize("key", ["sed", "sft.epoch", "dataset.demonstrations", "reward.heads", "policy.learning_rte"])
def test_an_unknown_key_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(RairlError, match=rf"params\.yaml: unknown key '{key}'"):
        parse_params(changed(values, key, 1), source="params.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "0"),
        ("seed", -1),
        ("seed", 1.5),
        ("dataset.demos", 0),
        ("dataset.demos", "many"),
        ("base.hidden_size", True),
        ("base.source", 3),
        ("sft.learning_rate", "3e-4"),
        ("sft.learning_rate", 0.0),
        ("policy.group_size", 1),
        ("policy.kl", -0.1),
        ("reward.granularity", "word"),
        ("reward.head", "quadratic"),
        ("reward.train", "no"),
        ("reward.label_smoothing", 0.5),
        ("sample.temperatures", []),
        ("sample.temperatures", 1.0),
        ("sample.extra_n", 0),
        ("report.bootstrap", 99),
        ("tracking.experiment", ""),
    ],
)
def test_a_wrong_value_names_the_key(values: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(RairlError, match=rf"key '{key}'"):
        parse_params(changed(values, key, value))


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [
        ("rerank.n", 10_000, "sample.n"),
        ("reward.train", "full", "reward.head"),
        ("policy.warmup_iterations", 10_000, "policy.iterations"),
        ("base.heads", 5, "base.hidden_size"),
        ("sample.temperatures", [1.0, 0.5, 0.5], "0.5, 0.5"),
    ],
)
def test_a_contradiction_names_both_keys(values: dict[str, Any], key: str, value: Any, other: str) -> None:
    with pytest.raises(RairlError) as error:
        parse_params(changed(values, key, value))
    assert key in str(error.value)
    assert other in str(error.value)


HUB = {"source": "some/model", "revision": "0" * 40}


def test_a_hub_model_has_no_sizes_and_needs_another_backbone(values: dict[str, Any]) -> None:
    with pytest.raises(RairlError, match=r"^params: base\.hidden_size belongs to base\.source 'builtin'; remove it$"):
        parse_params({**values, "base": {**HUB, "hidden_size": 64}})
    with pytest.raises(RairlError, match=r"base\.source is 'some/model'; name another model, .*reward\.backbone"):
        parse_params({**values, "base": HUB})
    hub = parse_params(changed({**values, "base": HUB}, "reward.backbone", "sft"))
    assert hub.base.dtype == "float32"


def test_a_builtin_model_needs_its_sizes_and_has_no_revision(values: dict[str, Any]) -> None:
    with pytest.raises(RairlError, match=r"base\.revision belongs to a base\.source from the hub; remove it"):
        parse_params(changed(values, "base.revision", None))
    del values["base"]["layers"]
    with pytest.raises(RairlError, match=r"key 'base\.layers' is missing \(base\.source 'builtin' needs it\)"):
        parse_params(values)
    del values["base"]["source"]
    with pytest.raises(RairlError, match=r"key 'base\.source' is missing"):
        parse_params(values)
    with pytest.raises(RairlError, match="'base'"):
        parse_params({**values, "base": 3})


def test_logged_traces_need_no_policy_and_others_do(values: dict[str, Any]) -> None:
    assert "policy" not in yaml.safe_load((ROOT / "rairl" / "presets" / "gsm8k-logged.yaml").read_text())
    del values["policy"]
    with pytest.raises(RairlError, match="key 'policy' is missing"):
        parse_params(values)


def test_sparse_reward_cannot_give_step_credit(values: dict[str, Any]) -> None:
    with pytest.raises(RairlError, match=r"reward\.credit.*reward\.granularity"):
        parse_params(changed(changed(values, "reward.granularity", "sparse"), "reward.credit", "return"))


def test_a_missing_key_is_named(values: dict[str, Any]) -> None:
    del values["policy"]["kl"]
    with pytest.raises(RairlError, match=r"key 'policy\.kl' is missing"):
        parse_params(values)


def test_an_unknown_dataset_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(RairlError, match=r"'dataset'.*aritmetic"):
        parse_params(changed(values, "dataset.name", "aritmetic"))


def test_every_mistake_is_told_at_once(values: dict[str, Any]) -> None:
    with pytest.raises(RairlError) as error:
        parse_params(changed(changed(values, "seed", "x"), "sft.epoch", 1))
    assert "'seed'" in str(error.value)
    assert "'sft.epoch'" in str(error.value)


def test_a_missing_file_and_bad_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(RairlError, match=r"absent\.yaml does not exist"):
        load_params(tmp_path / "absent.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("seed: [")
    with pytest.raises(RairlError, match=r"bad\.yaml is not valid YAML"):
        load_params(bad)
    bad.write_text("- 1")
    with pytest.raises(RairlError, match=r"bad\.yaml: a mapping"):
        load_params(bad)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("1e-05", 1e-5),  # as DVC writes it
        ("1E-5", 1e-5),
        ("+2e-4", 2e-4),
        ("2.e-4", 2e-4),
        (".5e-3", 5e-4),
        ("3.0e-4", 3e-4),
        ("5.0e-04", 5e-4),
        ("0.00001", 1e-5),
        ("1e0", 1.0),
        ("1", 1.0),
    ],
)
def test_a_number_may_be_written_with_an_exponent(tmp_path: Path, written: str, value: float) -> None:
    text = (ROOT / "params.yaml").read_text()
    changed = re.sub(r"(?m)^(policy:\n(?:  .*\n)*?  learning_rate: )\S+", rf"\g<1>{written}", text)
    path = tmp_path / "params.yaml"
    for mark in ("", "\ufeff"):
        path.write_text(mark + changed, encoding="utf-8")
        assert load_params(path).policy.learning_rate == value
    assert (
        presets.compose(["dataset=gsm8k", "model=qwen3-4b", "method=interval", f"policy.learning_rate={written}"])[
            "policy"
        ]["learning_rate"]
        == value
    )


@pytest.mark.parametrize("text", ["e5", "1e", "1e-", "1e-5x", "0x1e5", "v1e-5", "1-5", "1e5e5", "'1e-5'", "1e 5"])
def test_what_is_no_number_stays_text(text: str) -> None:
    value = parse_yaml(text)
    assert isinstance(value, int if text == "0x1e5" else str)


@pytest.mark.parametrize("value", ["1e-5", "1E5", ".1e3", "1e", 1e-05, 3e300, 12, "12", "no", None, {"a": [1e-7]}])
def test_what_is_written_as_yaml_is_read_back(value: Any) -> None:
    assert parse_yaml(dump_yaml({"key": value})) == {"key": value}


@pytest.mark.parametrize("text", ["a: [", "a: 2026-99-99", "a: " + "9" * 5000, "a: !!python/object:os.system {}"])
def test_text_that_is_no_yaml_is_a_named_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(RairlError, match=r"p\.yaml is not valid YAML"):
        load_params(path)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("team/reward", False),
        ("models:/reward", False),
        ("reward:1", False),
        ("/reward", False),
        (" ", False),
        ("", False),
        (".", False),
        ("..", False),
        ("..reward", False),
        ("Ann's reward", False),
        ("r" * 257, False),
        ("r" * 256, True),
        ("team-reward", True),
        ("team.reward_2 (GSM8K)", True),
        (".reward", True),
        ("奖励", True),
    ],
)
def test_a_registered_models_name_is_one_that_mlflow_takes(values: dict[str, Any], name: str, good: bool) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_name

    changes = changed(values, "tracking.registered_model", name)
    if good:
        _validate_model_name(name)
        assert parse_params(changes).tracking.registered_model == name
        return
    with pytest.raises(RairlError, match=r"tracking\.registered_model"):
        parse_params(changes)
    if "'" not in name and len(name) < 257:  # those break a search, and the column of a database
        with pytest.raises(MlflowException):
            _validate_model_name(name)


@pytest.mark.parametrize("name", ["", " \t", "x" * 257])
def test_an_experiments_name_is_one_that_mlflow_takes(values: dict[str, Any], name: str) -> None:
    with pytest.raises(RairlError, match=r"tracking\.experiment"):
        parse_params(changed(values, "tracking.experiment", name))


def test_the_digest_sees_every_value_but_not_how_numbers_are_written(values: dict[str, Any]) -> None:
    digest = parse_params(values).digest()
    assert parse_params(changed(values, "seed", 1)).digest() != digest
    assert parse_params(changed(values, "sample.temperatures", [1, 0.5])).digest() == digest


def test_words_and_numbers_are_read_as_dvc_writes_them(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    written = re.sub(r"(?m)^(guard:\n)(  action: .*\n)?", r"\1  action: off\n", text)
    written = re.sub(r"(?ms)(^sft:.*?learning_rate: )\S+", r"\g<1>1e-05", written)
    (tmp_path / "params.yaml").write_text(written)
    params = load_params(tmp_path / "params.yaml")
    assert params.guard.action == "off" and params.sft.learning_rate == 1e-5
    values = "[on, no, true, 1, -2, 1.5, .5, 3., 1e5, -1.0E-3, 12:30, .inf, null, 1_0, v1.0]"
    assert parse_yaml(values, source="values") == [
        "on", "no", True, 1, -2, 1.5, 0.5, 3.0, 1e5, -1e-3, 750, float("inf"), None, 10, "v1.0",
    ]  # fmt: skip
