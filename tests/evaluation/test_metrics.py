"""The metrics on values computed by hand, and their place on the report page."""

import math
import re

import numpy as np
import pytest

from safety_modules.evaluation.metrics import Bin, auroc, brier, ece, mean_spread, reliability
from safety_modules.reporting import charts
from safety_modules.reporting.report import Report, render


def test_reliability_by_hand():
    bins = reliability([0.05, 0.95, 1.0, 0.9], [False, True, True, False], bins=10)
    assert [(row.n, row.accuracy) for row in bins] == [(1, 0.0), (3, 2 / 3)]
    assert bins[1].confidence == pytest.approx(0.95) and (bins[1].low, bins[1].high) == (0.9, 1.0)
    assert ece(bins) == pytest.approx(1 / 4 * 0.05 + 3 / 4 * (0.95 - 2 / 3))


@pytest.mark.parametrize("bins", [10, 15, 100])  # 0.29 * 100 is below 29
def test_every_edge_belongs_to_the_bin_above_it(bins):
    edges = [i / bins for i in range(bins)]
    assert [(row.low, row.n) for row in reliability(edges, [True] * bins, bins)] == [(edge, 1) for edge in edges]


def test_ece_at_its_ends():
    assert ece(reliability([1.0] * 5, [True] * 5)) == 0.0
    assert ece(reliability([1.0] * 5, [False] * 5)) == 1.0
    assert math.isnan(ece([]))


def test_brier_by_hand():
    assert brier(np.array([[1.0, 0.0], [0.0, 1.0]]), [0, 1]) == 0.0
    assert brier(np.array([[1.0, 0.0]]), [1]) == 2.0
    assert brier(np.array([[0.5, 0.25, 0.25]]), [0]) == pytest.approx(0.25 + 2 * 0.0625)


def test_auroc_and_means():
    assert auroc([0.1, 0.2, 0.9], [False, False, True]) == 1.0 and auroc([0.3, 0.3], [False, True]) == 0.5
    assert math.isnan(auroc([0.1], [True]))
    assert mean_spread([1.0, 3.0]) == {"mean": 2.0, "spread": pytest.approx(2**0.5), "n": 2}
    assert mean_spread([1.0])["spread"] == 0.0


def box(path):
    """The smallest and largest x, and y, of an SVG path."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return [(min(axis), max(axis)) for axis in (numbers[::2], numbers[1::2])]


def report(bins):
    return Report("A run", {}, {}, [], {}, None, [], (), bins)


def test_the_page_shows_reliability_and_escapes_its_titles():
    page = render(report({"Type <i>": [Bin(0.9, 1.0, 1234, 0.95, 0.9), Bin(0.5, 0.6, 2, 0.55, 0.5)]}))
    section = page.split("Reliability")[1].split("</section>")[0]
    assert "Type &lt;i&gt;" in section and "<i>" not in section
    assert "ECE 5.00%, n 1,236" in section and "confidence 95.0%, accuracy 90.0%, n 1,234" in section
    assert "no rows" in render(report({"Type": []}))
    assert "Reliability" not in render(report({}))


def test_a_point_on_the_diagonal_and_the_size_of_points():
    bins = [Bin(0.4, 0.6, 100, 0.5, 0.5), Bin(0.9, 1.0, 25, 1.0, 1.0)]
    svg = charts.reliability_chart("t", bins).svg
    drawn = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
    (diagonal,) = [box(path) for path, style in drawn if "dasharray" in style]
    points = [box(path) for path, style in drawn if "fill-opacity" in style]
    (x0, x1), (y1, y0) = diagonal  # y grows downwards
    centres = [tuple(sum(ends) / 2 for ends in point) for point in points]
    assert centres[0] == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.01)
    assert centres[1] == pytest.approx((x1, y1), abs=0.01)
    widths = [across[1] - across[0] for across, _ in points]
    assert widths[0] == pytest.approx(12, abs=0.01) and widths[1] == pytest.approx(39**0.5, abs=0.01)
