"""The reward model: reads where it says, features equal a plain loop, folders load back, also in plain transformers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params
from rairl.core.traces import Trace
from rairl.core.training_params import BuiltinBase, RewardParams
from rairl.learn.learned_reward import LearnedReward
from rairl.learn.learner import trained
from rairl.learn.rewards import Batch
from rairl.learn.rollouts import Completion
from rairl.models.base import load_source
from rairl.models.calibration import Calibration
from rairl.models.policy import load_policy, save_policy
from rairl.models.reading import encode, recomputes, token_at
from rairl.models.reads import read_tokens
from rairl.models.reward import RewardModel, new_reward, reward_on, token_surprise
from rairl.use.apply import localise_rows, score_rows

ROOT = Path(__file__).parents[1]


def change(params: Params, **values: object) -> RewardParams:
    return RewardParams(**{**params.reward.model_dump(), **values})


@pytest.fixture
def surprisal(tiny_policy: Path, miniature: Params) -> RewardModel:
    return new_reward(tiny_policy, miniature.reward, seed=1)


@pytest.fixture
def linear(tiny_policy: Path, miniature: Params) -> RewardModel:
    model = new_reward(tiny_policy, change(miniature, head="linear", train="full"), seed=1)
    torch.nn.init.normal_(model.head[-1].weight)
    return model


def test_granularities_read_where_they_say(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    model = new_reward(tiny_policy, miniature.reward, seed=1)
    trace = demos[0]
    item = encode(model.tokenizer, [trace])[0]
    last = len(item.ids) - 1
    assert read_tokens(item, trace, "sparse") == [last]
    assert read_tokens(item, trace, "dense") == list(range(item.prompt_tokens, last + 1))
    steps = read_tokens(item, trace, "step")
    assert steps == [*(token_at(item, step.end) for step in trace.steps), last]
    grid = read_tokens(item, trace, "interval")
    assert grid[0] == item.prompt_tokens + 14 and grid[-1] == last
    assert set(np.diff(grid[:-1])) <= {15}


def test_features_equal_a_plain_loop(surprisal: RewardModel, demos: list[Trace]) -> None:
    surprisal.eval()
    with torch.no_grad():
        reads = surprisal.read(demos[:4])
    row = 0
    for trace in demos[:4]:
        item = encode(surprisal.tokenizer, [trace])[0]
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            out = surprisal.backbone(input_ids=ids, output_hidden_states=True)
        hidden = torch.cat(out.hidden_states[1:], -1)[0]
        surprise = token_surprise(out.logits, ids)[0]
        start = item.prompt_tokens
        for end in read_tokens(item, trace, "step"):
            unit, sofar = surprise[start : end + 1], surprise[item.prompt_tokens : end + 1]
            expected = torch.cat(
                [
                    hidden[end],
                    hidden[start : end + 1].mean(0),
                    unit.mean(0),
                    unit[:, 0].min()[None],
                    torch.stack([sofar[:, 0].mean(), sofar[:, 0].min(), sofar[:, 1].mean()]),
                ]
            )
            torch.testing.assert_close(reads.features[row], expected, atol=1e-4, rtol=1e-4)
            start = end + 1
            row += 1
    assert row == len(reads.features)


def test_scores_do_not_depend_on_the_company(surprisal: RewardModel, demos: list[Trace]) -> None:
    together = surprisal.step_logits(demos)
    for trace, scores in zip(demos, together, strict=True):
        alone = surprisal.step_logits([trace])[0]
        np.testing.assert_allclose(scores.steps, alone.steps, atol=1e-4)
        assert scores.last == pytest.approx(alone.last, abs=1e-4)
        assert len(scores.steps) == len(trace.steps)


def test_a_step_between_two_reads_takes_the_next_one(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    model = new_reward(tiny_policy, change(miniature, granularity="sparse"), seed=1)
    scores = model.step_logits(demos[:1])[0]
    assert set(scores.steps.tolist()) == {scores.last}


def test_future_steps_do_not_change_the_read(surprisal: RewardModel, demos: list[Trace]) -> None:
    """The logit of a prefix is a function of the prefix: a later corruption leaves earlier reads as they were."""
    trace = demos[0]
    cut = trace.steps[1].start
    other = replace(trace, text=trace.text[:cut] + trace.text[cut:].translate(str.maketrans("123456789", "234567891")))
    assert other.text != trace.text
    mine, theirs = surprisal.step_logits([trace])[0], surprisal.step_logits([other])[0]
    assert mine.steps[0] == pytest.approx(theirs.steps[0], abs=1e-5)


KINDS = {
    "head": {"head": "surprisal", "train": "head"},
    "lora": {"head": "surprisal", "train": "lora"},
    "linear head": {"head": "linear", "train": "head"},
    "linear lora": {"head": "linear", "train": "lora"},
    "linear full": {"head": "linear", "train": "full"},
}


def step(model: RewardModel, traces: list[Trace], steps: int = 4, rate: float = 0.1) -> None:
    """Raise the logits of ``traces``, in several steps: a zero head or adapter passes gradients from the next on."""
    optimizer = torch.optim.Adam(trained(model), lr=rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (-torch.nn.functional.logsigmoid(model.logits(model.read(traces)))).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_folder_loads_back(kind: str, tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path) -> None:
    params = change(miniature, **KINDS[kind], dropout=0.1)
    model = new_reward(tiny_policy, params, seed=1)
    model.calibration = Calibration("min", "argmin", -0.5)
    step(model, demos[:4], rate=0.01)
    scores = model.step_logits(demos)
    model.train()  # as in the middle of a run
    model.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    assert again.calibration == model.calibration and again.params == model.params
    for before, after, loaded in zip(scores, model.step_logits(demos), again.step_logits(demos), strict=True):
        assert before.steps.tolist() == after.steps.tolist()
        np.testing.assert_allclose(before.steps, loaded.steps, atol=1e-5)
    assert len({one.last for one in scores}) > 1
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))  # safetensors only


def test_a_folder_of_an_earlier_version_is_read_where_it_means_the_same(
    surprisal: RewardModel, demos: list[Trace], tmp_path: Path
) -> None:
    surprisal.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "reward.json").read_text())

    def load(**params: object) -> RewardModel:
        (tmp_path / "reward.json").write_text(json.dumps({**card, "params": {**card["params"], **params}}))
        return RewardModel.from_pretrained(tmp_path)

    again = load(form="logit", interval=15, spectral_norm=False, gradient_penalty=0.0, ema=0.0)
    assert again.step_logits(demos[:1])[0].last == surprisal.step_logits(demos[:1])[0].last
    for key, value in {"form": "airl", "interval": 30, "spectral_norm": True}.items():
        with pytest.raises(RairlError, match=rf"reward\.{key} is .*99a757a"):
            load(**{key: value})
    with pytest.raises(RairlError, match=r"reward\.json does not fit this version"):
        load(objective="wgan")


def test_a_folder_with_adapters_is_read_by_peft(
    tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = new_reward(tiny_policy, change(miniature, train="lora"), seed=1)
    step(model, demos[:4])
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "adapter")
    ids = torch.tensor([encode(model.tokenizer, demos[:1])[0].ids])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.adapter(ids).logits)
        assert not torch.allclose(plain(ids).logits, model.backbone(ids).logits)
    assert str(tiny_policy) not in (tmp_path / "adapter" / "adapter_config.json").read_text()


def test_linear_head_loads_in_plain_transformers(linear: RewardModel, demos: list[Trace], tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from rairl.models.reading import render_prompt

    linear.save_pretrained(tmp_path)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = render_prompt(tokenizer, demos[0].problem) + demos[0].text
    with torch.no_grad():
        logits = plain(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
    assert logits.shape[-1] == 1
    assert logits[0, -1, 0].item() == pytest.approx(linear.step_logits(demos[:1])[0].last, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_what_should_learn_gets_gradients_and_moves(
    kind: str, tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    model = new_reward(tiny_policy, change(miniature, **KINDS[kind]), seed=1)
    learns = {
        "head": lambda name: name.startswith("head."),
        "lora": lambda name: name.startswith("head.") or "lora_" in name,
        "full": lambda name: True,
    }[KINDS[kind]["train"]]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    step(model, demos[:4])
    for name, value in model.named_parameters():
        assert (value.grad is not None and bool(value.grad.any())) == learns(name), name
        assert (not torch.equal(value, before[name])) == learns(name), name
    if KINDS[kind]["train"] == "lora":
        places = {name.split(".")[-4] for name in before if "lora_" in name}
        assert places == {f"{place}_proj" for place in ("q", "k", "v", "o", "gate", "up", "down")}
        assert {value.shape[0] for name, value in before.items() if "lora_A" in name} == {miniature.reward.lora_rank}
        assert all(layer.scaling["default"] == 2 for layer in model.modules() if hasattr(layer, "lora_A"))


def test_the_rank_is_that_of_the_adapters(tiny_policy: Path, miniature: Params) -> None:
    model = new_reward(tiny_policy, change(miniature, train="lora", lora_rank=3), seed=1)
    ranks = {value.shape[0] for name, value in model.named_parameters() if "lora_A" in name}
    assert ranks == {3}


def test_what_the_head_reads_as_surprise_does_not_move_with_the_adapters(
    tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    model = new_reward(tiny_policy, change(miniature, train="lora"), seed=1)
    before = model.eval().read(demos).features.detach()
    step(model, demos[:4])
    after = model.eval().read(demos).features.detach()
    assert torch.equal(before[:, -6:], after[:, -6:])
    assert (before[:, :-6] != after[:, :-6]).any(0).all()


def test_dropout_acts_in_front_of_the_last_map_and_only_in_training(
    tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    for head in ("surprisal", "linear"):
        without, model = (
            new_reward(tiny_policy, change(miniature, head=head, dropout=share), seed=1) for share in (0.0, 0.5)
        )
        seen: list[torch.Tensor] = []
        model.head[-1].register_forward_pre_hook(lambda layer, inputs, seen=seen: seen.append(inputs[0]))
        model.train()
        reads = model.read(demos)
        model.logits(reads)
        model.eval()
        model.logits(reads)
        assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert not (seen[1] == 0).any()
        assert [one.last for one in model.step_logits(demos)] == [one.last for one in without.step_logits(demos)]


def test_a_checkpoint_holds_all_that_learns(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    params = change(miniature, train="lora")
    model, again = (new_reward(tiny_policy, params, seed=seed) for seed in (1, 2))
    step(model, demos[:4])
    state = model.learned_state()
    assert not any("base_layer" in name or name.startswith("backbone") for name in state)
    again.load_state_dict(state, strict=False)
    for one, other in zip(model.step_logits(demos), again.step_logits(demos), strict=True):
        assert one.steps.tolist() == other.steps.tolist()


def test_a_frozen_backbone_reads_without_its_own_dropout(
    tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    policy, tokenizer = load_policy(tiny_policy)
    policy.config.attention_dropout = 0.5
    save_policy(tmp_path, policy, tokenizer)
    model = new_reward(tmp_path, miniature.reward, seed=1).train()
    assert torch.equal(model.read(demos[:2]).features, model.read(demos[:2]).features)


# --- other backbones -------------------------------------------------------------------------------------------------


def test_a_bfloat16_body_feeds_a_float32_head(
    tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    policy, tokenizer = load_policy(tiny_policy)
    save_policy(tmp_path, policy.bfloat16(), tokenizer)
    for values in KINDS.values():
        model = new_reward(tmp_path, change(miniature, dtype="bfloat16", **values), seed=1)
        learns = model.params.train == "full"  # in float32, while it computes in bfloat16
        assert next(model.backbone.parameters()).dtype == (torch.float32 if learns else torch.bfloat16)
        reads = model.read(demos[:2])
        assert reads.features.dtype == torch.float32 and np.isfinite(model.step_logits(demos[:1])[0].last)


def test_a_trace_beyond_the_backbones_positions_is_named(
    tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    policy, tokenizer = load_policy(tiny_policy)
    length = len(encode(tokenizer, demos[:1])[0].ids)
    policy.config.max_position_embeddings = length
    save_policy(tmp_path, policy, tokenizer)
    model = new_reward(tmp_path, miniature.reward, seed=1)
    assert len(model.step_logits(demos[:1])) == 1
    longer = replace(demos[0], text=demos[0].text + "1")
    with pytest.raises(RairlError, match=rf"'{demos[0].id}' has {length + 1} tokens .* at most {length};"):
        model.step_logits([longer])


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, miniature_base: BuiltinBase) -> Path:
    """A second tiny model whose tokens run over line ends and word borders, and which has no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rairl.datasets import arithmetic
    from rairl.models.base import EOS, PAD, new_model

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{p}\n{t}" for p, t in arithmetic.corpus(200, 1)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)
    folder = tmp_path_factory.mktemp("foreign")
    save_policy(folder, new_model(miniature_base, fast, max_tokens=400, seed=3), fast)
    return folder


