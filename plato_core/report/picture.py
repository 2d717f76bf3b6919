"""The learning curves of all trials as one picture."""

import io
from typing import TYPE_CHECKING

from plato_core.report.curves import Curve
from plato_core.report.facts import Snapshot
from plato_core.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (9.0, 4.5)
_DPI = 110
# Okabe and Ito's colours: told apart by people of any colour vision, and on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_BEST_OF_MANY = 5
_SHADES = 128
_OTHERS = "#B8B8B8"


def learning_curves(snapshot: Snapshot) -> bytes | None:
    """Draw each trial's `episode_reward_mean` over its own iterations, with the target and the exploits.

    Up to eight trials have a colour each; of more, the best five by the leaderboard, and the others are grey.

    Returns:
        A PNG of some tens of KB; None while no trial has a known return.
    """
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    curves = {curve.index: curve for curve in snapshot.curves if curve.points}
    if not curves:
        return None
    ranked = [row.index for row in snapshot.rows if row.index in curves]
    named = sorted(ranked if len(ranked) <= len(COLOURS) else ranked[:_BEST_OF_MANY])
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index in sorted(set(curves) - set(named)):
        _draw(axes, curves[index], _OTHERS, None, width=0.7)
    for index, colour in zip(named, COLOURS, strict=False):
        _draw(axes, curves[index], colour, f"trial {index}", width=1.6)
    if (rest := len(curves) - len(named)) > 0:
        axes.plot([], [], color=_OTHERS, linewidth=0.7, label=f"{rest} more")
    if any(curve.exploits for curve in curves.values()):
        axes.plot([], [], "v", color="#444444", markersize=5, label="exploit")
    if (target := snapshot.facts.stop_reward) is not None:
        axes.axhline(target, color="#444444", linewidth=1, linestyle="--", label=f"target {number(target)}")
    axes.set_xlabel("iteration of the trial")
    axes.set_ylabel("episode_reward_mean")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    picture = io.BytesIO()
    canvas.draw()
    drawn = Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB")
    # So many shades look the same in a third of the space, for the picture goes into rows of databases; and
    # this way of choosing them keeps the trials' own colours.
    drawn.quantize(_SHADES, Image.Quantize.MAXCOVERAGE).save(picture, "png", optimize=True)
    return picture.getvalue()


def _draw(axes: "Axes", curve: Curve, colour: str, label: str | None, width: float) -> None:
    steps, values = zip(*curve.points, strict=True)
    # One point makes no line.
    axes.plot(steps, values, color=colour, linewidth=width, label=label, marker="." if len(steps) == 1 else None)
    known = dict(curve.points)
    # On the curve itself: the scheduler decides before the result that it decides by is told.
    marks = [(mark.iteration, known.get(mark.iteration, mark.value)) for mark in curve.exploits]
    if marks := [(iteration, value) for iteration, value in marks if value is not None]:
        where, returns = zip(*marks, strict=True)
        axes.plot(where, returns, "v", color=colour, markersize=5 if label else 2.5)
