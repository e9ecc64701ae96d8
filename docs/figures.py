"""Draw the pictures of README and docs as SVG, readable on a light and on a dark page.

    python docs/figures.py            writes docs/*.svg and docs/solids.png

The numbers of loss_weight.svg are those of studies/measured/loss_weight/summary.json. Lengths are in pixels.
"""

import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

DOCS = Path(__file__).parent
MEASURED = DOCS.parent / "studies" / "measured" / "loss_weight" / "summary.json"
# Every drawing has its own background: a page may be dark where the system's colours are light.
STYLE = """
svg { --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --box: #f6f8fa;
      --blue: #0969a8; --orange: #b35900; --green: #1a7f4b; --blue-fill: #dcecf9; --orange-fill: #fdebd8; }
@media (prefers-color-scheme: dark) {
  svg { --page: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --box: #161b22;
        --blue: #58aef5; --orange: #f0a14e; --green: #4cc38a; --blue-fill: #122c44; --orange-fill: #3d2a14; }
}
text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
.page { fill: var(--page); } .box { fill: var(--box); stroke: var(--line); } .line { stroke: var(--soft); fill: none; }
.grid { stroke: var(--line); } .small { font-size: 12px; fill: var(--soft); } .title { font-weight: 600; }
.blue { fill: var(--blue); } .orange { fill: var(--orange); } .green { fill: var(--green); }
.soft { fill: var(--soft); }
.blue-line { stroke: var(--blue); fill: none; } .orange-line { stroke: var(--orange); fill: none; }
.green-line { stroke: var(--green); fill: none; } .blue-box { fill: var(--blue-fill); stroke: var(--blue); }
.orange-box { fill: var(--orange-fill); stroke: var(--orange); } .band { fill: var(--soft); opacity: .18; }
.dashed { stroke-dasharray: 6 4; }
"""
HUES = {"first": 205, "second": 28}  # light on the two views, degrees
STEEPNESS = math.radians(28)  # of the camera over the turntable
Point = tuple[float, float]
# Layer -> files or folders and what they are; a layer imports from those below it.
LAYERS: dict[str, dict[str, str]] = {
    "user": {
        "cli.py": "the command eqssl",
        "studies/*.py": "a question each",
        "report/": "page, figures, tables",
    },
    "study": {
        "flow.py": "options to results",
        "search/": "designs, pruning",
        "execution/": "Ray, stop.py",
        "store/": "lock, records",
        "results.py": "choice, answer",
        "tracking/": "MLflow",
    },
    "one run": {
        "training/": "the loop",
        "evaluation/": "metrics of a frozen encoder",
    },
    "loss": {
        "models/": "model.py: the loss",
        "methods/": "a file each",
        "views.py, augment.py": "pairs",
    },
    "images": {"data/": "Parquet, folders, 3DIEBench", "data/synthetic/": "rendered solids"},
    "base": {
        "config.py": "options",
        "metrics.py": "registry",
        "stats.py": "intervals",
        "files.py": "disks, buckets",
        "distributed.py": "collectives",
        "random.py": "by sample",
    },
}


class Drawing:
    """An SVG that grows by shapes; y points down.

    Args:
        width, height: of the picture.
        label: what it shows, for readers who cannot see it.
    """

    def __init__(self, width: int, height: int, label: str):
        self.width, self.height, self.label = width, height, label
        self.shapes: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        """Write one line with its baseline at y."""
        self.shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, lines: list[str], kind: str = "box") -> None:
        """Draw a rounded box; the first line is its title, the others are small."""
        self.shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" class="{kind}"/>'
        )
        top = y + height / 2 + 5 - 8 * (len(lines) - 1)
        for i, line in enumerate(lines):
            self.text(x + width / 2, top + 17 * i, line, "title" if i == 0 else "small")

    def path(self, points: list[Point], kind: str = "line", arrow: bool = True, width: float = 1.6) -> None:
        """Draw straight lines from point to point."""
        (x0, y0), *others = points
        way = " ".join(f"L{x:.1f} {y:.1f}" for x, y in others)
        head = f' marker-end="url(#{kind.split()[0]})"' if arrow else ""
        self.shapes.append(f'<path d="M{x0:.1f} {y0:.1f} {way}" class="{kind}" stroke-width="{width}"{head}/>')

    def curve(self, start: Point, end: Point, kind: str) -> None:
        """Draw an arrow that leaves and arrives horizontally."""
        (x0, y0), (x1, y1) = start, end
        way = f"M{x0} {y0} C{(x0 + x1) / 2} {y0} {(x0 + x1) / 2} {y1} {x1} {y1}"
        self.shapes.append(f'<path d="{way}" class="{kind}" stroke-width="1.6" marker-end="url(#{kind})"/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 4) -> None:
        self.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}"/>')

    def svg(self) -> str:
        """Return the file's text."""
        colours = {"line": "soft", "blue-line": "blue", "orange-line": "orange", "green-line": "green"}
        heads = "".join(
            f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" class="{colour}"/></marker>'
            for kind, colour in colours.items()
        )
        shapes = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" aria-label="{escape(self.label)}">\n'
            f"<style>{STYLE}</style>\n<defs>{heads}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="10" class="page"/>\n{shapes}\n</svg>\n'
        )


