"""Figures of a performance matrix: pure functions from a parsed matrix.json to a Figure.

Shares are drawn in percent. No global pyplot state: a Figure is an object that one saves, and
``Figure.savefig`` renders without a display. Corpora have an order, so they take a sequential
colour map (viridis); runs have none, so they take the Okabe-Ito palette. Both survive colour
blindness, and every line also has its own label or marker.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#1b1f24", "#6b7480", "#e4e7eb"
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
RUN_MARKERS = "osD^vPX"
_LINE = 0.165  # height of one line of labels, inches
_LABELLED = 40  # more corpora than this and only some get a label

Cells = list[list[float | None]]


def forgetting_curves(matrix: Mapping[str, Any], metric: str = "hits@10") -> Figure:
    """P[n, o] over the stages n, one line per corpus D_o from the stage that indexed it, and A_n.

    Lines are labelled at their right end. ``matrix`` is a parsed matrix.json.
    """
    names, cells = _cells(matrix, metric)
    stages, average = len(cells), _per_stage(matrix, "average_performance", metric)
    every = -(-len(names) // _LABELLED)
    labelled = [o for o in range(stages) if o % every == 0 or o == stages - 1]
    height = max(3.6, 1.4 + _LINE * (len(labelled) + 1))
    short = [_shorten(name) for name in names]
    width = 6.15 + 0.082 * max(10, *map(len, short))
    figure = _figure(width, height)
    axes = figure.add_axes((0.62 / width, 0.55 / height, 4.75 / width, 1 - 1.22 / height))
    _title(figure, f"{_label(metric)} of each corpus after each stage", _subtitle(stages))
    colours = _sequence(stages)
    labels = []
    for o in range(stages):
        line = [(n, row[o]) for n, row in enumerate(cells) if n >= o and row[o] is not None]
        if not line:
            continue
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color=colours[o], lw=1.6 if stages <= 10 else 1.2, marker="o", ms=2.6)
        axes.plot(x[:1], y[:1], "o", ms=6, mfc="white", mec=colours[o], mew=1.6, zorder=4)
        if o in labelled:
            labels.append((y[-1], short[o], colours[o], x[-1]))
    known = [(n, value) for n, value in enumerate(average) if value is not None]
    if known and stages > 1:
        x, y = zip(*known, strict=True)
        axes.plot(x, y, color="white", lw=5, zorder=5)
        axes.plot(x, y, color=INK, lw=2.6, zorder=6, marker="s", ms=5, mec="white", mew=0.8)
        labels.append((y[-1], "average $A_n$", INK, x[-1]))
    _stage_axis(axes, stages)
    _percent_axis(axes, [value for row in cells for value in row] + average, metric)
    _end_labels(axes, labels, (height - 1.22) / _LINE)
    return figure


def heatmap(matrix: Mapping[str, Any], metric: str = "hits@10") -> Figure:
    """The lower triangle of P with its values, and A_n, F_n and LA_n of each stage beside it.

    A dash marks a corpus that has no test queries.
    """
    names, cells = _cells(matrix, metric)
    stages = len(cells)
    names = [_shorten(name) for name in names[:stages]]
    cell = 0.62 if stages <= 8 else 0.4
    size, digits = (9.5, 1) if stages <= 8 else (7.5, 0)
    margins = [
        (symbol, _per_stage(matrix, key, metric))
        for symbol, key in (
            ("$A_n$", "average_performance"),
            ("$F_n$", "forgetting"),
            ("$LA_n$", "learning_performance"),
        )
    ]
    grid = cell * stages
    longest = max(map(len, names), default=0)
    upright = 0.085 * longest <= cell
    bottom = 0.42 if upright else 0.35 + 0.055 * longest
    left, top, right = 0.95, 0.86, 0.3 + 0.62 * len(margins)
    # Wide enough for the title however few the cells are.
    width, height = max(left + grid + right, 4.6), top + grid + bottom
    figure = _figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, grid / width, grid / height))
    title = f"{_label(metric)} by stage and corpus"
    _title(figure, title, "percent; row = after stage $n$, column = corpus")
    known = [value for row in cells for value in row if value is not None]
    highest = max([*known, 1e-9])
    colour_map = mpl.colormaps["YlGnBu"]
    for n in range(stages):
        for o in range(n + 1):
            value = cells[n][o]
            colour = to_hex("#f3f4f6" if value is None else colour_map(0.92 * value / highest))
            axes.add_patch(Rectangle((o, n), 1, 1, facecolor=colour, edgecolor="white", lw=1.5))
            axes.text(
                o + 0.5,
                n + 0.5,
                "\u2013" if value is None else f"{value:.{digits}f}",
                ha="center",
                va="center_baseline",
                fontsize=size,
                color=_readable(colour),
            )
    for column, (symbol, values) in enumerate(margins):
        x = stages + (0.5 + 0.62 * column) / cell
        axes.text(x, -0.12, symbol, ha="center", va="bottom", fontsize=10, color=INK)
        for n, value in enumerate(values):
            text = "\u2013" if value is None else _minus(f"{value:.1f}")
            label = axes.text(x, n + 0.5, text, fontsize=size, color=INK)
            label.set(ha="center", va="center_baseline")
    axes.set(xlim=(0, stages), ylim=(stages, 0))
    axes.set_xticks([o + 0.5 for o in range(stages)], names)
    if not upright:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks([n + 0.5 for n in range(stages)], [f"stage {n}" for n in range(stages)])
    axes.tick_params(length=0, labelsize=size, colors=INK, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def comparison(matrices: Mapping[str, Mapping[str, Any]], metric: str = "hits@10") -> Figure:
    """A_n, F_n and LA_n over the stages, side by side, one line per run (name -> matrix)."""
    panels = (
        ("average_performance", "Average performance $A_n$", "higher is better"),
        ("forgetting", "Forgetting $F_n$", "lower is better"),
        ("learning_performance", "Learning performance $LA_n$", "higher is better"),
    )
    columns = max(1, min(len(matrices), int(9.4 / (0.6 + 0.085 * max(map(len, matrices))))))
    rows = -(-len(matrices) // columns)
    bottom = 0.65 + 0.24 * rows
    width, height = 10.0, 3.75 + 0.24 * rows
    figure = _figure(width, height)
    stages = max(len(_cells(matrix, metric)[1]) for matrix in matrices.values())
    panel_width = 2.55
    for index, (key, title, direction) in enumerate(panels):
        start = 0.62 + index * (panel_width + 0.72)
        axes = figure.add_axes(
            (start / width, bottom / height, panel_width / width, 1 - (bottom + 0.95) / height)
        )
        axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=18, weight="bold")
        axes.text(0, 1.025, direction, transform=axes.transAxes, fontsize=8.5, color=MUTED)
        drawn: list[float | None] = []
        for run, (name, matrix) in enumerate(matrices.items()):
            values = _per_stage(matrix, key, metric)
            drawn += values
            known = [(n, value) for n, value in enumerate(values) if value is not None]
            axes.plot(
                [n for n, _ in known],
                [value for _, value in known],
                label=_shorten(name, 60),
                color=RUN_COLOURS[run % len(RUN_COLOURS)],
                marker=RUN_MARKERS[run % len(RUN_MARKERS)],
                ls=("-", "--", ":", "-.")[run // len(RUN_COLOURS) % 4],
                markevery=-(-stages // 10),
                lw=1.8,
                ms=5,
                mec="white",
                mew=0.6,
                clip_on=False,
                zorder=3 + len(matrices) - run,
            )
        _stage_axis(axes, stages)
        _percent_axis(axes, drawn, metric)
        if not any(value is not None for value in drawn):
            axes.set_yticks([])
            axes.text(0.5, 0.5, "defined from\nstage 1 on", transform=axes.transAxes, **_CENTRED)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(0.5 / width, 0.08 / height),
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.4,
    )
    _title(figure, f"{_label(metric)} over all corpora seen", "")
    return figure


def save_figures(matrix: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write the curves and the heatmap of every metric as PNG; returns the paths written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for metric in matrix["metrics"]:
        for kind in (forgetting_curves, heatmap):
            # "@" would need escaping in the links of an HTML report.
            path = folder / f"{kind.__name__}_{metric.replace('@', '_at_')}.png"
            kind(matrix, metric).savefig(path)
            paths.append(path)
    return paths


_CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": MUTED}


def _cells(matrix: Mapping[str, Any], metric: str) -> tuple[list[str], Cells]:
    """Corpus names, and P in percent as square rows with None above the diagonal."""
    if metric not in matrix["metrics"]:
        raise ValueError(
            f"metric {metric!r} is not in the matrix; choose {list(matrix['metrics'])}"
        )
    rows = matrix["metrics"][metric]
    square = [
        [_percent(row[o]) if o <= n and o < len(row) else None for o in range(len(rows))]
        for n, row in enumerate(rows)
    ]
    return [str(name) for name in matrix["corpora"]], square


def _per_stage(matrix: Mapping[str, Any], key: str, metric: str) -> list[float | None]:
    return [_percent(value) for value in matrix[key][metric]]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _label(metric: str) -> str:
    return {"indexing_accuracy": "Indexing accuracy"}.get(
        metric, metric.replace("hits@", "Hits@").replace("mrr@", "MRR@").replace("_", " ")
    )


def _subtitle(stages: int) -> str:
    return "open circle = the stage that indexed the corpus" if stages > 1 else "after one stage"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, title: str, subtitle: str) -> None:
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.1 / height, title, va="top", fontsize=12, color=INK, weight="bold")
    figure.text(0.012, 1 - 0.34 / height, subtitle, va="top", fontsize=9, color=MUTED)


def _sequence(count: int) -> list[str]:
    """Colours of ordered things, without the pale end of the map that vanishes on white."""
    steps = [0.0] if count < 2 else [0.88 * index / (count - 1) for index in range(count)]
    return [to_hex(mpl.colormaps["viridis"](step)) for step in steps]


def _stage_axis(axes: Axes, stages: int) -> None:
    axes.set_xlim(-0.25, max(stages - 1, 0) + 0.25)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    if stages == 1:
        axes.set_xticks([0])
    axes.set_xlabel("stage $n$", fontsize=9.5, color=INK)
    axes.tick_params(labelsize=9, colors=MUTED, length=0)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _percent_axis(axes: Axes, values: Sequence[float | None], metric: str) -> None:
    known = [value for value in values if value is not None]
    high = max([*known, 1.0])
    low = min([*known, 0.0])  # forgetting is negative where performance improved
    axes.set_ylim(low - 0.08 * (high - low) if low < 0 else 0, high + 0.08 * (high - low))
    if low < 0:
        axes.axhline(0, color=MUTED, lw=0.9, zorder=1)
    axes.set_ylabel(f"{_label(metric)} (%)", fontsize=9.5, color=INK)


def _end_labels(axes: Axes, labels: list[tuple[float, str, str, float]], capacity: float) -> None:
    """Labels right of the axes at the height of their lines, pushed apart where they collide."""
    low, high = axes.get_ylim()
    gap = (high - low) / capacity
    labels = sorted(labels, key=lambda label: label[0])
    places = _spread([label[0] for label in labels], gap, low, high)
    edge = axes.get_xlim()[1]
    step = (edge - axes.get_xlim()[0]) / 40
    for place, (value, name, colour, x) in zip(places, labels, strict=True):
        axes.plot(
            [x, edge, edge + 2.4 * step, edge + 3 * step],
            [value, value, place, place],
            color=colour,
            lw=0.7,
            alpha=0.6,
            clip_on=False,
            zorder=2,
        )
        axes.text(
            edge + 3.5 * step,
            place,
            f"{name}  {value:.1f}",
            va="center",
            fontsize=8.5,
            color=_dark(colour),
            weight="bold" if colour == INK else "normal",
        )


def _spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending values moved as little as needed to lie ``gap`` apart within the limits."""
    gap = min(gap, (high - low) / max(len(values) - 1, 1))
    blocks: list[list[float]] = []  # [sum of wished centres, count]: merged while they overlap
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and _centre(blocks[-2], gap, low, high) + gap * (
            blocks[-2][1] + blocks[-1][1]
        ) / 2 > _centre(blocks[-1], gap, low, high):
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    places = []
    for block in blocks:
        start = _centre(block, gap, low, high) - gap * (block[1] - 1) / 2
        places += [start + gap * index for index in range(int(block[1]))]
    return places


def _centre(block: Sequence[float], gap: float, low: float, high: float) -> float:
    half = gap * (block[1] - 1) / 2
    return min(max(block[0] / block[1], low + half), high - half)


def _readable(background: str) -> str:
    """White or ink, whichever has the higher WCAG 2 contrast on the background."""
    luminance = _luminance(background)
    on_white, on_ink = 1.05 / (luminance + 0.05), (luminance + 0.05) / (_luminance(INK) + 0.05)
    return "white" if on_white > on_ink else INK


def _luminance(colour: str) -> float:
    linear = [
        ((part + 0.055) / 1.055) ** 2.4 if part > 0.04 else part / 12.92 for part in to_rgb(colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _dark(colour: str) -> str:
    """The same hue, dark enough for small text on white."""
    red, green, blue = (0.78 * part for part in to_rgb(colour))
    return to_hex((red, green, blue))


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def _shorten(name: str, length: int = 16) -> str:
    name = name if len(name) <= length else name[: length - 1] + "\u2026"
    return name.replace("$", r"\$")  # a pair of dollars would be typeset as mathematics
