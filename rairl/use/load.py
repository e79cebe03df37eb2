"""Where a reward model comes from: a folder, the MLflow registry, or the hub; and a copy of it to give away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rairl.core.errors import RairlError
from rairl.models.card import CARD, require_reward, write_card
from rairl.models.reward import RewardModel
from rairl.tracking.store import registered_reward

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", CARD]
"""What a reward's folder is made of; nothing else is fetched from the hub."""


def load(source: str | Path) -> RewardModel:
    """Load a reward model, in evaluation mode.

    Args:
        source: as for :func:`reward_folder`.

    Raises:
        RairlError: when the source is missing or is not a reward model.
    """
    with reward_folder(source) as folder:
        return RewardModel.from_pretrained(folder)


@contextmanager
def reward_folder(source: str | Path) -> Iterator[Path]:
    """The folder of a reward model while it is being read.

    Args:
        source: a folder; ``models:/name@alias`` or ``models:/name/version`` in the MLflow registry; or a repository of
            the Hugging Face hub with the commit to pin, ``owner/name@commit``.

    Raises:
        RairlError: when the registry has no such model or the hub no such commit.
    """
    if str(source).startswith("models:/"):
        with registered_reward(str(source)) as folder:
            yield folder
    elif "@" in str(source) and not Path(source).exists():
        yield _from_hub(str(source))
    else:
        yield Path(source)


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, commit = source.rpartition("@")
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise RairlError(
            f"the hub has no commit {commit!r} of {name!r}, or can't be reached ({str(error).splitlines()[0]})"
        ) from error


def export(source: str | Path, target: str | Path) -> None:
    """Copy a reward model into a folder that needs nothing else: weights, tokenizer, parameters, calibration, card.

    The copy is loaded once before it gets its name, so a folder that is there is one that works.

    Args:
        source: as for :func:`reward_folder`.
        target: the folder to make.

    Raises:
        RairlError: when ``source`` is no reward model or ``target`` is there already.
    """
    target = Path(target)
    if target.exists():
        raise RairlError(f"{target} is there already; name a folder that is not")
    draft = target.with_name(f".part-{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    with reward_folder(source) as folder:
        require_reward(folder)
        shutil.copytree(folder, draft)
    try:
        if not (draft / CARD).is_file():
            write_card(draft)
        RewardModel.from_pretrained(draft)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
