"""A report's pictures, as SVG that stands in the page and takes its colours in light and in dark.

    pictures = draw(opening, sections)
    pictures["path"]            # "<svg ...>", "" where there is nothing to draw

Text stays text, so Korean shows in the reader's own fonts. Colours: Okabe and Ito 2008, told apart by colour-blind readers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#123456"  # stands for the page's own colour
_WIDE, _SMALL = (
    (4.6, 3.2),
    (2.4, 1.7),
)  # inches: as wide as a phone, and half of it, so that type stays readable there
_MANY = 30  # steps from which single ones are not marked
_COLUMNS = 160  # of a heat map; more steps than these are averaged


def draw(opening: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Returns {"path", "english", "gate_looks": SVG; "curves", "retention", "rewards": [(title, SVG)]}."""
    named = lambda one: f"{one['phase']}, {one['stage']}"
    return {
        "path": _path(opening["path"]),
        "english": _english(sections["english"]),
        "gate_looks": _gate_looks(sections["gate_looks"]),
        "curves": [(named(one), _curve(one)) for one in sections["curves"]],
        "retention": [(named(one), _heat_map(one)) for one in sections["retention"]],
        "rewards": [(named(one), _rewards(one)) for one in sections["rewards"]],
    }


def _path(points: list[dict[str, Any]]) -> str:
    """Korean gained (x) against English kept (y), in points, a point a phase."""
    if not points:
        return ""
    figure, axes = _axes("path", _WIDE)
    ko, en = ([point[language] for point in points] for language in ("ko", "en"))
    xs, ys = ([one["points"] for one in side] for side in (ko, en))
    axes.axhline(0, color=_INK, linewidth=0.6, alpha=0.5)
    axes.axvline(0, color=_INK, linewidth=0.6, alpha=0.5)
    axes.plot([0, *xs], [0, *ys], color=_INK, linewidth=0.8, alpha=0.5)
    for i, (x, y, point) in enumerate(zip(xs, ys, points)):
        colour, is_last = COLOURS[i % len(COLOURS)], i == len(points) - 1
        spread = [[[v["points"] - v["low"]], [v["high"] - v["points"]]] for v in (ko[i], en[i])]
        axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], fmt="o", color=colour, label=point["phase"],
                      markersize=6 if is_last else 4, linewidth=1.4 if is_last else 0.6, alpha=1 if is_last else 0.55)  # fmt: skip
    axes.set_xlabel(f"Korean gained, points ({points[0]['exams']['ko']})")
    axes.set_ylabel(f"English kept, points ({points[0]['exams']['en']})")
    _legend_below(axes)
    return _svg(figure)


def _english(found: dict[str, Any]) -> str:
    if not found or not found["points"]:
        return ""
    figure, axes = _axes("english", _WIDE)
    scores = [point["score"] for point in found["points"]]
    shares = [100 * score["accuracy"] for score in scores]
    below = [100 * (score["accuracy"] - score["low"]) for score in scores]
    above = [100 * (score["high"] - score["accuracy"]) for score in scores]
    axes.errorbar(
        range(len(shares)), shares, yerr=[below, above], fmt="o-", color=COLOURS[0], linewidth=1.2
    )
    axes.axhline(100 * scores[0]["chance"], color=_INK, linewidth=0.8, linestyle=":")
    axes.annotate("guessing", (0, 100 * scores[0]["chance"]), fontsize=8, color=_INK, va="bottom")
    _named_places(axes, [point["at"] for point in found["points"]])
    axes.set_ylabel(f"{found['exam']}, % right", fontsize=9)
    return _svg(figure)


def _gate_looks(found: dict[str, Any]) -> str:
    """What the gates read, on the score's own scale: filled where the gate opened, hollow where it did not."""
    if not found or not found["points"]:
        return ""
    figure, axes = _axes("gate looks", _WIDE)
    for i, point in enumerate(found["points"]):
        score, low, high, line = (100 * point[name] for name in ("score", "low", "high", "line"))
        axes.plot([i - 0.4, i + 0.4], [line, line], color=COLOURS[1], linewidth=1.6)
        axes.errorbar(i, score, yerr=[[score - low], [high - score]], fmt="o", color=COLOURS[0], linewidth=1.2,
                      markerfacecolor=COLOURS[0] if point["passed"] else "none")  # fmt: skip
    _named_places(axes, [point["at"] for point in found["points"]])
    axes.set_ylabel(f"{found['exam']}, {found['metric']}, %", fontsize=9)
    return _svg(figure)