def cube(drawing: Drawing, x: float, y: float, side: float, angle_deg: float, hue: int) -> None:
    """Draw a picture of a cube on a turntable.

    Args:
        x, y, side: of the square picture, from its upper left corner.
        angle_deg: of the turntable.
        hue: of the light, in degrees.
    """
    drawing.shapes.append(
        f'<rect x="{x}" y="{y}" width="{side}" height="{side}" rx="4" fill="hsl({hue} 45% 30%)" class="grid"/>'
    )
    centre, size = (x + side / 2, y + side * 0.55), side * 0.27

    def seen(corner: tuple[float, float, float]) -> Point:
        a = math.radians(angle_deg)
        right = corner[0] * math.cos(a) - corner[1] * math.sin(a)
        deep = corner[0] * math.sin(a) + corner[1] * math.cos(a)
        return centre[0] + size * right, centre[1] + size * (
            deep * math.sin(STEEPNESS) - corner[2] * math.cos(STEEPNESS)
        )

    sides = [((1, -1), (1, 1)), ((1, 1), (-1, 1)), ((-1, 1), (-1, -1)), ((-1, -1), (1, -1))]
    for (ax, ay), (bx, by) in sides:
        normal = math.atan2(ay + by, ax + bx) + math.radians(angle_deg)
        if math.sin(normal) > 0.01:  # towards the camera
            light = 38 + 22 * math.cos(normal)
            corners = [(ax, ay, -1), (bx, by, -1), (bx, by, 1), (ax, ay, 1)]
            _polygon(drawing, [seen(corner) for corner in corners], f"hsl({hue} 70% {light:.0f}%)")
    _polygon(drawing, [seen((ax, ay, 1)) for ax, ay in ((-1, -1), (1, -1), (1, 1), (-1, 1))], f"hsl({hue} 75% 78%)")


def _polygon(drawing: Drawing, points: list[Point], colour: str) -> None:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawing.shapes.append(f'<polygon points="{corners}" fill="{colour}" stroke="{colour}" stroke-width=".5"/>')


def method() -> Drawing:
    """Return the drawing of the method: two views, encoder, split, attention, decoder, two losses."""
    label = "Two views pass one encoder; invariant parts meet in a self-supervised loss, equivariant ones in a decoder"
    d = Drawing(1000, 392, label)
    views = {"first": (70, 20), "second": (250, 62)}  # upper edge, angle in degrees
    for name, (y, angle) in views.items():
        cube(d, 24, y, 92, angle, HUES[name])
        d.text(70, y + 110, f"{name} view", "small")
        d.path([(120, y + 46), (150, y + 46)])
        d.box(154, y + 12, 96, 68, ["encoder"])
        d.path([(250, y + 46), (282, y + 46)])
        number = 1 if name == "first" else 2
        d.box(286, y + 8, 84, 36, [f"inv {number}"], "blue-box")
        d.box(286, y + 48, 84, 36, [f"equi {number}"], "orange-box")
    d.path([(202, 150), (202, 262)], "line dashed", arrow=False)
    d.text(210, 210, "same weights", "small", "start")
    d.text(328, 62, "channels, split", "small")

    d.box(470, 66, 132, 60, ["SSL method", "VICReg, BYOL, ..."], "blue-box")
    d.box(470, 280, 132, 60, ["cross-attention", "nothing to learn"], "orange-box")
    d.curve((370, 96), (466, 88), "blue-line")
    d.curve((370, 276), (466, 106), "blue-line")
    d.curve((370, 136), (466, 300), "orange-line")
    d.path([(370, 316), (466, 316)], "orange-line")
    d.path([(602, 310), (624, 310)], "orange-line")
    d.box(628, 280, 80, 60, ["decoder", "light"])
    d.path([(708, 310), (730, 310)], "orange-line")
    cube(d, 734, 268, 84, 58, HUES["second"])
    d.text(776, 370, "reconstruction", "small")
    cube(d, 734, 152, 84, 62, HUES["second"])
    d.text(776, 144, "target: second view", "small")
    d.path([(818, 194), (846, 194), (846, 238)], "line")
    d.path([(818, 310), (846, 310), (846, 268)], "line")
    d.text(846, 258, "mse", "title orange")
    d.path([(602, 96), (934, 96), (934, 212)], "blue-line")
    d.text(730, 88, "ssl(inv 1, inv 2)", "title blue")
    d.path([(866, 253), (884, 253)], "orange-line")
    d.box(888, 216, 92, 74, ["loss", "ssl +", "weight * mse"])
    d.text(202, 36, "At inference only the encoder is left.", "small")
    return d


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


