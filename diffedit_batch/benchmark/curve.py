"""Curves over the size of network calls, as one picture."""

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from diffedit_batch.benchmark.report import shown
from diffedit_batch.benchmark.timing import Spread

Curve = Sequence[tuple[float, Spread]]
"""Values and their ranges over x."""

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 140, 50, 50
_COLOURS = ("#00798c", "#d1495b", "#edae49", "#66a182")
_INK, _GRID = "#1c1c1e", "#e5e5ea"
_NUM_LINES = 4


def draw_curves(curves: Mapping[str, Curve], title: str) -> bytes | None:
    """PNG bytes of curves by name, x in powers of two; None where there is no point to draw."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return None
    low, high = (math.log2(f(x for x, _ in points)) for f in (min, max))
    step = _round_up(max(spread.high for _, spread in points) / _NUM_LINES)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    draw.text((10, 14), title, fill=_INK, font=ImageFont.load_default(16))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - low) / max(high - low, 1e-9)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y / (step * _NUM_LINES) * (_HEIGHT - _TOP - _BOTTOM),
        )

    for number in range(_NUM_LINES + 1):
        y = place(2**low, step * number)[1]
        draw.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_GRID)
        draw.text((_LEFT - 10, y), shown(step * number), fill=_INK, font=font, anchor="rm")
    for x in sorted({x for x, _ in points}):
        draw.text(
            (place(x, 0)[0], _HEIGHT - _BOTTOM + 8), f"{x:g}", fill=_INK, font=font, anchor="mt"
        )
    for (name, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        line = [place(x, spread.median) for x, spread in curve]
        if not line:
            continue
        draw.line(line, fill=colour, width=2)
        for (x, spread), (left, middle) in zip(curve, line, strict=True):
            draw.line([place(x, spread.low), place(x, spread.high)], fill=colour)
            draw.ellipse([left - 3, middle - 3, left + 3, middle + 3], fill=colour)
        draw.text((line[-1][0] + 10, line[-1][1]), name, fill=colour, font=font, anchor="lm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _round_up(value: float) -> float:
    """The next larger number that reads well on an axis."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(digits for digits in (1, 2, 2.5, 5, 10) if digits * power >= value)
