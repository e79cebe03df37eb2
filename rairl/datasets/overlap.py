"""How much two splits share: the same problem, and nearly the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rairl.datasets import question_key

SHINGLE = 5
"""Words in a row that are compared: a problem with one number changed keeps all but five of its shingles."""
NEAR = 0.8
"""Share of common shingles (Jaccard) from which two problems count as near duplicates (Broder 1997)."""


def near_duplicates(first: Sequence[str], second: Sequence[str], *, near: float = NEAR) -> dict[str, Any]:
    """Problems of ``second`` that some problem of ``first`` nearly equals, exact copies left out.

    Problems are compared by the words and numbers of :func:`rairl.datasets.question_key`, as sets of five in a row;
    a shorter problem is one shingle.

    Returns:
        ``{"near": how many problems of second, "closest": highest Jaccard similarity, "pair": the two problems}``;
        similarity 0 and no pair where nothing is shared.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    own_keys, other_keys = (sorted({question_key(problem) for problem in problems}) for problems in (first, second))
    own_keys = sorted(set(own_keys) - set(other_keys))
    if not own_keys or not other_keys:
        return {"near": 0, "closest": 0.0, "pair": []}
    vectorizer = CountVectorizer(analyzer=shingles, binary=True, dtype=np.int32)
    rows = vectorizer.fit_transform([*own_keys, *other_keys])
    left, right = rows[: len(own_keys)], rows[len(own_keys) :]
    shared = (left @ right.T).tocoo()
    if not shared.nnz:
        return {"near": 0, "closest": 0.0, "pair": []}
    sizes = np.asarray(rows.sum(axis=1)).ravel()
    total = sizes[: len(own_keys)][shared.row] + sizes[len(own_keys) :][shared.col] - shared.data
    similar = shared.data / total
    best = int(similar.argmax())
    return {
        "near": len(set(shared.col[similar >= near].tolist())),
        "closest": round(float(similar[best]), 3),
        "pair": [own_keys[shared.row[best]], other_keys[shared.col[best]]],
    }


def shingles(key: str) -> list[str]:
    """Every five words in a row of a problem's key; the whole of a shorter one."""
    words = key.split()
    return [" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))]
