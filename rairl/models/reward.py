"""The reward model: a frozen or trainable backbone, a small head, and one logit wherever the granularity reads.

The logit z estimates log p(prefix | expert) - log p(prefix | generated) (Goodfellow et al. 2014, balanced classes), so
the reward read off it is z itself: log D - log(1 - D). Its increment between two reads is the evidence of what lies
between.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.core.training_params import RewardParams
from rairl.models.adapters import add_lora, load_lora, merged, save_lora, twin
from rairl.models.calibration import Calibration, TraceScore
from rairl.models.card import require_reward
from rairl.models.likelihood import token_surprise
from rairl.models.policy import checkpoint_gradients, load_policy, mixed, placed, quiet
from rairl.models.reading import Encoded, SharedPrompts, batches_by_length, encode
from rairl.models.reads import (
    INTERVAL,
    Scores,
    TokenReads,
    completion_so_far,
    joined,
    read_tokens,
    split_reads,
    unit_means,
    unit_minimum,
    units,
)
from rairl.text.segment import solved

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.models.reads import Memo, Reads


FORMAT = 2
"""Version of the folder's layout, so that an old folder is refused instead of misread."""
SURPRISAL_FEATURES = 6


class RewardModel(nn.Module):
    """Backbone, tokenizer and head.

    head ``linear``: one linear map of the last hidden state (the folder loads as ``AutoModelForTokenClassification``).
    head ``surprisal``: a two-layer perceptron on the hidden states of all layers and on how surprised the backbone is.

    With adapters the hidden states come from the adapted body. The surprise is always that of the frozen backbone: what
    the head takes for a likely token must not move while the head learns to read it.

    Args:
        backbone: a causal model, or for head ``linear`` the body of one.
        adapter: a twin of the backbone with adapters, or None.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        params: RewardParams,
        calibration: Calibration | None = None,
        adapter: PeftModel | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.params = backbone, tokenizer, params
        self.calibration = calibration or Calibration()
        self.adapter = adapter
        width = backbone.config.hidden_size
        dropout = nn.Dropout(params.dropout)
        if params.head == "linear":
            last = nn.Linear(width, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.head = nn.Sequential(dropout, last)
        else:
            inputs = 2 * width * backbone.config.num_hidden_layers + SURPRISAL_FEATURES
            self.head = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, 64), nn.SiLU(), dropout, nn.Linear(64, 1))
        self.head.to(backbone.device)
        self.backbone.requires_grad_(params.train == "full")

    def train(self, mode: bool = True) -> RewardModel:
        """Set training mode; a frozen backbone is never in it, or its own dropout would blur what is read."""
        super().train(mode)
        self.backbone.train(mode and self.params.train == "full")
        return self

    @property
    def device(self) -> torch.device:
        """Where the head lives."""
        return next(self.head.parameters()).device

    def learned_state(self) -> dict[str, Tensor]:
        """What a checkpoint needs: the parameters that learn."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in names}

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, traces: Sequence[Trace], *, memo: Memo | None = None, batch_tokens: int = 4096) -> Reads:
        """Backbone features at every read of ``traces``, in their order.

        Args:
            memo: where reads of a frozen backbone are kept and looked up.
            batch_tokens: padded size of a batch's completions. The logits over the vocabulary of more tokens don't fit
                a processor's cache, and longer batches hold more padding.

        Raises:
            RairlError: when a trace is longer than the backbone can read.
        """
        known = [None if memo is None else memo.get(trace) for trace in traces]
        missing = [index for index, found in enumerate(known) if found is None]
        unread = [traces[index] for index in missing]
        made = self._read(unread, encode(self.tokenizer, unread), batch_tokens) if missing else []
        for index, one in zip(missing, made, strict=True):
            known[index] = one
            if memo is not None:
                memo.put(traces[index], one)
        return joined([one for one in known if one is not None])

    def _read(
        self, traces: Sequence[Trace], encoded: Sequence[Encoded], batch_tokens: int = 4096
    ) -> list[tuple[Tensor, list[int]]]:
        """Features ``(reads, F)`` and token indices of each trace."""
        for item, trace in zip(encoded, traces, strict=True):
            self._require_short(item, trace)
        places = [
            read_tokens(item, trace, self.params.granularity) for item, trace in zip(encoded, traces, strict=True)
        ]
        features: list[Tensor] = [torch.empty(0)] * len(traces)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.params.train != "head"):
            for batch in batches_by_length([item.tail for item in encoded], batch_tokens):
                rows = self._features([encoded[index] for index in batch], [places[index] for index in batch])
                for index, row in zip(batch, rows, strict=True):
                    features[index] = row
        return list(zip(features, places, strict=True))

    def _require_short(self, item: Encoded, trace: Trace) -> None:
        limit = getattr(self.backbone.config, "max_position_embeddings", None) or float("inf")
        if len(item.ids) > limit:
            raise RairlError(
                f"trace {trace.id!r} has {len(item.ids)} tokens with its problem, but the reward's backbone reads "
                f"at most {limit}; leave it out, or train a reward on another reward.backbone"
            )

    def require_readable(self, trace: Trace) -> None:
        """Check that a trace can be scored.

        Raises:
            RairlError: naming the trace when it is longer than the backbone can read.
        """
        self._require_short(encode(self.tokenizer, [trace])[0], trace)

    def _features(self, encoded: Sequence[Encoded], places: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """Features of each trace's reads: one ``(reads, F)`` tensor per trace."""
        rows = SharedPrompts.of_encoded(encoded, self.tokenizer.pad_token_id or 0, self.device)
        # From here on tokens are counted from the last one of their prompt.
        places = [
            [place - item.prompt_tokens + 1 for place in mine] for mine, item in zip(places, encoded, strict=True)
        ]
        row, token, unit = units(places, rows.tails.shape[1], self.device)
        if self.params.head == "linear":
            body = self.backbone if self.adapter is None else self.adapter
            features = rows.read(body).last_hidden_state[row, token]
        else:
            out = rows.read(self.backbone, output_hidden_states=True)
            surprise = token_surprise(out.logits, rows.tails)
            if self.adapter is not None:
                out = rows.read(self.adapter, output_hidden_states=True, logits_to_keep=1)
            # Layer by layer: one tensor of all layers' states would be a copy of the largest thing there is here.
            layers = out.hidden_states[1:]
            means = [unit_means(part, unit, len(row)) for part in (*layers, surprise)]
            lowest = unit_minimum(surprise[..., 0], unit, len(row))
            here = [part[row, token] for part in (*layers, completion_so_far(surprise))]
            features = torch.cat([*here[:-1], *means, lowest[:, None], here[-1]], -1)
        return features.float().split([len(place) for place in places])

    def logits(self, reads: Reads) -> Tensor:
        """The logit z of every read: shape ``(R,)``."""
        return self.head(reads.features)[:, 0]

    # --- scoring ----------------------------------------------------------------------------------------------------

    @overload
    def score(self, problem: str, solution: str | list[str]) -> TraceScore: ...

    @overload
    def score(self, problem: list[str], solution: Sequence[str | list[str]]) -> list[TraceScore]: ...

    def score(
        self, problem: str | list[str], solution: str | Sequence[str | list[str]]
    ) -> TraceScore | list[TraceScore]:
        """Score a solution, each of its steps, and find its first wrong step, by what was chosen on dev.

        Args:
            problem: the question; or a list of them, for a batch.
            solution: its text, whose steps are found by tags, numbers, lines or sentences; or a list of its steps. Of a
                batch, a list with one of either for each problem.

        Returns:
            one result; of a batch a list of them.

        Raises:
            RairlError: for lists of different lengths, and for a solution that is empty, has a blank step or is longer
                than the backbone can read; named by its place in the batch, from 0.
        """
        if isinstance(problem, str):
            return self.score_traces([solved("0", problem, solution)])[0]  # type: ignore[arg-type]
        if isinstance(solution, str) or len(problem) != len(solution):
            count = "one text" if isinstance(solution, str) else len(solution)
            raise RairlError(
                f"a batch needs a solution for each problem: there are {len(problem)} problems and {count}"
            )
        pairs = enumerate(zip(problem, solution, strict=True))
        return self.score_traces([solved(str(at), *pair) for at, pair in pairs])

    def score_traces(self, traces: Sequence[Trace], *, progress: bool = False) -> list[TraceScore]:
        """:meth:`score` of traces, which hold their own steps."""
        reads = self.step_logits(traces, progress=progress)
        return [self.calibration.apply(trace, read) for trace, read in zip(traces, reads, strict=True)]

    @torch.no_grad()
    def step_logits(self, traces: Sequence[Trace], *, progress: bool = False, chunk: int = 256) -> list[Scores]:
        """The logit at each step's end and at the end of the text.

        A step that ends between two reads of the granularity takes the first read at or after its end (back-filling).

        Raises:
            RairlError: for a trace without text.
        """
        empty = [trace.id for trace in traces if not trace.text]
        if empty:
            raise RairlError(f"trace {empty[0]!r} has no text; only solved problems can be scored")
        scores: list[Scores] = []
        bar = tqdm(total=len(traces), desc="scoring", unit="trace", disable=not progress)
        for start in range(0, len(traces), chunk):
            part = traces[start : start + chunk]
            for trace, read in zip(part, self.token_reads(part), strict=True):
                at = np.searchsorted(read.ends, [step.end for step in trace.steps])
                scores.append(Scores(read.logits[at], float(read.logits[-1])))
            bar.update(len(part))
        bar.close()
        return scores

    @torch.no_grad()
    def token_reads(self, traces: Sequence[Trace]) -> list[TokenReads]:
        """Where each trace is read, and the logits there."""
        if self.training:  # a walk over all layers, which a server would pay at every request
            self.eval()
        encoded = encode(self.tokenizer, traces)
        reads = joined(self._read(traces, encoded))
        logits = split_reads(self.logits(reads).double().cpu().numpy(), reads, len(traces))
        tokens = split_reads(reads.token.numpy(), reads, len(traces))
        found = []
        for item, read, said in zip(encoded, tokens, logits, strict=True):
            own = read - item.prompt_tokens
            found.append(TokenReads(own, item.ends[own], said))
        return found

    # --- folder -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write backbone, tokenizer, head, parameters and calibration; safetensors only.

        Adapters are written beside the frozen backbone, into ``adapter/``; for head ``linear`` they are folded into it.
        With bfloat16 the head stands in ``head.safetensors`` too: what plain transformers loads is rounded.
        """
        from safetensors.torch import save_file

        quiet()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.params.head == "linear":
            self._as_token_classifier().save_pretrained(folder)
            if self.params.dtype != "float32":
                save_file(self._last(), folder / "head.safetensors")
        else:
            merged(self.backbone).save_pretrained(folder)
            save_file(
                {key: value.contiguous() for key, value in self.head.state_dict().items()}, folder / "head.safetensors"
            )
            if self.adapter is not None:
                save_lora(folder / "adapter", self.adapter)
        self.tokenizer.save_pretrained(folder)
        card = {"format": FORMAT, "params": self.params.model_dump(), "calibration": asdict(self.calibration)}
        (folder / "reward.json").write_text(json.dumps(card, indent=2) + "\n")

    def _as_token_classifier(self) -> PreTrainedModel:
        from transformers import AutoModelForTokenClassification

        body = merged(self.backbone if self.adapter is None else self.adapter.get_base_model())
        model = AutoModelForTokenClassification.from_config(
            _one_label(body.config), dtype=getattr(torch, self.params.dtype)
        )
        model.base_model.load_state_dict(body.state_dict())
        model.score.load_state_dict(self._last())
        return model

    def _last(self) -> dict[str, Tensor]:
        """The head's last linear map."""
        return {"weight": self.head[-1].weight.detach().contiguous(), "bias": self.head[-1].bias.detach()}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> RewardModel:
        """Load what :meth:`save_pretrained` wrote, in evaluation mode.

        :func:`rairl.load` also takes names in the MLflow registry and on the hub.

        Raises:
            RairlError: when the folder is missing, holds no reward model, or has another layout version.
        """
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

        folder = Path(folder)
        quiet()
        card = require_reward(folder)
        if card.get("format") != FORMAT:
            raise RairlError(f"{folder}/reward.json has format {card.get('format')}, this version reads {FORMAT}")
        params = _read_params(card["params"], folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        calibration = Calibration(**card["calibration"])
        if params.head == "linear":
            whole = placed(AutoModelForTokenClassification.from_pretrained(folder, use_safetensors=True))
            model = cls(whole.base_model, tokenizer, params, calibration)
            model.head = nn.Sequential(whole.score.float())
            if (folder / "head.safetensors").is_file():
                model.head[0].load_state_dict(load_file(folder / "head.safetensors"))
        else:
            backbone = placed(AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True))
            adapter = load_lora(twin(backbone), folder / "adapter") if params.train == "lora" else None
            model = cls(backbone, tokenizer, params, calibration, adapter)
            model.head.load_state_dict(load_file(folder / "head.safetensors"))
        return model.eval()

    def calibrated(self, **changes: object) -> RewardModel:
        """Set calibration fields; returns self."""
        self.calibration = replace(self.calibration, **changes)  # type: ignore[arg-type]
        return self


def _read_params(values: dict[str, object], folder: Path) -> RewardParams:
    """Parameters of a saved reward. Keys that a version before had are passed over, where they say what holds now."""
    for key, now in {"form": "logit", "interval": INTERVAL, "spectral_norm": False}.items():
        if values.get(key, now) != now:
            raise RairlError(
                f"{folder}/reward.json: reward.{key} is {values[key]!r}, which only rairl up to commit 99a757a reads"
            )
    try:
        return RewardParams.model_validate({key: values[key] for key in values if key in RewardParams.model_fields})
    except ValidationError as error:
        raise RairlError(f"{folder}/reward.json does not fit this version: {error}") from error


def new_reward(folder: str | Path, params: RewardParams, *, seed: int) -> RewardModel:
    """An untrained reward model on the causal model in ``folder``."""
    return reward_on(*load_policy(folder, dtype=params.dtype), params, seed=seed)


def reward_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: RewardParams, *, seed: int
) -> RewardModel:
    """An untrained reward model on a causal model, which it freezes unless ``reward.train`` is 'full'.

    Args:
        seed: of the head and the adapters.
    """
    backbone = model.base_model if params.head == "linear" else model
    torch.manual_seed(seed)
    reward = RewardModel(backbone, tokenizer, params)
    if params.train == "full":
        mixed(backbone)
    if params.train == "lora":
        reward.adapter = add_lora(twin(backbone), params.lora_rank, seed=seed)
    if params.gradient_checkpointing:
        checkpoint_gradients(backbone if reward.adapter is None else reward.adapter)
    return reward


def _one_label(config: object) -> object:
    import copy

    config = copy.deepcopy(config)
    config.num_labels = 1  # type: ignore[attr-defined]
    return config
