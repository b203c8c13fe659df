"""ReportData -> front.png, front.svg: the front in two panels, drawn by matplotlib without a display. Runs on the driver."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tuner import metric_text
from tuner.report.data import ReportData
from tuner.report.figures.labels import Font, Pixel, place_labels
from tuner.report.figures.views import LEGEND, SEARCHED, STYLES, Point, View, build_views, legend_of, tick_texts
from tuner.report.rows import Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

WIDTH_PX, HEIGHT_PX, DPI = 1600, 700, 120
POINTS_PER_CSS_PX = 72 / 96
FONT_SIZE = 9
FORMATS: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None}}
"""Ending of a file -> metadata that would change from one machine or day to the next."""
MOST_VECTORS = 500
"""More points of one standing are pixels in the SVG too, which would be megabytes otherwise."""
LINE_LENGTH = 85
"""Characters that fit under a panel."""
FONT = Font(digit=10, height=13, gaps=(8, 16, 30, 50))


def front_pictures(data: ReportData) -> dict[str, bytes]:
    """Draw the front, 1600 x 700 pixels; the bytes of each file by its ending. The same data gives the same bytes."""
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    views = build_views(data)
    for axes, view in zip(panels, views, strict=True):
        _draw(axes, view)
    legend = legend_of(data)
    handles = [_markers(standing, label=text) for standing, text in legend.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(legend) if len(legend) <= len(SEARCHED) else 2,
        frameon=False,
    )
    figure.suptitle(f"{data.config.name}: the front", x=0.01, ha="left", fontsize=14, fontweight="bold")
    figure.draw_without_rendering()  # the labels need the final layout
    figure.set_layout_engine("none")  # which is final: to find it once more takes as long as to draw
    for axes, view in zip(panels, views, strict=True):
        _label(axes, view)
    return {kind: _saved(figure, kind) for kind in FORMATS}


def _saved(figure: Figure, kind: str) -> bytes:
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "tuner"}):  # names in an SVG are drawn by chance otherwise
        figure.savefig(picture, format=kind, metadata=FORMATS[kind])
    return picture.getvalue()


def _draw(axes: Axes, view: View) -> None:
    axes.set_title(view.title, loc="left", fontsize=12)
    label = f"{view.x_label}, {view.x_note}" if view.x_note else view.x_label
    axes.set_xlabel("\n".join([label, *textwrap.wrap(view.at_edge, LINE_LENGTH)]))
    axes.set_ylabel(metric_text.axis(view.metric))
    if view.is_log:
        _log_axis(axes, view)
    axes.set_xlim(*view.x_span)
    axes.set_ylim(*view.y_span)
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot(*_columns(view.line), color=STYLES[Standing.FRONT].colour, linewidth=1.3)
    for standing in reversed(LEGEND):
        _points(axes, view.of(standing), standing)
    if view.beyond:
        corner = ("bottom", 0.02) if view.metric.is_maximized else ("top", 0.98)
        axes.annotate(view.beyond, (0.99, corner[1]), xycoords="axes fraction", ha="right", va=corner[0])
    if not view.points:
        axes.set_xticks([])
        axes.annotate("no trial to show yet", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center")


def _log_axis(axes: Axes, view: View) -> None:
    ticks = tick_texts(view)
    axes.set_xscale("log")
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.set_xticks([], minor=True)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _points(axes: Axes, points: Sequence[Point], standing: Standing) -> None:
    places = _columns([(point.x, point.y) for point in points])
    if standing is Standing.FRONT:
        errors = [point.error for point in points]
        axes.errorbar(*places, yerr=errors, fmt="none", ecolor=STYLES[standing].colour, elinewidth=1, capsize=3)
    axes.add_line(_markers(standing, *places))


def _markers(standing: Standing, x: Sequence[float] = (), y: Sequence[float] = (), *, label: str = "") -> Line2D:
    style = STYLES[standing]
    return Line2D(
        x,
        y,
        linestyle="none",
        marker="D" if style.is_diamond else "o",
        color=style.colour,
        markersize=style.size * POINTS_PER_CSS_PX,
        markerfacecolor="white" if style.is_hollow else style.colour,
        markeredgewidth=1.2,
        label=label,
        rasterized=len(x) > MOST_VECTORS,
    )


def _label(axes: Axes, view: View) -> None:
    """Write the marks of front and baselines beside their points, where there is room."""
    texts = [point.row.mark for point in view.labelled]
    anchors = _pixels(axes, [(point.x, point.y) for point in view.labelled])
    obstacles, box = _pixels(axes, view.obstacles), axes.bbox
    frame = (box.x0, box.y0, box.x1, box.y1)
    places = place_labels(anchors, texts, FONT, others=obstacles, corners=view.corners, frame=frame)
    for point, text, place in zip(view.labelled, texts, places, strict=True):
        if place:
            left, bottom, _, _ = place.box((0, 0), FONT.digit * len(text), FONT.height)
            at = (left * 72 / DPI, bottom * 72 / DPI)
            axes.annotate(text, (point.x, point.y), at, textcoords="offset points", fontsize=FONT_SIZE)


def _pixels(axes: Axes, places: Sequence[tuple[float, float]]) -> list[Pixel]:
    if not places:
        return []
    return [(float(x), float(y)) for x, y in axes.transData.transform(places)]
