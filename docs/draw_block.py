"""Draw docs/block.svg, a block with and without its FFN. Run: python docs/draw_block.py"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

WIDTH, HEIGHT = 700, 566  # of the picture in pixels, which are the units of all coordinates
BOX, ROW = 136, 32  # width and height of a box
GREEN, BLUE, GRAY, INK = "#e4f0e2", "#dbe9f8", "#eeeeee", "#1f2328"
WITH_FFN, WITHOUT_FFN = "tab:blue", "tab:orange"  # as in all figures
ARROW = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0,
         "mutation_scale": 12}  # fmt: skip


def rectangle(axes, left, top, width, height, radius, **style):
    """A rectangle with round corners."""
    shape = {"boxstyle": f"round,pad=0,rounding_size={radius}", "linewidth": 1.3}
    axes.add_patch(FancyBboxPatch((left, top), width, height, **shape, **style))


def box(axes, x, y, text, color="white"):
    """A box around (x, y) with text in it."""
    rectangle(axes, x - BOX / 2, y - ROW / 2, BOX, ROW, 5, facecolor=color, edgecolor=INK)
    label(axes, x, y, text)


def label(axes, x, y, text, size=10.5, **style):
    """Text, centred at (x, y) unless the style says otherwise."""
    style = {"ha": "center", "va": "center", "color": INK, **style}
    axes.text(x, y, text, fontsize=size, **style)


def arrow(axes, *points):
    """A line through points, with an arrowhead at the last one."""
    axes.plot(*zip(*points, strict=True), color=INK, linewidth=1.3, solid_joinstyle="round")
    axes.annotate("", points[-1], points[-2], arrowprops=ARROW)


def sublayer(axes, x, top, boxes, title, weights, color):
    """Boxes, the residual around them and LayerNorm → the y where the line leaves LayerNorm."""
    *rows, plus, norm = (top + 48 + 46 * i for i in range(len(boxes) + 2))
    rectangle(axes, x - 140, top, 312, norm + 30 - top, 10, facecolor=color, edgecolor="none")
    label(axes, x + 82, rows[0] - 4, title, ha="left", weight="bold")
    label(axes, x + 82, rows[0] + 16, weights, 9.5, ha="left")
    starts = [top - 14, *(y + ROW / 2 for y in rows), plus + 10]
    ends = [*(y - ROW / 2 for y in rows), plus - 10, norm - ROW / 2]
    for start, end in zip(starts, ends, strict=True):
        arrow(axes, (x, start), (x, end))
    side, fork = x - 104, top + 15
    arrow(axes, (x, fork), (side, fork), (side, plus), (x - 10, plus))
    label(axes, side - 14, (fork + plus) / 2, "residual", 9.5, rotation=90)
    for y, text in zip(rows, boxes, strict=True):
        box(axes, x, y, text)
    axes.add_patch(Circle((x, plus), 10, facecolor="white", edgecolor=INK, linewidth=1.3))
    axes.plot(x, plus, "+", color=INK, markersize=9, markeredgewidth=1.3)
    box(axes, x, norm, "LayerNorm", GRAY)
    return norm + ROW / 2


def block(axes, x, title, has_ffn):
    """A block from its input x at the top to its output."""
    color = WITH_FFN if has_ffn else WITHOUT_FFN
    label(axes, x, 20, title, 13, weight="bold", color=color)
    label(axes, x, 50, "x", 13, style="italic")
    end = sublayer(axes, x, 76, ["Attention"], "Attention", "4 C² weights", GREEN)
    if has_ffn:
        axes.plot((x, x), (end, end + 24), color=INK, linewidth=1.3)
        boxes = ["up: C → 4C", "GELU", "down: 4C → C"]
        end = sublayer(axes, x, end + 30, boxes, "FFN", "8 C² weights", BLUE)
    arrow(axes, (x, end), (x, end + 36))
    label(axes, x, end + 48, "to the next block")


matplotlib.rcParams["svg.hashsalt"] = "block"  # the same file each time
figure = Figure(figsize=(WIDTH / 96, HEIGHT / 96), facecolor="white")
axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
axes.axis("off")
block(axes, 154, "with FFN", has_ffn=True)
block(axes, 514, "without FFN", has_ffn=False)
figure.savefig(Path(__file__).with_name("block.svg"), metadata={"Date": None})