@pytest.fixture(scope="module")
def miniature_base() -> BuiltinBase:
    return load_params(ROOT / "tests" / "miniature.yaml").base


def on_foreign(folder: Path, params: RewardParams) -> RewardModel:
    return reward_on(*load_source("reward.backbone", str(folder), None), params, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_with_another_tokenizer_reads_at_the_right_characters(
    kind: str, foreign: Path, tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    model = on_foreign(foreign, change(miniature, **KINDS[kind]))
    policy_tokenizer = load_policy(tiny_policy)[1]
    straddles = 0
    for trace, item in zip(demos, encode(model.tokenizer, demos), strict=True):
        assert item.ids != encode(policy_tokenizer, [trace])[0].ids
        for place in trace.steps:
            at = token_at(item, place.end)
            upto, short = (model.tokenizer.decode(item.ids[:end]) for end in (at + 1, at))
            prompt = f"{trace.problem}\n"
            assert upto.startswith(prompt + trace.text[: place.end]) and len(short) < len(prompt) + place.end
            straddles += upto != prompt + trace.text[: place.end]
    assert straddles  # or this tokenizer would prove little
    model.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    for one, other, trace in zip(model.step_logits(demos), again.step_logits(demos), demos, strict=True):
        assert len(one.steps) == len(trace.steps)
        np.testing.assert_allclose(one.steps, other.steps, atol=1e-5)


@pytest.mark.parametrize("granularity", ["step", "interval", "dense"])
def test_advantages_of_another_tokenizer_land_on_the_policys_tokens(
    granularity: str, foreign: Path, tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    """Each of the policy's tokens gets the value of the first read at or after its last character."""
    params = change(miniature, credit="return", discount=0.0, granularity=granularity)
    model = on_foreign(foreign, params)
    tokenizer = load_policy(tiny_policy)[1]
    completions = [
        Completion(item.ids[: item.prompt_tokens], [*item.ids[item.prompt_tokens :], tokenizer.eos_token_id], [], True)
        for item in encode(tokenizer, demos[:4])
    ]
    batch = Batch([demos[0], demos[2]], completions, demos[:4], tokenizer)
    advantages, _ = LearnedReward(model, demos, params, 0.5, seed=0).advantages(batch)
    for trace, completion, values in zip(demos[:4], completions, advantages, strict=True):
        item = encode(model.tokenizer, [trace])[0]
        ends = [
            len(model.tokenizer.decode(item.ids[: token + 1])) - len(trace.problem) - 1
            for token in read_tokens(item, trace, params.granularity)
        ]
        unit_of = []
        for count in range(1, len(completion.ids)):
            reached = len(tokenizer.decode(completion.ids[:count]))
            unit_of.append(next(unit for unit, end in enumerate(ends) if end >= reached))
        unit_of.append(len(ends) - 1)  # the end token
        assert len(values) == len(completion.ids)
        for unit in set(unit_of):
            assert len({value for value, mine in zip(values, unit_of, strict=True) if mine == unit}) == 1
        firsts = [values[unit_of.index(unit)] for unit in sorted(set(unit_of))]
        assert len(set(firsts)) == len(firsts)


def test_a_backbone_that_is_nowhere_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(RairlError, match=r"reward\.backbone 'some/model' .* set reward\.revision"):
        load_source("reward.backbone", "some/model", None)
    with pytest.raises(RairlError, match=r"reward\.backbone 'some/model' can't be loaded"):
        load_source("reward.backbone", "some/model", "0" * 40)
    with pytest.raises(RairlError, match=r"base\.source .* can't be loaded"):
        load_source("base.source", str(tmp_path), None)


def test_texts_are_scored_as_the_rows_of_a_file_are(surprisal: RewardModel, demos: list[Trace]) -> None:
    model = surprisal.calibrated(aggregator="mean", threshold=0.0)
    rows = list(score_rows(demos[:3], model))
    results = model.score([trace.problem for trace in demos[:3]], [trace.text for trace in demos[:3]])
    assert [asdict(result)["steps"] for result in results] == [tuple(row["steps"]) for row in rows]
    assert [result.score for result in results] == [row["score"] for row in rows]
    assert [result.first_error for result in results] == [row["first_error"] for row in localise_rows(demos[:3], model)]
    given, found = model.score("p", ["one", "two"]), model.score("p", "one\ntwo")
    assert given == found and [step.text for step in given.steps] == ["one", "two"]
    assert model.score("p", " ").first_error is None and model.score([], []) == []


@pytest.mark.parametrize(
    ("problem", "solution", "message"),
    [
        ("p", "", "trace '0' has no text"),
        ("p", ["a", " "], "trace '0': field 'steps': item 1"),
        (["p", "p"], ["a", "b\ud800"], "trace '1': half of a surrogate pair"),
        (["p"], [None], "trace '0': a solution is a text or a list"),
        (["p"], "a", "there are 1 problems and one text"),
        (["p"], ["a", "b"], "there are 1 problems and 2"),
        (["p", "p"], ["a", "b " * 900], "trace '1' has .* tokens"),
    ],
)
def test_what_cannot_be_scored_is_named(surprisal: RewardModel, problem: Any, solution: Any, message: str) -> None:
    with pytest.raises(RairlError, match=message):
        surprisal.score(problem, solution)


def test_prompts_and_foreign_folders_are_refused(surprisal: RewardModel, tmp_path: Path) -> None:
    with pytest.raises(RairlError, match="'p' has no text"):
        surprisal.step_logits([Trace("p", "problem")])
    with pytest.raises(RairlError, match=r"reward\.json is missing"):
        RewardModel.from_pretrained(tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RairlError, match="format 99"):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("values", [{"head": "linear", "train": "lora"}, {"head": "surprisal", "train": "lora"}])
def test_gradient_checkpointing_changes_no_gradient(
    values: dict[str, object], tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    found = []
    for on in (False, True):
        model = new_reward(tiny_policy, change(miniature, **values, gradient_checkpointing=on, dropout=0.0), seed=1)
        for parameter in model.head.parameters():
            torch.nn.init.constant_(parameter, 0.01)  # a head of zeros would pass no gradient on
        model.train()
        assert model.adapter is not None and recomputes(model.adapter) is on
        model.logits(model.read(demos[:3])).sum().backward()
        found.append([value.grad for value in trained(model)])
    assert any(value.abs().max() > 0 for value in found[0][2:])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
