"""The reward model: a frozen or trainable backbone, a small head, and one logit wherever the granularity reads.

The logit z estimates log p(prefix | expert) - log p(prefix | generated) (Goodfellow et al. 2014, balanced classes), so the
reward read off it is z itself: log D - log(1 - D). Its increment between two reads is the evidence of what lies between.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rairl.errors import RairlError
from rairl.models.policy import Encoded, batches_by_length, encode, pad, quiet, token_at
from rairl.params import Granularity, RewardParams
from rairl.traces import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
"""Version of the folder's layout, so that an old folder is refused instead of misread."""
SURPRISAL_FEATURES = 6


@dataclass(frozen=True)
class Calibration:
    """Choices made on dev and shipped with the model.

    Attributes:
        aggregator: how step logits become a trace score: ``last``, ``mean`` or ``min``.
        locator: how the first wrong step is picked: ``drop`` (largest fall between reads) or ``argmin``.
        threshold: a trace whose locator value stays above it has no wrong step; None before calibration.
    """

    aggregator: str = "last"
    locator: str = "drop"
    threshold: float | None = None


@dataclass(frozen=True)
class Scores:
    """What the reward says of one trace.

    Attributes:
        steps: logit at the end of each step, shape ``(n_steps,)``.
        last: logit at the end of the text.
    """

    steps: np.ndarray
    last: float


@dataclass(frozen=True)
class Reads:
    """Features of the places where a batch of traces is read.

    Attributes:
        features: shape ``(R, F)``, float32, one row per read.
        trace: shape ``(R,)``, index of the trace each read belongs to; ascending.
        token: shape ``(R,)``, index of the token read, within prompt + completion.
    """

    features: Tensor
    trace: Tensor
    token: Tensor


def read_tokens(encoded: Encoded, trace: Trace, granularity: Granularity, interval: int) -> list[int]:
    """Token indices (in prompt + completion, ascending, without repeats) where the logit is trained and read.

    sparse: the last token. step: the last token of every step, and of the text. interval: every ``interval``-th
    completion token, counted from the first one in training and scoring alike, and the last. dense: all of them.
    """
    first, last = encoded.prompt_tokens, len(encoded.ids) - 1
    if granularity == "sparse":
        reads = []
    elif granularity == "step":
        reads = [token_at(encoded, step.end) for step in trace.steps]
    else:
        stride = interval if granularity == "interval" else 1
        reads = list(range(first + stride - 1, last + 1, stride))
    return sorted({*reads, last})