def loss_weight() -> Drawing:
    """Return the figure of the default study: three metrics against the weight, with 95 % intervals."""
    rows = {row["name"]: row["metrics"] for row in json.loads(MEASURED.read_text())["configurations"]}
    weights, (low, high), (top, bottom) = (1, 10, 100), (0.2, 0.9), (48, 250)
    panels = {"linear": "linear accuracy", "r2_mean": "R² mean", "r2/pose": "pose R²"}
    d = Drawing(
        1000, 320, "Linear accuracy, R² mean and pose R² against the weight, for cross-attention and auto-encoding"
    )
    for place, (metric, title) in enumerate(panels.items()):
        left = 52 + 320 * place
        right = left + 270

        def y_of(value: float) -> float:
            return _scale(value, low, high, bottom, top)

        def x_of(weight: float, left: float = left, right: float = right) -> float:
            return _scale(math.log10(weight), -0.2, 2.2, left, right)

        d.text(left, 30, title, "title", "start")
        for tick in (0.2, 0.4, 0.6, 0.8):
            d.path([(left, y_of(tick)), (right, y_of(tick))], "grid", arrow=False, width=1)
            d.text(left - 8, y_of(tick) + 4, f".{tick * 10:.0f}", "small", "end")
        for weight in weights:
            d.text(x_of(weight), bottom + 18, f"{weight}", "small")
        base = rows["base"][metric]
        upper, lower = y_of(base["high"]), y_of(base["low"])
        d.shapes.append(
            f'<rect x="{left}" y="{upper:.1f}" width="{right - left}" height="{lower - upper:.1f}" class="band"/>'
        )
        middle = y_of(base["estimate"])
        d.path([(left, middle), (right, middle)], "line dashed", arrow=False)
        for colour, suffix in (("green", ", autoencode"), ("blue", "")):
            points = [rows[f"weight {weight}{suffix}"][metric] for weight in weights]
            shift = 3 if suffix else -3  # intervals side by side
            xs = [x_of(weight) + shift for weight in weights]
            way = [(x, y_of(point["estimate"])) for x, point in zip(xs, points, strict=True)]
            d.path(way, f"{colour}-line", arrow=False, width=2)
            for (x, y), point in zip(way, points, strict=True):
                d.path([(x, y_of(point["low"])), (x, y_of(point["high"]))], f"{colour}-line", arrow=False, width=1.4)
                d.dot(x, y, colour)
    d.text(500, 288, "weight of the reconstruction (log scale); two seeds, 95 % intervals", "small")
    for x, colour, words in ((250, "blue", "cross-attention"), (420, "green", "auto-encoding, no second view")):
        d.dot(x, 306, colour)
        d.text(x + 12, 310, words, "small", "start")
    d.path([(652, 306), (682, 306)], "line dashed", arrow=False)
    d.text(690, 310, "base: no reconstruction", "small", "start")
    return d


