import itertools
import subprocess
import sys

import numpy as np
import pytest

from continual.measure.performance import summary

mpl = pytest.importorskip("matplotlib")

from continual.report.figures import (  # noqa: E402
    comparison,
    forgetting_curves,
    heatmap,
    save_figures,
)


def make_matrix(stages, seed=0, without=None, names=None):
    """A random matrix.json; ``without`` is a corpus that has no test queries."""
    rng = np.random.default_rng(seed)
    P = [
        [None if o == without else float(value) for o, value in enumerate(rng.random(n + 1))]
        for n in range(stages)
    ]
    metrics = {"hits@10": P, "indexing_accuracy": P}
    return {
        "schema": 1,
        "corpora": names or [f"D{o}" for o in range(stages)],
        "metrics": metrics,
        **summary(metrics),
    }


def texts(figure):
    found = [text for axes in figure.axes for text in axes.texts] + list(figure.texts)
    return [text.get_text() for text in found]


def overlaps(figure, artists):
    """Pairs of texts whose boxes intersect when drawn."""
    renderer = figure.canvas.get_renderer()
    boxes = [(artist.get_text(), artist.get_window_extent(renderer)) for artist in artists]
    return [
        (left, right)
        for (left, a), (right, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def outside(figure):
    """Texts that the border of the figure cuts."""
    renderer = figure.canvas.get_renderer()
    artists = [text for axes in figure.axes for text in axes.texts] + list(figure.texts)
    for axes in figure.axes:
        artists += [axes.xaxis.label, axes.yaxis.label]
        low, high = sorted(axes.get_xlim())  # ticks beyond the limits exist but are not drawn
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        artists += [label for place, label in ticks if low <= place <= high]
    frame = figure.bbox
    boxes = [(artist.get_text(), artist.get_window_extent(renderer)) for artist in artists]
    return [
        text
        for text, box in boxes
        if text and (box.x0 < 0 or box.y0 < 0 or box.x1 > frame.x1 or box.y1 > frame.y1)
    ]


@pytest.mark.parametrize("stages", [1, 2, 6, 20])
def test_curves_show_the_lower_triangle_in_percent(stages):
    matrix = make_matrix(stages)
    figure = forgetting_curves(matrix)
    (axes,) = figure.axes
    drawn = [np.asarray(line.get_xydata()).T for line in axes.lines]
    P = matrix["metrics"]["hits@10"]
    for o in range(stages):
        expected = [100 * P[n][o] for n in range(o, stages)]
        assert any(
            list(x) == list(range(o, stages)) and np.allclose(y, expected)
            for x, y in drawn
            if len(x) == len(expected)
        )
    assert axes.get_xlabel() == "stage $n$"
    assert axes.get_ylabel() == "Hits@10 (%)"


@pytest.mark.parametrize("stages", [1, 2, 6, 20])
def test_curve_labels_are_complete_and_do_not_collide(stages):
    matrix = make_matrix(stages)
    figure = forgetting_curves(matrix)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(axes.texts) == (1 if stages == 1 else stages + 1)
    assert overlaps(figure, axes.texts) == []
    assert outside(figure) == []
    value = 100 * matrix["metrics"]["hits@10"][-1][0]
    assert f"D0  {value:.1f}" in texts(figure)


def test_equal_curves_still_get_separate_labels():
    matrix = make_matrix(8)
    for n, row in enumerate(matrix["metrics"]["hits@10"]):
        row[:] = [0.0] * (n + 1)
    matrix.update(summary(matrix["metrics"]))
    figure = forgetting_curves(matrix)
    figure.canvas.draw()
    assert overlaps(figure, figure.axes[0].texts) == []
    assert outside(figure) == []


@pytest.mark.parametrize("stages", [1, 2, 6, 20])
def test_heatmap_has_one_annotated_cell_per_measurement(stages):
    matrix = make_matrix(stages)
    figure = heatmap(matrix)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(axes.patches) == stages * (stages + 1) // 2
    digits = 1 if stages <= 8 else 0
    for row in matrix["metrics"]["hits@10"]:
        for value in row:
            assert f"{100 * value:.{digits}f}" in texts(figure)
    assert overlaps(figure, axes.texts) == []
    assert outside(figure) == []


def test_a_corpus_without_queries_is_a_dash_and_no_line():
    matrix = make_matrix(4, without=2)
    drawn = texts(heatmap(matrix))
    # D2 in two rows, and F_0 and LA_0 in the margin.
    assert drawn.count("\u2013") == 4
    assert not any(text.startswith("D2 ") for text in texts(forgetting_curves(matrix)))


def test_values_above_the_diagonal_are_not_drawn():
    matrix = make_matrix(3)
    full = make_matrix(3)
    for n, row in enumerate(full["metrics"]["hits@10"]):
        row += [0.999] * (2 - n)
    assert texts(heatmap(full)) == texts(heatmap(matrix))
    assert texts(forgetting_curves(full)) == texts(forgetting_curves(matrix))


def test_long_and_odd_names_fit():
    names = ["encyclopedia", "news $of$ the year", "a name that goes on and on", "x"]
    matrix = make_matrix(4, names=names)
    for figure in (forgetting_curves(matrix), heatmap(matrix)):
        figure.canvas.draw()
        assert outside(figure) == []


def test_comparison_draws_every_run_in_three_panels():
    runs = {name: make_matrix(5, seed) for seed, name in enumerate(["naive", "replay", "ewc"])}
    figure = comparison(runs, "indexing_accuracy")
    figure.canvas.draw()
    assert len(figure.axes) == 3
    for axes, key in zip(
        figure.axes, ("average_performance", "forgetting", "learning_performance"), strict=True
    ):
        lines = {line.get_label(): line for line in axes.lines}
        for name, matrix in runs.items():
            values = [v for v in matrix[key]["indexing_accuracy"] if v is not None]
            np.testing.assert_allclose(np.asarray(lines[name].get_ydata()), 100 * np.array(values))
        styles = {(lines[name].get_color(), lines[name].get_marker()) for name in runs}
        assert len(styles) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    assert outside(figure) == []


def test_comparison_of_one_stage_says_why_panels_are_empty():
    assert texts(comparison({"run": make_matrix(1)})).count("defined from\nstage 1 on") == 2


def test_an_unknown_metric_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"'hits@3'.*\['hits@10', 'indexing_accuracy'\]"):
        heatmap(make_matrix(2), "hits@3")


def test_saved_figures_are_png_files_named_for_links(tmp_path):
    paths = save_figures(make_matrix(2), tmp_path / "figures")
    assert [path.name for path in paths] == [
        "forgetting_curves_hits_at_10.png",
        "heatmap_hits_at_10.png",
        "forgetting_curves_indexing_accuracy.png",
        "heatmap_indexing_accuracy.png",
    ]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_no_global_pyplot_state():
    """A server or a training process must not lose its own backend to a report."""
    code = "import sys, continual.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