class RewardModel(nn.Module):
    """Backbone, tokenizer and head.

    head ``linear``: one linear map of the last hidden state (the folder loads in plain ``AutoModelForTokenClassification``).
    head ``surprisal``: a two-layer perceptron on the hidden states of all layers and on how surprised the backbone is.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        params: RewardParams,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.params = backbone, tokenizer, params
        self.calibration = calibration or Calibration()
        width = backbone.config.hidden_size
        if params.head == "linear":
            self.head: nn.Module = nn.Linear(width, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        else:
            inputs = 2 * width * backbone.config.num_hidden_layers + SURPRISAL_FEATURES
            self.head = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, 1))
        self.backbone.requires_grad_(params.train_backbone)

    @property
    def device(self) -> torch.device:
        """Where the head lives."""
        return next(self.head.parameters()).device

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(
        self, traces: Sequence[Trace], *, ends: Sequence[Sequence[int]] | None = None, batch_tokens: int = 16384
    ) -> Reads:
        """Backbone features at every read of ``traces``, in their order.

        Args:
            ends: token indices to read in each trace; those of the granularity when None.
        """
        encoded = encode(self.tokenizer, traces)
        places = [
            list(ends[index]) if ends else read_tokens(item, trace, self.params.granularity, self.params.interval)
            for index, (item, trace) in enumerate(zip(encoded, traces, strict=True))
        ]
        features: list[Tensor | None] = [None] * len(traces)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.params.train_backbone):
            for batch in batches_by_length([len(item.ids) for item in encoded], batch_tokens):
                rows = self._features([encoded[index] for index in batch], [places[index] for index in batch])
                for index, row in zip(batch, rows, strict=True):
                    features[index] = row
        counts = torch.tensor([len(place) for place in places])
        return Reads(
            torch.cat([row for row in features if row is not None]),
            torch.arange(len(traces)).repeat_interleave(counts),
            torch.tensor([token for place in places for token in place]),
        )

    def _features(self, encoded: Sequence[Encoded], places: Sequence[Sequence[int]]) -> list[Tensor]:
        ids, _ = pad([item.ids for item in encoded], self.tokenizer.pad_token_id or 0)
        ids = ids.to(self.device)
        if self.params.head == "linear":
            # Padding is on the right, where causal attention never looks: no mask is needed.
            hidden = self.backbone(input_ids=ids).last_hidden_state
            return [row[torch.tensor(place, device=row.device)] for row, place in zip(hidden, places, strict=True)]
        out = self.backbone(input_ids=ids, output_hidden_states=True)
        hidden = torch.cat(out.hidden_states[1:], dim=-1)
        surprise = token_surprise(out.logits, ids)
        return [
            torch.cat(
                [pool_units(row, item.prompt_tokens, place), surprisal_features(seen, item.prompt_tokens, place)], -1
            )
            for row, seen, item, place in zip(hidden, surprise, encoded, places, strict=True)
        ]

    def logits(self, reads: Reads) -> Tensor:
        """The logit z of every read: shape ``(R,)``."""
        return self.head(reads.features).squeeze(-1)

    @torch.no_grad()
    def score(self, traces: Sequence[Trace], *, progress: bool = False, chunk: int = 256) -> list[Scores]:
        """Score traces: the logit at each step's end and at the end of the text.

        A step that ends between two reads of the granularity takes the first read at or after its end (back-filling).

        Raises:
            RairlError: for a trace without text.
        """
        self.eval()
        empty = [trace.id for trace in traces if not trace.text]
        if empty:
            raise RairlError(f"trace {empty[0]!r} has no text; only solved problems can be scored")
        scores: list[Scores] = []
        bar = tqdm(total=len(traces), desc="scoring", unit="trace", disable=not progress)
        for start in range(0, len(traces), chunk):
            part = traces[start : start + chunk]
            scores += self._score(part)
            bar.update(len(part))
        bar.close()
        return scores

    def _score(self, traces: Sequence[Trace]) -> list[Scores]:
        encoded = encode(self.tokenizer, traces)
        reads = self.read(traces)
        logits = self.logits(reads).double().cpu().numpy()
        owner, tokens = reads.trace.numpy(), reads.token.numpy()
        bounds = np.searchsorted(owner, np.arange(len(traces) + 1))
        scores = []
        for index, (item, trace) in enumerate(zip(encoded, traces, strict=True)):
            mine = slice(bounds[index], bounds[index + 1])
            ends = [token_at(item, step.end) for step in trace.steps]
            at = np.searchsorted(tokens[mine], ends)
            scores.append(Scores(logits[mine][at] if ends else np.zeros(0), float(logits[mine][-1])))
        return scores

    # --- folder -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write backbone, tokenizer, head, parameters and calibration; safetensors only."""
        from safetensors.torch import save_file

        quiet()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.params.head == "linear":
            self._as_token_classifier().save_pretrained(folder)
        else:
            self.backbone.save_pretrained(folder)
            save_file(
                {key: value.contiguous() for key, value in self.head.state_dict().items()}, folder / "head.safetensors"
            )
        self.tokenizer.save_pretrained(folder)
        card = {"format": FORMAT, "params": self.params.model_dump(), "calibration": asdict(self.calibration)}
        (folder / "reward.json").write_text(json.dumps(card, indent=2) + "\n")

    def _as_token_classifier(self) -> PreTrainedModel:
        from transformers import AutoModelForTokenClassification

        model = AutoModelForTokenClassification.from_config(_one_label(self.backbone.config))
        getattr(model, model.base_model_prefix).load_state_dict(self.backbone.state_dict())
        model.score.load_state_dict(self.head.state_dict())
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> RewardModel:
        """Load a folder written by :meth:`save_pretrained`, in evaluation mode.

        Raises:
            RairlError: when the folder is missing, is not a reward model, or has another layout version.
        """
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

        quiet()
        folder = Path(folder)
        try:
            card = json.loads((folder / "reward.json").read_text())
        except FileNotFoundError as error:
            raise RairlError(
                f"{folder} holds no reward model (reward.json is missing); train one with `make repro`"
            ) from error
        if card.get("format") != FORMAT:
            raise RairlError(f"{folder}/reward.json has format {card.get('format')}, this version reads {FORMAT}")
        params = RewardParams(**card["params"])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if params.head == "linear":
            whole = AutoModelForTokenClassification.from_pretrained(folder)
            model = cls(getattr(whole, whole.base_model_prefix), tokenizer, params, Calibration(**card["calibration"]))
            model.head.load_state_dict(whole.score.state_dict())
        else:
            backbone = AutoModelForCausalLM.from_pretrained(folder)
            model = cls(backbone, tokenizer, params, Calibration(**card["calibration"]))
            model.head.load_state_dict(load_file(folder / "head.safetensors"))
        return model.eval()

    def calibrated(self, **changes: object) -> RewardModel:
        """Set calibration fields; returns self."""
        self.calibration = replace(self.calibration, **changes)  # type: ignore[arg-type]
        return self


