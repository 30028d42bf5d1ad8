import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from harken.report import plots
from harken.report.plots import Heading, Plot, Series
from harken.report.run_folder import Bucket, CalibrationBin, Interval


def every_plot(prefix: str = "p") -> list[Plot]:
    bins = [CalibrationBin(low=0.5, high=0.75, n=10, confidence=0.6, accuracy=0.55)]
    buckets = [Bucket(label="1 to 2", n=10, accuracy=Interval(value=0.7, low=0.6, high=0.8))]
    steps, values = [1.0, 2.0, 3.0], [0.1, 0.4, 0.2]
    return [
        plots.histogram(Heading(f"{prefix}-h", "Ratings"), {-1.0: 3, 0.0: 5, 1.0: 2}),
        plots.shares(Heading(f"{prefix}-s", "Accuracy"), buckets, by="Difference"),
        plots.reliability(Heading(f"{prefix}-r", "Calibration"), bins),
        plots.curves(Heading(f"{prefix}-c", "Score"), [Series("score", steps, values, values)]),
    ]


def parsed(plot: Plot) -> ET.Element:
    return ET.fromstring(plot.svg)


@pytest.mark.parametrize("plot", every_plot(), ids=lambda plot: plot.id)
def test_a_plot_has_a_text_alternative(plot):
    root = parsed(plot)
    title, description = root[0], root[1]
    assert (title.tag, title.text) == ("title", plot.title)
    assert description.tag == "desc"
    assert description.text
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert plot.rows
    assert all(len(row) == len(plot.header) for row in plot.rows)


@pytest.mark.parametrize("plot", every_plot(), ids=lambda plot: plot.id)
def test_colors_and_fonts_come_from_the_page(plot):
    assert re.findall(r"#[0-9a-fA-F]{6}\b", plot.svg) == []
    assert "var(--first)" in plot.svg
    assert "DejaVu" not in plot.svg
    # Text stays text: it can be searched, read aloud and drawn in the reader's font.
    assert parsed(plot).findall(".//text")


@pytest.mark.parametrize("plot", every_plot(), ids=lambda plot: plot.id)
def test_a_plot_carries_no_date_no_style_sheet_and_no_address(plot):
    for unwanted in ("<metadata", "<style", "http", "<!--", "xlink"):
        assert unwanted not in plot.svg


def test_ids_are_unique_over_plots_and_every_reference_is_found():
    drawn = [*every_plot("a"), *every_plot("b")]
    text = "".join(plot.svg for plot in drawn)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(|href=")#([^")]*)', text)
    assert references
    assert set(references) <= set(ids)


def test_the_same_numbers_give_the_same_bytes():
    assert [plot.svg for plot in every_plot()] == [plot.svg for plot in every_plot()]


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    every_plot()
    assert dict(matplotlib.rcParams) == before


def test_curves_are_drawn_as_logged():
    # 5 points: the path holds 5 points, the extremes at the extremes.
    series = Series("x", [1, 2, 3, 4, 5], [0.0, 10.0, -5.0, 3.0, 1.0])
    plot = plots.curves(Heading("curve", "x"), [series])
    paths = [one for one in parsed(plot).iter("path") if "var(--first)" in one.get("style", "")]
    points = re.findall(r"[ML] [\d.]+ ([\d.]+)", paths[0].get("d", ""))
    heights = [float(y) for y in points]
    assert len(heights) == 5
    # SVG's y axis points down: the largest value has the smallest y.
    assert heights.index(min(heights)) == 1
    assert heights.index(max(heights)) == 2
    assert plot.description == "x at 5 steps: from 0.0 to 1.0, lowest \N{MINUS SIGN}5.0, highest 10.0."


def test_long_curves_are_tabulated_at_twelve_steps_with_both_ends():
    steps = [float(step) for step in range(1, 101)]
    plot = plots.curves(Heading("long", "x"), [Series("x", steps, steps)])
    assert len(plot.rows) == 12
    assert plot.rows[0] == ("1", "1")
    assert plot.rows[-1] == ("100", "100")


def test_series_logged_at_different_steps_share_a_table():
    first = Series("train", [1.0, 2.0], [5.0, 4.0])
    second = Series("held out", [2.0], [4.5])
    plot = plots.curves(Heading("two", "Loss"), [first, second])
    assert plot.header == ("Step", "train", "held out")
    assert plot.rows == (("1", "5", ""), ("2", "4", "4.50"))


@pytest.mark.parametrize("label", ["<b>&\"'", "$\\frac{1}{0}$", "映画", "--><script>", "#040404"])
def test_labels_may_hold_anything(label):
    bucket = Bucket(label=label, n=3, accuracy=Interval(value=0.5))
    plot = plots.shares(Heading("odd", label, label), [bucket], by=label)
    root = parsed(plot)
    assert root[0].text == label
    assert root.find(".//script") is None
    texts = [text.text or "" for text in root.iter("text")]
    assert f"{label} (n = 3)" in texts


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-9, 2e-9], [1e12, -1e12], [5.0] * 3])
def test_flat_tiny_and_huge_curves_can_be_drawn(values):
    series = Series("x", list(range(len(values))), values)
    assert parsed(plots.curves(Heading("x", "x"), [series], is_wide=False)) is not None


def test_empty_data_can_be_drawn():
    parsed(plots.histogram(Heading("h", "h"), {}))
    parsed(plots.shares(Heading("s", "s"), [Bucket(label="x", n=0)], by="x"))
    parsed(plots.reliability(Heading("r", "r"), []))
