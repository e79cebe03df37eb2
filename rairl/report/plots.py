"""Plots as PNG files, error bars on every point, in colours that stay apart for colour-blind readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from rairl.core.stats import Estimate, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000")
"""Okabe and Ito's palette, the yellow left out (unreadable on white)."""
MARKERS = "osD^vP*X"
_DPI = 110
WINDOW = 9
"""Iterations behind each point of a training curve."""
BAND = (
    f"Lines are means over the {WINDOW} iterations around each, bands their 95 % intervals (Student's t, as if "
    "iterations were independent, which they aren't quite; none over less than three records), dots the records."
)
"""What a training curve shows, for its caption."""


def _figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    heights: Sequence[float] | None = None,
    layout: str | None = "constrained",
) -> tuple[Figure, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout=layout, height_ratios=heights
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version stamp the same numbers give the same bytes, so DVC sees no change where there is none.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    plt.close(figure)
    return path


def _errors(estimates: Sequence[Estimate]) -> np.ndarray:
    """Lengths of the error bars below and above: ``(2, n)``."""
    return np.array([[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]).clip(min=0)


def forest(
    rows: Mapping[str, Estimate], path: Path, *, label: str, reference: float | None = None, strong: Sequence[str] = ()
) -> Path:
    """One horizontal error bar per row, first row on top, with its number beside it.

    Args:
        rows: label of the row to its figure.
        path: PNG to write.
        label: of the axis.
        reference: where to draw a line, such as chance.
        strong: rows in the accent colour.
    """
    figure, axes = _figure(7.0, 0.9 + 0.34 * len(rows))
    _forest(axes[0, 0], rows, label, reference, strong)
    return _save(figure, path)


def forests(
    panels: Mapping[str, tuple[Mapping[str, Estimate], float | None]], path: Path, *, strong: Sequence[str] = ()
) -> Path:
    """Several of :func:`forest` below one another: label of the axis to its rows and its reference line."""
    sizes = [len(rows) for rows, _ in panels.values()]
    figure, axes = _figure(7.0, sum(0.9 + 0.34 * size for size in sizes), len(panels), heights=sizes)
    for axis, (label, (rows, reference)) in zip(axes.flat, panels.items(), strict=True):
        _forest(axis, rows, label, reference, strong)
    return _save(figure, path)


def _forest(
    axis: Axes, rows: Mapping[str, Estimate], label: str, reference: float | None, strong: Sequence[str]
) -> None:
    for row, (name, estimate) in enumerate(rows.items()):
        colour = COLOURS[1] if name in strong else COLOURS[0]
        axis.errorbar(
            estimate.value, row, xerr=_errors([estimate]), fmt="o", color=colour, capsize=3, markersize=5, linewidth=1.5
        )
        axis.annotate(
            f"{estimate.value:.3f}",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=colour,
        )
    if reference is not None:
        axis.axvline(reference, color="#333333", linestyle="--", linewidth=1)
    _lay_rows(axis, list(rows), label)


def _lay_rows(axis: Axes, names: Sequence[str], label: str) -> None:
    """One row per name, the first on top; ``label`` is the x axis's."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(label)


def compared(series: Mapping[str, Mapping[str, Estimate]], path: Path, *, label: str) -> Path:
    """Horizontal error bars of several methods side by side, one group per row.

    Args:
        series: label of the colour to ``{row: figure}``; the rows are those of the first one.
        path: PNG to write.
        label: of the axis.
    """
    names = list(next(iter(series.values())))
    figure, axes = _figure(7.0, 1.1 + 0.4 * len(names))
    axis = axes[0, 0]
    for index, (name, line) in enumerate(series.items()):
        shift = 0.5 * ((index + 0.5) / len(series) - 0.5)
        rows = [(position, line[row]) for position, row in enumerate(names) if row in line]
        axis.errorbar(
            [estimate.value for _, estimate in rows],
            [position + shift for position, _ in rows],
            xerr=_errors([estimate for _, estimate in rows]),
            fmt=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            capsize=2,
            markersize=5,
            linewidth=1.3,
            label=name,
        )
    _lay_rows(axis, names, label)
    axis.legend(fontsize=8, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _save(figure, path)


def curves(
    series: Mapping[str, Mapping[int, Estimate]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    reference: float | None = None,
) -> Path:
    """Lines over a doubling axis (N or k), an error bar on every point.

    Args:
        series: label of the line to ``{x: figure}``.
    """
    figure, axes = _figure(6.4, 4.2)
    axis = axes[0, 0]
    ticks = sorted({x for line in series.values() for x in line})
    for index, (name, line) in enumerate(series.items()):
        xs = sorted(line)
        shift = 1 + 0.012 * (index - len(series) / 2)  # so that error bars do not hide one another
        axis.errorbar(
            [x * shift for x in xs],
            [line[x].value for x in xs],
            yerr=_errors([line[x] for x in xs]),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="-" if index < len(COLOURS) else ":",
            capsize=2,
            markersize=5,
            linewidth=1.4,
            label=name,
        )
    if reference is not None:
        axis.axhline(reference, color="#333333", linestyle="--", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(x) for x in ticks])
    axis.minorticks_off()
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.legend(fontsize=8, frameon=False, ncols=2 if len(series) > 4 else 1)
    return _save(figure, path)


def reliability(series: Mapping[str, Mapping[float, Estimate]], path: Path) -> Path:
    """Share of right candidates over their mean predicted probability, error bars on every bin; the diagonal is ideal.

    Args:
        series: label of the line to ``{mean probability of the bin: share right}``.
    """
    figure, axes = _figure(5.2, 4.6)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="#333333", linestyle="--", linewidth=1)
    for index, (name, line) in enumerate(series.items()):
        shares = list(line.values())
        axis.errorbar(
            list(line),
            [share.value for share in shares],
            yerr=_errors(shares),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            capsize=2,
            markersize=5,
            linewidth=1.2,
            label=name,
        )
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("predicted probability of a right answer")
    axis.set_ylabel("share of right answers")
    axis.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def groups(
    series: Mapping[str, Mapping[str, Estimate]], path: Path, *, ylabel: str, reference: float | None = None
) -> Path:
    """Points side by side per place on the x axis, an error bar on each.

    Args:
        series: label of the colour to ``{place: figure}``.
    """
    figure, axes = _figure(6.4, 4.2)
    axis = axes[0, 0]
    places = list(dict.fromkeys(place for line in series.values() for place in line))
    for index, (name, line) in enumerate(series.items()):
        present = [place for place in places if place in line]
        axis.errorbar(
            [places.index(place) + 0.6 * ((index + 0.5) / len(series) - 0.5) for place in present],
            [line[place].value for place in present],
            yerr=_errors([line[place] for place in present]),
            fmt=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            capsize=3,
            markersize=6,
            linewidth=1.5,
            label=name,
        )
    if reference is not None:
        axis.axhline(reference, color="#333333", linestyle="--", linewidth=1)
    axis.set_xticks(range(len(places)), [fill(place, 11) for place in places])  # so that neighbours don't overlap
    axis.set_xlim(-0.6, len(places) - 0.4)
    axis.set_ylabel(ylabel)
    axis.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def twin(rows: Sequence[Mapping[str, float]], left: tuple[str, str], right: tuple[str, str], path: Path) -> Path:
    """Two quantities of a training history over ``step``, each with its own axis, drawn as :data:`BAND` says.

    Args:
        rows: one dict per record with ``step`` and path-like keys.
        left, right: key and label of each quantity.
        path: PNG to write.
    """
    figure, axes = _figure(6.4, 3.6)
    first = axes[0, 0]
    second = first.twinx()
    second.spines[["top"]].set_visible(False)
    for axis, (key, label), colour, style in ((first, left, COLOURS[1], "-"), (second, right, COLOURS[0], "--")):
        _trend(axis, rows, key, color=colour, linestyle=style, linewidth=1.5)
        axis.set_ylabel(label, color=colour)
        axis.tick_params(axis="y", labelcolor=colour)
    first.set_xlabel("iteration")
    return _save(figure, path)


def histories(rows: Sequence[Mapping[str, float]], path: Path, *, columns: int = 3) -> Path:
    """Small multiples of a training history: one panel per quantity, over ``step``, drawn as :data:`BAND` says.

    Args:
        rows: one dict per record with ``step`` and path-like keys; a key need not be in every row. Keys that differ in
            their last part only (``critic/accuracy/expert``, ``critic/accuracy/policy``) share a panel.
        path: PNG to write.
        columns: panels per line.
    """
    panels = history_panels(rows)
    lines = -(-len(panels) // columns)
    figure, axes = _figure(3.3 * columns, 2.3 * lines, lines, columns, layout=None)
    # Panels of one size need no layout to be worked out, which would take as long as the drawing, twice.
    figure.subplots_adjust(left=0.16 / columns, right=1 - 0.04 / columns, bottom=0.13 / lines, top=1 - 0.13 / lines)
    figure.subplots_adjust(wspace=0.22, hspace=0.36)
    for axis, (title, keys) in zip(axes.flat, panels.items(), strict=False):
        _history_panel(axis, title, keys, rows)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    return _save(figure, path)


def history_panels(rows: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
    """Title of each panel to its keys, in order of first appearance; see :func:`histories`."""
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value)):
        if key != "step":
            title = key.rsplit("/", 1)[0] if key.count("/") > 1 else key
            panels.setdefault(title, []).append(key)
    return panels


def rolling(steps: Values, values: Values, width: int = WINDOW) -> np.ndarray:
    """Means over a centred window, and their 95 % intervals by Student's t (independent, equally distributed values).

    A trend within the window counts as spread and widens the interval; neighbours that resemble one another for other
    reasons make it too narrow.

    Args:
        steps: ``(n,)``, the iterations that the values were recorded at.
        values: ``(n,)``.
        width: iterations in a window, odd; fewer at both ends.

    Returns:
        ``(3, n)``: mean, low, high; low and high are NaN where the window has less than three values.
    """
    from scipy.stats import t

    at, array = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    rows = np.full((3, len(array)), np.nan)
    for index, step in enumerate(at):
        part = array[np.abs(at - step) <= width // 2]
        rows[0, index] = part.mean()
        if len(part) > 2:
            reach = t.ppf(0.975, len(part) - 1) * part.std(ddof=1) / np.sqrt(len(part))
            rows[1:, index] = part.mean() - reach, part.mean() + reach
    return rows


def _trend(axis: Axes, rows: Sequence[Mapping[str, float]], key: str, *, color: str, **line: Any) -> None:
    """One quantity of a history as :data:`BAND` says; ``line`` goes to the line of means."""
    points = [(row["step"], row[key]) for row in rows if _is_number(row.get(key))]
    steps, values = [step for step, _ in points], [value for _, value in points]
    mean, low, high = rolling(steps, values)
    axis.plot(steps, mean, color=color, **line)
    axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axis.plot(steps, values, ".", color=color, markersize=2, alpha=0.5)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _history_panel(axis: Axes, title: str, keys: Sequence[str], rows: Sequence[Mapping[str, float]]) -> None:
    for index, key in enumerate(keys):
        _trend(
            axis,
            rows,
            key,
            color=COLOURS[index % len(COLOURS)],
            linestyle=("-", "--", ":")[index // len(COLOURS) % 3],
            linewidth=1.2,
            label=key.rsplit("/", 1)[-1],
        )
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    if len(keys) > 1:
        axis.legend(fontsize=6, frameon=False)