def new_reward(folder: str | Path, params: RewardParams, *, seed: int) -> RewardModel:
    """An untrained reward model on the backbone in ``folder``."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    quiet()
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = AutoModel if params.head == "linear" else AutoModelForCausalLM
    return RewardModel(kind.from_pretrained(folder), tokenizer, params)


def _one_label(config: object) -> object:
    import copy

    config = copy.deepcopy(config)
    config.num_labels = 1  # type: ignore[attr-defined]
    return config


def token_surprise(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token and entropy of the distribution it was drawn from: ``(B, T, 2)``; token 0 has zeros."""
    logprobs = logits[:, :-1].float().log_softmax(-1)
    picked = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return nn.functional.pad(torch.stack([picked, entropy], -1), (0, 0, 1, 0))


def pool_units(hidden: Tensor, prompt_tokens: int, places: Sequence[int]) -> Tensor:
    """For each read: the hidden state there, and the mean over its unit (the tokens since the read before).

    Args:
        hidden: ``(T, H)``.

    Returns:
        ``(len(places), 2 H)``.
    """
    ends = torch.tensor(places, device=hidden.device)
    starts = torch.cat([ends.new_tensor([prompt_tokens]), ends[:-1] + 1])
    total = nn.functional.pad(hidden.cumsum(0), (0, 0, 1, 0))
    means = (total[ends + 1] - total[starts]) / (ends + 1 - starts)[:, None]
    return torch.cat([hidden[ends], means], -1)


def surprisal_features(surprise: Tensor, prompt_tokens: int, places: Sequence[int]) -> Tensor:
    """How surprised the backbone is, at each read: ``(len(places), 6)``.

    Unit = tokens since the read before: its mean and lowest log-probability and its mean entropy; then mean and lowest
    log-probability, and mean entropy, of the completion so far.
    """
    rows = []
    start = prompt_tokens
    for place in places:
        unit, so_far = surprise[start : place + 1], surprise[prompt_tokens : place + 1]
        rows.append(
            torch.stack(
                [
                    unit[:, 0].mean(),
                    unit[:, 0].min(),
                    unit[:, 1].mean(),
                    so_far[:, 0].mean(),
                    so_far[:, 0].min(),
                    so_far[:, 1].mean(),
                ]
            )
        )
        start = place + 1
    return torch.stack(rows)