def metrics() -> Drawing:
    """Return the drawing of four metrics in the plane of two features; a scheme, without data."""
    d = Drawing(1000, 290, "Accuracy, R² of a factor, invariance and equivariance, drawn in the plane of two features")
    titles = {
        "accuracy": "a line parts the classes",
        "R² of a factor": "pose, read off by a ridge",
        "invariance": "views of an image lie together",
        "equivariance": "one transform, one shift",
    }
    for place, (title, words) in enumerate(titles.items()):
        left = 16 + 246 * place
        d.box(left, 48, 230, 184, [])
        d.text(left + 115, 34, title, "title")
        d.text(left + 115, 254, words, "small")
    for i in range(7):  # two classes
        d.dot(40 + 24 * (i % 4) + 5 * (i // 4), 80 + 22 * (i // 4) + 7 * (i % 3), "blue")
        d.dot(130 + 23 * (i % 4) - 6 * (i // 4), 178 + 20 * (i // 4) - 6 * (i % 3), "orange")
    d.path([(34, 206), (228, 84)], "line dashed", arrow=False)
    d.path([(286, 212), (468, 68)], "line dashed", arrow=False)  # predicted = true
    for i in range(8):
        off = (9, -12, 6, -5, 12, -8, 4, -10)[i]
        x, y = 298 + 21 * i, 202 - 17 * i
        d.path([(x, y), (x, y + off)], "orange-line", arrow=False)
        d.dot(x, y + off, "blue")
    d.text(377, 226, "true pose", "small")
    d.text(290, 68, "predicted", "small", "start")
    for centre, colour in (((560, 100), "blue"), ((676, 130), "orange"), ((596, 190), "green")):
        for i in range(6):
            turn = math.tau * i / 6
            d.dot(centre[0] + 15 * math.cos(turn), centre[1] + 11 * math.sin(turn), colour, 3)
        d.shapes.append(f'<circle cx="{centre[0]}" cy="{centre[1]}" r="26" class="line dashed"/>')
    for i in range(6):
        x, y = 782 + 28 * i, 190 - (17, 62, 4, 80, 36, 62)[i]
        d.path([(x, y), (x + 30, y - 24)], "orange-line")
        d.dot(x, y, "blue")
    d.dot(790, 218, "blue")
    d.text(800, 222, "first view", "small", "start")
    d.path([(872, 218), (896, 218)], "orange-line")
    d.text(902, 222, "rotated 30°", "small", "start")
    formulas = [
        "correct / all",
        "1 - error / variance",
        "1 - within / total variance",
        "R² with transform - R² shuffled",
    ]
    for place, formula in enumerate(formulas):
        d.text(131 + 246 * place, 276, formula)
    return d


def architecture() -> Drawing:
    """Return the map of the package: a layer imports from those below it."""
    d = Drawing(1000, 62 * len(LAYERS) + 20, "The package in layers; imports go down")
    for row, (name, boxes) in enumerate(LAYERS.items()):
        y, width = 12 + 62 * row, 836 / len(boxes)
        d.text(24, y + 30, name, "title", "start")
        for i, (title, words) in enumerate(boxes.items()):
            d.box(100 + i * width, y, width - 8, 50, [title, words], "blue-box" if row == 1 else "box")
    d.path([(968, 20), (968, 62 * len(LAYERS))], "line")
    d.text(968, 14, "imports", "small")
    return d


def drawings() -> dict[str, str]:
    """Return file name -> text of every picture."""
    made: list[Any] = [method, loss_weight, metrics, architecture]
    return {f"{draw.__name__}.svg": draw().svg() for draw in made}


def solids(path: Path, size: int = 84) -> None:
    """Write a PNG of the default images: for each family an object in two views, then one of the other proportion."""
    import torch
    from PIL import Image

    from eqssl.config import DataConfig
    from eqssl.data import load_data
    from eqssl.data.synthetic.families import FAMILIES
    from eqssl.images import image_grid

    count = len(FAMILIES)
    train = load_data(DataConfig(objects=4 * count, image_size=size)).train  # the two proportions take turns
    assert train.objects is not None
    first_views = torch.searchsorted(train.objects, torch.arange(2 * count))
    rows = [first_views[:count], first_views[:count] + 1, first_views[count:]]
    images = torch.stack([train.images.take(row) for row in rows])
    Image.fromarray(image_grid(images.numpy())).save(path, optimize=True)


if __name__ == "__main__":
    solids(DOCS / "solids.png")
    for name, svg in drawings().items():
        (DOCS / name).write_text(svg)
        print(DOCS / name)
