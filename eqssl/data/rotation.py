"""Rotations: Tait-Bryan angles to matrices and quaternions, in the convention of 3DIEBench.

The convention is that of `scipy.spatial.transform.Rotation.from_euler("xyz", angles)`: extrinsic rotations about the
fixed axes x, then y, then z. Quaternions are (x, y, z, w).
"""

import torch
from torch import Tensor


def euler_to_matrix(euler: Tensor) -> Tensor:
    """Return rotation matrices.

    Args:
        euler: (N, 3), angles about x, y, z, rad.

    Returns:
        (N, 3, 3), that turns column vectors.
    """
    (cx, cy, cz), (sx, sy, sz) = euler.cos().unbind(-1), euler.sin().unbind(-1)
    rows = (
        cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz,
        cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz,
        -sy, sx * cy, cx * cy,
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def euler_to_quaternion(euler: Tensor) -> Tensor:
    """Return unit quaternions, the sign not canonicalised (as in 3DIEBench).

    Args:
        euler: (N, 3), angles about x, y, z, rad.

    Returns:
        (N, 4), (x, y, z, w).
    """
    half = euler / 2
    (cx, cy, cz), (sx, sy, sz) = half.cos().unbind(-1), half.sin().unbind(-1)
    return torch.stack(
        (
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
            cx * cy * cz + sx * sy * sz,
        ),
        dim=-1,
    )
