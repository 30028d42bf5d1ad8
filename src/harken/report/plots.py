"""Plots as inline SVG: text stays text, colors are the CSS variables of the page."""

import dataclasses
import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harken.report.numbers import NOT_KNOWN, count, decimals, number, percent, shorten
from harken.report.run_folder import Bucket, CalibrationBin, Interval

# Placeholders that no other color in a figure equals; the SVG gets the CSS variable in their place.
INK, MUTED, RULE = "#010101", "#020202", "#030303"
FIRST, SECOND = "#040404", "#050505"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
}
WIDE = (360, 220)
SMALL = (264, 150)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "axes.labelsize": 11,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    "path.simplify": True,
}
_STEPS = [1, 2, 5, 10]  # ticks at 0.2, 0.4, ..., never at 0.8, 1.6, ...
_NUM_TABLE_ROWS = 12


@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure of the report with its text alternative and its numbers."""

    id: str
    title: str
    note: str
    description: str
    svg: str
    """Markup made here, safe to insert as it is."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_wide: bool = True


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: values by step, and half the height of a band around them where there is one."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    band: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Heading:
    """What stands above a plot; `id` is unique in the page."""

    id: str
    title: str
    note: str = ""


def histogram(heading: Heading, counts: Mapping[float, int]) -> Plot:
    """Draw how often each rating was given."""
    values = sorted(counts)
    total = sum(counts.values()) or 1
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(WIDE)
        shares = [counts[value] / total for value in values]
        bars = axes.bar(range(len(values)), shares, width=0.82, color=FIRST)
        labels = [percent(share) if share >= 0.005 else "" for share in shares]
        axes.bar_label(bars, labels, padding=2, fontsize=11, color=MUTED)
        axes.set_xticks(range(len(values)), [number(value, signed=True) for value in values])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.margins(y=0.12)
        mode = max(values, key=lambda value: counts[value], default=0.0)
        description = f"Bar chart of {count(total)} ratings by value; the most frequent is {number(mode, signed=True)}."
        rows = [(number(v, signed=True), count(counts[v]), percent(s, 1)) for v, s in zip(values, shares, strict=True)]
        return _plot(heading, figure, description, ("Rating", "Times", "Share"), rows)


def shares(heading: Heading, rows: Sequence[Bucket], *, by: str) -> Plot:
    """Draw shares with intervals, one a line, against the 50% of a coin.

    Args:
        heading: what stands above the plot.
        rows: label, number of cases (0 if it is not to be shown) and the share with its interval.
        by: what the labels are, heading of the table's first column.
    """
    known = [(row, row.accuracy) for row in rows if row.accuracy is not None]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure((WIDE[0], 60 + 32 * max(len(known), 1)))
        axes.axvline(0.5, color=MUTED, linewidth=1, dashes=(3, 3))
        for y, (_, share) in enumerate(known):
            if share.low is not None and share.high is not None:
                axes.plot([share.low, share.high], [y, y], color=FIRST, linewidth=5, alpha=0.35)
            axes.plot([share.value], [y], "o", color=FIRST, markersize=8)
        lowest = min([0.5, *(_ends(share)[0] for _, share in known)])
        highest = max([0.5, *(_ends(share)[1] for _, share in known)])
        axes.set_xlim(max(-0.03, lowest - 0.06), min(1.03, highest + 0.06))
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_yticks(range(len(known)), [_with_n(row) for row, _ in known])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: percent(x)))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        parts = [f"{row.label}: {percent(share.value)}" for row, share in known]
        table = [
            (row.label, count(row.n) if row.n else "", percent(share.value, 1), _interval(share))
            for row, share in known
        ]
        description = f"Dots with 95% intervals against a line at 50%. {'; '.join(parts)}."
        header = (by, "Cases", "Share", "95% interval")
        return _plot(heading, figure, description, header, table)


def reliability(heading: Heading, bins: Sequence[CalibrationBin]) -> Plot:
    """Draw how often the reward model is right against how sure it says it is."""
    known = [
        (b, b.confidence, b.accuracy) for b in bins if b.n > 0 and b.confidence is not None and b.accuracy is not None
    ]
    largest = max((b.n for b, _, _ in known), default=1)
    start = min([0.5, *(min(confidence, accuracy) for _, confidence, accuracy in known)]) - 0.03
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(WIDE)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=(3, 3))
        axes.plot([c for _, c, _ in known], [a for _, _, a in known], color=FIRST, alpha=0.4)
        for b, confidence, accuracy in known:
            size = 3.5 + 9 * math.sqrt(b.n / largest)
            axes.plot([confidence], [accuracy], "o", color=FIRST, markersize=size)
        axes.set_xlim(start, 1.03)
        axes.set_ylim(start, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda x, _: percent(x)))
            axis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.set_xlabel("how sure it is")
        axes.set_ylabel("how often right")
        rows = [
            (f"{percent(b.low)} to {percent(b.high)}", count(b.n), percent(c, 1), percent(a, 1)) for b, c, a in known
        ]
        points = [f"{percent(c)} sure, right in {percent(a)}" for _, c, a in known]
        description = (
            "Reliability diagram: on the dashed diagonal confidence equals accuracy; "
            f"larger dots hold more pairs. {'; '.join(points)}."
        )
        header = ("Confidence", "Pairs", "Mean confidence", "Right")
        return _plot(heading, figure, description, header, rows)


