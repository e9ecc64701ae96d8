"""Families of solids with proportions that vary from object to object.

No family has a rotational symmetry, so that an image reveals the pose. Axes: x forward, y left, z up.
"""

from collections.abc import Callable
from itertools import product

from torch import Tensor

from eqssl.data.synthetic.polytopes import Part, assemble, frustum

DRAWS = 8  # random numbers that shape one object
SECOND, ACCENT = 1, 2  # colours of an object in addition to its body's, 0

Draw = Callable[..., list[Tensor]]


def build(family: str, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the planes and tones of N objects of a family, see `assemble`.

    Args:
        family: a name of FAMILIES.
        uniform: float32 (N, DRAWS) in [0, 1), which decide the proportions.
    """

    def draw(*ranges: tuple[float, float]) -> list[Tensor]:
        return [low + (high - low) * u for (low, high), u in zip(ranges, uniform.unbind(1), strict=False)]

    return assemble(FAMILIES[family](draw))


def chair(draw: Draw) -> list[Part]:
    depth, width, legs, back, thick, lean = draw(
        (0.8, 1.1), (0.7, 1.1), (0.6, 1.1), (0.7, 1.4), (0.08, 0.16), (0.05, 0.3)
    )
    x, y, top, leg = depth / 2, width / 2, legs + thick, 0.14
    return [
        *(frustum((i, j, 0), (i + leg, j + leg, legs), tone=SECOND) for i, j in product((-x, x - leg), (-y, y - leg))),
        frustum((-x, -y, legs), (x, y, top)),
        frustum((-x, -y, top), (-x + thick, y, top + back), shift=(-lean, 0)),
    ]


def desk(draw: Draw) -> list[Part]:
    depth, width, height, thick, chest = draw((0.7, 1.0), (1.3, 1.9), (0.7, 1.0), (0.08, 0.14), (0.4, 0.6))
    x, y, top, leg = depth / 2, width / 2, height + thick, 0.12
    return [
        *(frustum((i, -y, 0), (i + leg, -y + leg, height), tone=SECOND) for i in (-x, x - leg)),
        frustum((-x, y - chest, 0.1), (x - 0.05, y, height)),
        frustum((x - 0.05, y - chest + 0.05, 0.2), (x + 0.03, y - 0.05, height - 0.08), tone=ACCENT),
        frustum((-x, -y, height), (x, y, top), tone=SECOND),
        frustum((-x / 2, -y * 0.6, top), (-x / 2 + 0.07, y * 0.3, top + 0.45), tone=ACCENT),
    ]


def stairs(draw: Draw) -> list[Part]:
    run, rise, width, rail = draw((0.3, 0.4), (0.18, 0.26), (0.6, 1.1), (0.3, 0.5))
    return [
        *(frustum((i * run, 0, 0), ((i + 1) * run, width, (i + 1) * rise), tone=i % 2) for i in range(4)),
        frustum((2.8 * run, width, 0), (4.1 * run, width + 0.1, 4 * rise + rail), tone=ACCENT),
    ]


def house(draw: Draw) -> list[Part]:
    length, width, wall, roof, place, flue = draw(
        (1.0, 1.5), (0.8, 1.1), (0.5, 0.9), (0.35, 0.7), (0.1, 0.3), (0.05, 0.25)
    )
    x, y, i, j, eave = length / 2, width / 2, length * place, width * 0.3, 0.08
    return [
        frustum((-x, -y, 0), (x, y, wall)),
        frustum((-x - eave, -y - eave, wall), (x + eave, y + eave, wall + roof), top=(1, 0), tone=SECOND),
        frustum((i - 0.1, j - 0.1, wall), (i + 0.1, j + 0.1, wall + roof + flue), tone=ACCENT),
        frustum((x, -0.12, 0), (x + 0.04, 0.16, wall * 0.65), tone=ACCENT),
        frustum((-x * 0.67, -y - 0.04, wall * 0.4), (0, -y, wall * 0.8), tone=ACCENT),
    ]


def arrow(draw: Draw) -> list[Part]:
    length, shaft, head, barb, thick, fin, side = draw(
        (1.0, 1.5), (0.2, 0.35), (0.5, 0.8), (0.7, 1.1), (0.2, 0.4), (0.15, 0.35), (0.15, 0.3)
    )
    return [
        frustum((0, -shaft / 2, 0), (length, shaft / 2, thick)),
        frustum((length, -barb / 2, 0), (length + head, barb / 2, thick), axis=0, top=(0, 1), tone=SECOND),
        frustum((0.05, -0.08, thick), (0.45, 0.08, thick + fin), top=(0.5, 1), tone=ACCENT),
        frustum((0.1, shaft / 2, 0.05), (0.3, shaft / 2 + side, thick - 0.05), tone=SECOND),
    ]


def aeroplane(draw: Draw) -> list[Part]:
    length, body, span, chord, sweep, fin = draw(
        (1.6, 2.0), (0.24, 0.34), (0.7, 1.0), (0.35, 0.55), (0.1, 0.5), (0.35, 0.6)
    )
    tail, nose, r, front = -length / 2, length * 0.3, body / 2, chord * 0.3
    wing = frustum((front - chord, r * 0.6, -0.03), (front, r + span, 0.04), axis=1, top=(1, 0.6), shift=(0, -sweep),
                   tone=SECOND)  # fmt: skip
    rudder = frustum((tail, r * 0.6, -0.03), (tail + 0.3, r + 0.4, 0.04), axis=1, top=(1, 0.6), shift=(0, -0.12),
                     tone=SECOND)  # fmt: skip
    return [
        frustum((tail, -r, -r), (nose, r, r), axis=0, sides=8),
        frustum((nose, -r, -r), (length / 2, r, r), axis=0, sides=8, top=(0.4, 0.4)),
        frustum((tail, -0.04, r - 0.03), (tail + 0.35, 0.04, r + fin), top=(0.5, 1), shift=(-0.12, 0), tone=ACCENT),
        frustum((nose * 0.6, -r / 2, r - 0.04), (nose * 1.1, r / 2, r + 0.08), top=(0.5, 0.7), tone=ACCENT),
        *(wing, wing.mirrored(), rudder, rudder.mirrored()),
    ]


def crane(draw: Draw) -> list[Part]:
    height, jib, counter, drop, base = draw((1.2, 1.7), (0.9, 1.4), (0.35, 0.55), (0.3, 0.8), (0.25, 0.35))
    low, r = height - drop, 0.08
    return [
        frustum((-base, -base, 0), (base, base, 0.18), tone=SECOND, top=(0.8, 0.8)),
        frustum((-r, -r, 0.18), (r, r, height)),
        frustum((-counter, -r, height), (jib, r, height + 2 * r)),
        frustum((-counter, -0.18, height - 0.22), (-counter + 0.25, 0.18, height), tone=SECOND),
        frustum((jib - 0.14, -0.025, low), (jib - 0.09, 0.025, height), tone=SECOND),
        frustum((jib - 0.24, -0.12, low - 0.2), (jib, 0.12, low), tone=ACCENT),
        frustum((r, -0.05, height - 0.3), (r + 0.22, 0.25, height), tone=ACCENT),
    ]


def truck(draw: Draw) -> list[Part]:
    cab, load, width, low, high, r = draw((0.4, 0.55), (0.9, 1.4), (0.55, 0.75), (0.45, 0.65), (0.6, 1.0), (0.2, 0.28))
    y = width / 2
    wheels = (
        frustum((i - r, j - 0.06, 0), (i + r, j + 0.06, 2 * r), axis=1, sides=8, tone=ACCENT)
        for i, j in product((-load * 0.6, cab * 0.5), (-y, y))
    )
    return [
        frustum((0, -y, r), (cab, y, r + low), top=(0.75, 1), shift=(-cab * 0.1, 0), tone=SECOND),
        frustum((-load, -y, r), (-0.06, y, r + high)),
        *wheels,
    ]


def sailboat(draw: Draw) -> list[Part]:
    length, beam, deck, mast, foot = draw((1.2, 1.6), (0.4, 0.6), (0.25, 0.4), (1.0, 1.5), (0.5, 0.7))
    stern, bow, y = -length * 0.4, length * 0.3, beam * 0.3
    boom, peak = deck + 0.12, deck + mast * 0.95
    return [
        frustum((stern, -y, 0), (bow, y, deck), top=(1.25, 1.6)),
        frustum((bow, -y, 0), (bow + length * 0.25, y, deck), axis=0, top=(0.05, 1)),
        frustum((0, -0.03, deck), (0.07, 0.03, deck + mast), tone=ACCENT),
        frustum((-foot, -0.02, boom), (-0.02, 0.02, peak), top=(0.04, 1), shift=(foot * 0.46, 0), tone=SECOND),
        frustum((stern, -y * 0.8, deck), (stern + length * 0.15, y * 0.8, deck + 0.14), tone=ACCENT),
    ]


def mug(draw: Draw) -> list[Part]:
    r, height, foot, reach, thick = draw((0.35, 0.5), (0.8, 1.2), (0.75, 0.95), (0.25, 0.4), (0.1, 0.16))
    low, high, base, inner, end, y = height * 0.22, height * 0.8, r * foot, r * 0.85, r + reach, thick / 2
    return [
        frustum((-base, -base, 0), (base, base, height), sides=8, top=(1 / foot, 1 / foot)),
        frustum((-inner, -inner, height), (inner, inner, height + 0.02), sides=8, tone=ACCENT),
        frustum((r * 0.7, -y, low), (end - thick, y, low + thick), tone=SECOND),
        frustum((r * 0.7, -y, high - thick), (end - thick, y, high), tone=SECOND),
        frustum((end - thick, -y, low), (end, y, high), tone=SECOND),
        frustum((-0.15, r * 0.6, low), (0.15, r + 0.04, high), tone=ACCENT),
        frustum((-r - 0.04, -0.12, low), (-r * 0.6, 0.12, height / 2), tone=SECOND),
    ]


def dog(draw: Draw) -> list[Part]:
    length, width, legs, deep, neck, tail = draw(
        (0.9, 1.4), (0.3, 0.45), (0.35, 0.65), (0.3, 0.45), (0.15, 0.4), (0.3, 0.6)
    )
    x, y, leg, back = length / 2, width / 2, 0.14, legs + deep
    front, face, crown = x - 0.1, x + 0.3, back + neck + 0.15
    return [
        *(frustum((i, j, 0), (i + leg, j + leg, legs), tone=SECOND) for i, j in product((-x, x - leg), (-y, y - leg))),
        frustum((-x, -y, legs), (x, y, back)),
        frustum((front, -y * 0.9, back - 0.15), (face, y * 0.9, crown)),
        frustum((face, -y * 0.6, crown - 0.35), (face + 0.25, y * 0.6, crown - 0.15), tone=ACCENT),
        frustum((front, -y * 0.9, crown), (front + 0.14, y * 0.9, crown + 0.2), top=(0.2, 1), tone=SECOND),
        frustum((-x, -0.05, back), (-x + 0.1, 0.05, back + tail), shift=(-0.25, 0), tone=ACCENT),
    ]


def lamp(draw: Draw) -> list[Part]:
    base, height, arm, shade, deep = draw((0.3, 0.45), (1.1, 1.6), (0.5, 0.9), (0.22, 0.36), (0.3, 0.5))
    r, low = 0.06, height - 0.12
    return [
        frustum((-base, -base, 0), (base, base, 0.14), sides=8, top=(0.8, 0.8), tone=SECOND),
        frustum((-r, -r, 0.14), (r, r, low)),
        frustum((-0.2, -r, low), (arm, r, height)),
        frustum((arm - shade, -shade, low - deep), (arm + shade, shade, low), sides=8, top=(0.45, 0.45), tone=ACCENT),
        frustum((-0.08, r, 0.14), (0.08, r + 0.14, 0.5), tone=SECOND),
    ]


FAMILIES: dict[str, Callable[[Draw], list[Part]]] = {
    family.__name__: family
    for family in (chair, desk, stairs, house, arrow, aeroplane, crane, truck, sailboat, mug, dog, lamp)
}
