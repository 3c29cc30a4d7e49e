"""The measured arms as one picture: examples, success and IoU by kind, trade-off over strength."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from diffedit_batch.demo.scenes import CHANGE_KINDS, ImageArray, MaskArray
from diffedit_batch.evaluation.items import Item
from diffedit_batch.evaluation.statistics import Estimate, bootstrap_mean, wilson
from diffedit_batch.evaluation.study import ArmResult

_TILE = 112
_GAP = 4
_LABEL_WIDTH = 240
_NUM_COLUMNS = 10
_WIDTH = _LABEL_WIDTH + _NUM_COLUMNS * (_TILE + _GAP) + 20
_CHART_HEIGHT = 260
_AXIS = 40
_INK = "#1c1c1e"
_MUTED = "#8e8e93"
_GRID = "#e5e5ea"
_OUTLINE = (255, 0, 170)
_COLOURS = (
    *("#8e8e93", "#c7c7cc", "#d1495b", "#edae49", "#66a182", "#00798c", "#2e4057", "#a06cd5"),
    *("#f4845f", "#7fb069", "#3a86ff"),
)


def draw_figure(
    results: Sequence[ArmResult], curves: Sequence[ArmResult], items: Sequence[Item], title: str
) -> bytes:
    """The figure as PNG bytes.

    Args:
        results: arms measured on all items.
        curves: arms named NAME@STRENGTH, on fewer items; none: no trade-off panel.
        items: the items of `results`.
        title: what was measured.
    """
    panels = [_draw_examples(results, items)]
    panels += [
        _draw_bars(results, "success", "Success by kind of edit, 95 % Wilson intervals"),
        _draw_bars(results, "iou", "IoU of the found mask by kind of edit, 95 % BCa intervals"),
    ]
    if curves:
        panels.append(_draw_curves(curves))
    height = 40 + sum(panel.height for panel in panels)
    figure = Image.new("RGB", (_WIDTH, height), "white")
    ImageDraw.Draw(figure).text((10, 10), title, fill=_INK, font=ImageFont.load_default(18))
    top = 40
    for panel in panels:
        figure.paste(panel, (0, top))
        top += panel.height
    buffer = io.BytesIO()
    figure.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_examples(results: Sequence[ArmResult], items: Sequence[Item]) -> Image.Image:
    """Sources, true edits and what every arm made of them; outlines are the masks used."""
    shown = [item for item in items if item.id in results[0].shown]
    shown = sorted(shown, key=lambda item: CHANGE_KINDS.index(item.kind))[:_NUM_COLUMNS]
    rows: list[tuple[str, list[ImageArray]]] = [
        ("source", [item.source for item in shown]),
        ("true edit and mask", [_outline(item.counterfactual, item.mask) for item in shown]),
    ]
    for result in results:
        outcomes = [result.shown[item.id] for item in shown]
        rows.append((result.arm.title, [_outline(one.picture, one.mask) for one in outcomes]))
    panel = Image.new("RGB", (_WIDTH, 20 + len(rows) * (_TILE + _GAP)), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    for column, item in enumerate(shown):
        x = _LABEL_WIDTH + column * (_TILE + _GAP)
        draw.text((x, 2), item.kind, fill=_MUTED, font=font)
    for number, (label, pictures) in enumerate(rows):
        y = 20 + number * (_TILE + _GAP)
        draw.text((10, y + _TILE // 2 - 8), label, fill=_INK, font=font)
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            panel.paste(tile, (_LABEL_WIDTH + column * (_TILE + _GAP), y))
    return panel


def _draw_bars(results: Sequence[ArmResult], name: str, title: str) -> Image.Image:
    """Bars with intervals, grouped by kind, an arm each."""
    panel = Image.new("RGB", (_WIDTH, _CHART_HEIGHT + 30), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    _draw_frame(draw, title)
    group = (_WIDTH - _LABEL_WIDTH - 40) / len(CHANGE_KINDS)
    width = group * 0.85 / len(results)
    for place, kind in enumerate(CHANGE_KINDS):
        left = _LABEL_WIDTH + place * group
        draw.text((left + group / 3, _CHART_HEIGHT - 18), kind, fill=_INK, font=font)
        for number, result in enumerate(results):
            estimate = _estimate(result, name, kind)
            if not estimate.num_items:
                continue
            x = left + number * width
            base, top = _height(0), _height(estimate.value)
            draw.rectangle((x, top, x + width - 2, base), fill=_colour(number))
            middle = x + width / 2 - 1
            ends = (_height(estimate.high), _height(estimate.low))
            draw.line((middle, ends[0], middle, ends[1]), fill=_INK)
    _draw_legend(draw, [result.arm.title for result in results])
    return panel


def _draw_curves(curves: Sequence[ArmResult]) -> Image.Image:
    """Success over background PSNR, a line per arm, a point per strength."""
    panel = Image.new("RGB", (_WIDTH, _CHART_HEIGHT + 30), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
    title = "Success over mean background PSNR (dB, at most 60), by strength"
    _draw_frame(draw, title)
    points: dict[str, list[tuple[float, float, str]]] = {}
    for result in curves:
        name, _, strength = result.arm.name.partition("@")
        kept = float(np.nanmean(result.column("background_psnr")))
        rate = float(result.column("success").mean())
        points.setdefault(name, []).append((kept, rate, strength))
    span = _WIDTH - _LABEL_WIDTH - 60
    for decibel in range(10, 61, 10):
        x = _LABEL_WIDTH + span * (decibel - 10) / 50
        draw.text((x, _CHART_HEIGHT - 18), f"{decibel} dB", fill=_MUTED, font=font)
    for number, line in enumerate(points.values()):
        places = [(_LABEL_WIDTH + span * (kept - 10) / 50, _height(rate)) for kept, rate, _ in line]
        draw.line(places, fill=_colour(number + 2), width=2)
        for (x, y), (_, _, strength) in zip(places, line, strict=True):
            draw.circle((x, y), 4, fill=_colour(number + 2))
            draw.text((x + 6, y - 14), strength, fill=_INK, font=font)
    _draw_legend(draw, list(points), offset=2)
    return panel


def _estimate(result: ArmResult, name: str, kind: str) -> Estimate:
    values = result.column(name)[result.column("kind") == kind]
    return wilson(values) if name == "success" else bootstrap_mean(values, [kind] * len(values))


def _draw_frame(draw: ImageDraw.ImageDraw, title: str) -> None:
    """A chart's title and the lines of its scale, 0 to 1."""
    font = ImageFont.load_default(12)
    draw.text((10, 8), title, fill=_INK, font=ImageFont.load_default(14))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _height(tick)
        draw.line((_LABEL_WIDTH, y, _WIDTH - 30, y), fill=_GRID)
        draw.text((_LABEL_WIDTH - 34, y - 7), f"{tick:g}", fill=_MUTED, font=font)


def _draw_legend(draw: ImageDraw.ImageDraw, labels: Sequence[str], offset: int = 0) -> None:
    font = ImageFont.load_default(11)
    for number, label in enumerate(labels):
        y = 34 + number * 18
        draw.rectangle((10, y + 2, 20, y + 12), fill=_colour(number + offset))
        draw.text((26, y), label, fill=_INK, font=font)


def _height(share: float) -> float:
    """Where a value between 0 and 1 stands in a chart, in pixels from its top."""
    return _CHART_HEIGHT - 24 - share * (_CHART_HEIGHT - 24 - _AXIS)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _outline(picture: ImageArray, mask: MaskArray | None) -> ImageArray:
    if mask is None:
        return picture
    edge = mask & ~ndimage.binary_erosion(mask, border_value=1)
    marked = picture.copy()
    marked[edge] = _OUTLINE
    return marked