def curves(heading: Heading, series: Sequence[Series], *, is_wide: bool = True) -> Plot:
    """Draw metrics over steps as they were logged, without smoothing."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(WIDE if is_wide else SMALL)
        for one, color in zip(series, (FIRST, SECOND), strict=False):
            if one.band is not None:
                low = [v - b for v, b in zip(one.values, one.band, strict=True)]
                high = [v + b for v, b in zip(one.values, one.band, strict=True)]
                axes.fill_between(one.steps, low, high, color=color, alpha=0.15, linewidth=0)
            marker = "o" if len(one.values) < 3 else ""
            axes.plot(one.steps, one.values, marker=marker, color=color, label=one.name)
        axes.xaxis.set_major_locator(MaxNLocator(5 if is_wide else 4, integer=True, steps=_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5 if is_wide else 3, steps=_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(y, axes)))
        axes.margins(x=0.02)
        axes.grid(visible=False, axis="x")
        axes.spines["left"].set_visible(False)
        if is_wide:
            axes.set_xlabel("step")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=11, labelcolor=MUTED)
        description = " ".join(_describe(one) for one in series)
        header = ("Step", *(one.name for one in series))
        plot = _plot(heading, figure, description, header, _curve_rows(series))
        return dataclasses.replace(plot, is_wide=is_wide)


def _figure(size: tuple[int, int]) -> tuple[Figure, Axes]:
    # 72 units an inch: one SVG unit is then one CSS pixel when the plot is shown at its own size.
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
    figure.patch.set_visible(False)
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _plot(
    heading: Heading,
    figure: Figure,
    description: str,
    header: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
) -> Plot:
    svg = _svg(figure, heading, description)
    return Plot(heading.id, heading.title, heading.note, description, svg, header, tuple(rows))


def _svg(figure: Figure, heading: Heading, description: str) -> str:
    """Return a figure as an inline SVG element; no date, and no id that another plot has."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": heading.id}), warnings.catch_warnings():
        # A label in a script that the bundled font lacks is drawn by the reader's own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    opening, body = text.split(">", 1)
    view = re.search(r'viewBox="([^"]*)"', opening)
    assert view is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    # Only what something points at keeps an id, and that one is unique in the page.
    used = set(re.findall(r'(?:xlink:href="|url\()#([^")]*)', body))
    body = re.sub(r' id="([^"]*)"', lambda one: _unique_id(one, used, heading.id), body)
    body = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{heading.id}-\1"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{heading.id}-\1)", body)
    body = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "var(--sans)", body)
    body = re.sub(r'style="[^"]*"', _recolor, body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = re.sub(r'\b(?:d|x|y)="[^"]*"', _round_coordinates, body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    names = f"{heading.id}-title {heading.id}-desc"
    return (
        f'<svg class="plot" role="img" aria-labelledby="{names}" viewBox="{view.group(1)}">'
        f'<title id="{heading.id}-title">{html.escape(heading.title)}</title>'
        f'<desc id="{heading.id}-desc">{html.escape(description)}</desc>{body}'
    )


def _unique_id(attribute: re.Match[str], used: set[str], prefix: str) -> str:
    return f' id="{prefix}-{attribute.group(1)}"' if attribute.group(1) in used else ""


def _recolor(style: re.Match[str]) -> str:
    return re.sub(r"#\w{6}\b", lambda color: _VARIABLES[color.group()], style.group())


def _round_coordinates(attribute: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found.group()):.2f}", attribute.group())


def _tick(value: float, axes: Axes) -> str:
    low, high = axes.get_ylim()
    step = (high - low) / 4
    # Enough decimals for neighboring ticks to differ, and no more.
    places = max(0, min(8, -math.floor(math.log10(step)))) if 0 < step < 10 else 0
    if step < 1e-4:
        return number(value)
    return number(value, places)


def _describe(series: Series) -> str:
    if not series.values:
        return f"{series.name}: no values."
    places = decimals(series.values)
    first, last, low, high = (
        number(value, places if max(map(abs, series.values)) >= 1e-4 else None)
        for value in (series.values[0], series.values[-1], min(series.values), max(series.values))
    )
    return f"{series.name} at {count(len(series.values))} steps: from {first} to {last}, lowest {low}, highest {high}."


def _curve_rows(series: Sequence[Series]) -> list[tuple[str, ...]]:
    """Return at most 12 evenly spaced steps, the first and the last among them."""
    steps = sorted({step for one in series for step in one.steps})
    if len(steps) > _NUM_TABLE_ROWS:
        last = len(steps) - 1
        spaced = (round(i * last / (_NUM_TABLE_ROWS - 1)) for i in range(_NUM_TABLE_ROWS))
        steps = [steps[i] for i in spaced]
    by_step = [dict(zip(one.steps, one.values, strict=True)) for one in series]
    return [
        (number(step), *(number(values.get(step)) if step in values else "" for values in by_step)) for step in steps
    ]


def _ends(share: Interval) -> tuple[float, float]:
    low = share.value if share.low is None else share.low
    high = share.value if share.high is None else share.high
    return low, high


def _interval(share: Interval) -> str:
    if share.low is None or share.high is None:
        return NOT_KNOWN
    return f"{percent(share.low, 1)} to {percent(share.high, 1)}"


def _with_n(row: Bucket) -> str:
    label = shorten(row.label, 18)  # longer ones would leave no room for the plot; the table has all
    return f"{label} (n = {count(row.n)})" if row.n else label
