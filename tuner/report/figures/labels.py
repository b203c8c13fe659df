"""Where the labels of points go, so that none covers another. Pure; runs on the driver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Pixel = tuple[float, float]
"""x to the right, y upwards."""
Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""

Corners = Sequence[tuple[int, int]]
"""(-1 left or 1 right, -1 below or 1 above)."""

UPPER_LEFT_FIRST: Corners = ((-1, 1), (1, -1), (-1, -1), (1, 1))
"""Nothing on a front lies to the upper left, where up is good."""
LOWER_LEFT_FIRST: Corners = ((-1, -1), (1, 1), (-1, 1), (1, -1))
"""Nothing on a front lies to the lower left, where down is good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Font:
    """How large a label is, and how far from its point."""

    digit: float
    """Width of a digit in pixels."""
    height: float
    """Height of a line in pixels."""
    gaps: tuple[float, ...]
    """Distances from the middle of a point to its label, in pixels; the first that is free is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a label stands, seen from its point."""

    side: int
    """-1 left, 1 right."""
    level: int
    """-1 below, 1 above."""
    gap: float
    """Pixels between the middle of the point and the label, both ways."""

    def box(self, anchor: Pixel, width: float, height: float) -> Box:
        """What the label covers."""
        left = anchor[0] + (self.gap if self.side > 0 else -self.gap - width)
        bottom = anchor[1] + (self.gap if self.level > 0 else -self.gap - height)
        return (left, bottom, left + width, bottom + height)


def place_labels(
    anchors: Sequence[Pixel],
    texts: Sequence[str],
    font: Font,
    *,
    others: Sequence[Pixel] = (),
    corners: Corners = UPPER_LEFT_FIRST,
    frame: Box = (-math.inf, -math.inf, math.inf, math.inf),
) -> tuple[Place | None, ...]:
    """Choose a place for each text.

    Args:
        anchors: The points that get a text.
        texts: One per point.
        font: Size of the texts.
        others: Points without a text, which no text should cover either.
        corners: Where a text may stand, the best place first.
        frame: What no text may reach out of.

    Returns:
        One per point; None where every place would cover a point or another text.
    """
    radius = font.gaps[0] - 1
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in (*anchors, *others)]
    places: list[Place | None] = []
    for anchor, text in zip(anchors, texts, strict=True):
        width = font.digit * len(text)
        boxes = {place: place.box(anchor, width, font.height) for place in _candidates(font, corners)}
        place = next((place for place, box in boxes.items() if _is_in(box, frame) and not _hits(box, taken)), None)
        places.append(place)
        if place:
            taken.append(boxes[place])
    return tuple(places)


def _candidates(font: Font, corners: Corners) -> list[Place]:
    return [Place(side=side, level=level, gap=gap) for gap in font.gaps for side, level in corners]


def _is_in(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _hits(box: Box, taken: Sequence[Box]) -> bool:
    return any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken)