def _named_places(axes: Any, names: list[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=7.5)


def _curve(one: dict[str, Any]) -> str:
    figure, axes = _axes(f"curve {one['phase']} {one['stage']}", _SMALL)
    for i, (name, rows) in enumerate((("training", one["loss"]), ("held out", one["held_out"]))):
        if rows:
            axes.plot(
                *zip(*rows),
                color=COLOURS[i],
                linewidth=1.2,
                marker="." if len(rows) < _MANY else "",
                label=name,
            )
    if one["held_out"]:
        axes.legend(frameon=False, fontsize=7, labelcolor=_INK)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("nats", fontsize=8)
    return _svg(figure)


def _heat_map(one: dict[str, Any]) -> str:
    """Layers upwards, steps to the right; a layer that a step did not draw stays empty."""
    import numpy as np

    figure, axes = _axes(f"heat {one['phase']} {one['stage']}", _WIDE)
    grid = _averaged(
        np.array([[np.nan if x is None else x for x in row] for row in one["kl"]], float)
    ).T
    last = one["steps"][-1]
    shown = axes.imshow(
        grid,
        cmap="cividis",
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(one["steps"][0] - 0.5, last + 0.5, -0.5, grid.shape[0] - 0.5),
    )
    bar = figure.colorbar(shown, ax=axes)
    bar.set_label("nats from the reference", color=_INK, fontsize=8)
    bar.ax.tick_params(colors=_INK, labelsize=7)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    return _svg(figure)


def _averaged(rows: Any) -> Any:
    """Returns at most _COLUMNS rows [steps, layers]: means of neighbours, NaN where none of them was drawn."""
    import numpy as np

    parts = np.array_split(rows, min(len(rows), _COLUMNS))
    n = np.stack([np.isfinite(part).sum(axis=0) for part in parts])
    sums = np.stack([np.nansum(part, axis=0) for part in parts])
    return np.where(n > 0, sums / np.maximum(n, 1), np.nan)


def _rewards(one: dict[str, Any]) -> str:
    figure, axes = _axes(f"reward {one['phase']} {one['stage']}", _WIDE)
    for i, (name, values) in enumerate(one["series"].items()):
        pairs = [(step, value) for step, value in zip(one["steps"], values) if value is not None]
        if pairs:
            axes.plot(*zip(*pairs), color=COLOURS[i % len(COLOURS)], linewidth=1.2, marker="." if len(pairs) < _MANY else "", label=name.replace("_", " "),
                      linestyle="--" if name == "dead_groups" else "-")  # fmt: skip
    _legend_below(axes)
    axes.set_xlabel("step", fontsize=8)
    return _svg(figure)


def draw_study(points: Sequence[tuple[str, Any, Any]], korean: str, english: str) -> str:
    """Korean gained (x) against English lost (y), in nats a token with intervals: (condition, both as `study.Moved`)."""
    figure, axes = _axes("study", (6.4, 4.6))
    axes.axhline(0, color=_INK, linewidth=0.6, alpha=0.5)
    for i, (condition, ko, en) in enumerate(points):
        spread = [[en.mean - en.low], [en.high - en.mean]]
        sideways = [[ko.high - ko.mean], [ko.mean - ko.low]]
        axes.errorbar(-ko.mean, en.mean, xerr=sideways, yerr=spread, fmt="os^D"[i // len(COLOURS)],
                      color=COLOURS[i % len(COLOURS)], label=condition, linewidth=0.8)  # fmt: skip
    axes.set_xlabel(f"Korean gained, nats a token ({korean})")
    axes.set_ylabel(f"English lost, nats a token ({english})")
    _legend_below(axes)
    return _svg(figure).replace("currentColor", "#555")


def _legend_below(axes: Any) -> None:
    below = dict(loc="upper center", bbox_to_anchor=(0.46, -0.16), ncols=3)
    close = dict(columnspacing=0.8, handletextpad=0.2, handlelength=1.4)
    axes.legend(frameon=False, fontsize=7.5, labelcolor=_INK, **below, **close)


def _axes(name: str, size: tuple[float, float]):
    """Returns a figure and its axes. name: makes the ids in its SVG its own, and the same each time."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "text.parse_math": False,
            "font.family": "sans-serif",
        }
    )
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.set_facecolor("none")
    return figure, axes


def _svg(figure: Any) -> str:
    """Returns the figure as an element of a page: no prologue, no size of its own, the ink the page's."""
    written = io.StringIO()
    figure.savefig(
        written, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
    )
    text = written.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img">{re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)}'
