"""Solids as unions of convex parts, each an intersection of half-spaces.

N objects, P parts, H half-spaces, K vertices.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RADIUS = 0.6  # of the smallest sphere around an object about the centre of its bounding box

Number = float | Tensor
Point = tuple[Number, Number, Number]


@dataclass(frozen=True)
class Part:
    """One convex part of N objects.

    Args:
        planes: float32 (N or 1, H, 4), half-spaces n x <= c as (n, c), n of length 1.
        vertices: float32 (N or 1, K, 3).
        tone: which of the object's colours it has.
    """

    planes: Tensor
    vertices: Tensor
    tone: int

    def mirrored(self) -> "Part":
        """Return the part on the other side of the plane y = 0."""
        flip = torch.tensor([1.0, -1.0, 1.0, 1.0])
        return Part(self.planes * flip, self.vertices * flip[:3], self.tone)


def frustum(
    low: Point,
    high: Point,
    *,
    tone: int = 0,
    sides: int = 4,
    axis: int = 2,
    top: tuple[Number, Number] = (1.0, 1.0),
    shift: tuple[Number, Number] = (0.0, 0.0),
) -> Part:
    """Return the frustum of a regular polygon whose base fills one side of a box.

    Args:
        low, high: opposite corners of the box, each coordinate a float or float32 (N,).
        tone: which of the object's colours it has.
        sides: of the polygon; 4 gives a box, 8 passes for a cylinder.
        axis: from base to top; the other two, in cyclic order, span the polygon.
        top: factors of the polygon's two widths at the top; (1, 0) gives a roof. Must be equal unless sides is 4.
        shift: of the top's centre along those two axes.
    """
    numbers = (torch.as_tensor(v, dtype=torch.float32).reshape(-1) for v in (*low, *high, *top, *shift))
    start, end, taper, move = torch.stack(torch.broadcast_tensors(*numbers), -1)[:, None].split((3, 3, 2, 2), -1)
    order = [(axis + 1) % 3, (axis + 2) % 3, axis]
    start, end = start[..., order], end[..., order]
    half, height = (end - start)[..., :2] / 2, (end - start)[..., 2:]
    base = torch.cat((start[..., :2] + half, start[..., 2:]), -1)

    normal = _directions(torch.arange(sides) / sides)
    # In units of the base and of the height, n ((xy - move z) / half) <= 1 + (taper - 1) z.
    slope = -(normal * move / half).sum(-1, keepdim=True) - (normal.square() * (taper - 1)).sum(-1, keepdim=True)
    walls = torch.cat((normal / half, slope / height, torch.ones_like(slope)), -1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(start)
    caps = torch.cat((torch.cat((up, height), -1), torch.cat((-up, 0 * height), -1)), 1)
    planes = torch.cat((walls, caps), 1)
    planes = planes / planes[..., :3].norm(dim=-1, keepdim=True)
    offset = planes[..., 3:] + (planes[..., :3] * base).sum(-1, keepdim=True)

    corner = _directions((torch.arange(sides) + 0.5) / sides) / math.cos(math.pi / sides)
    bottom = base + torch.nn.functional.pad(corner * half, (0, 1))
    roof = base + torch.cat((corner * half * taper + move, height.expand(-1, sides, 1)), -1)
    back = [order.index(i) for i in range(3)]
    return Part(torch.cat((planes[..., back], offset), -1), torch.cat((bottom, roof), 1)[..., back], tone)


def _directions(turns: Tensor) -> Tensor:
    return torch.stack(((2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()), -1)


def assemble(parts: list[Part]) -> tuple[Tensor, Tensor]:
    """Return N objects of these parts, centred on their bounding boxes and scaled to RADIUS.

    Returns:
        planes: float32 (N, P, H, 4), half-spaces n x <= c of each part as (n, c); n = 0, c = 1 is padding.
        tones: int64 (P,), which of the object's colours a part has.
    """
    n, most = (max(part.planes.shape[i] for part in parts) for i in (0, 1))
    vertices = torch.cat([part.vertices.expand(n, -1, -1) for part in parts], 1)
    centre = ((vertices.amin(1) + vertices.amax(1)) / 2)[:, None]
    scale = RADIUS / (vertices - centre).norm(dim=-1).amax(1)
    planes = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(n, len(parts), most, 1)
    for i, part in enumerate(parts):
        offset = (part.planes[..., 3] - (part.planes[..., :3] * centre).sum(-1)) * scale[:, None]
        planes[:, i, : part.planes.shape[1], :3] = part.planes[..., :3]
        planes[:, i, : part.planes.shape[1], 3] = offset
    return planes, torch.tensor([part.tone for part in parts])
