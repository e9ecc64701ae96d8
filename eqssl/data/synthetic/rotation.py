"""Rotations: angles, matrices and quaternions, in the convention of 3DIEBench.

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


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Return the rotation matrices of quaternions.

    Args:
        quaternion: (..., 4), (x, y, z, w), of any length above 0.

    Returns:
        (..., 3, 3), that turns column vectors.
    """
    x, y, z, w = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the rotation nearest to each matrix (Frobenius norm), by the singular value decomposition.

    Args:
        matrix: (..., 3, 3).
    """
    u, _, vh = torch.linalg.svd(matrix)
    # A reflection becomes a rotation where the direction of the least singular value is reversed.
    sign = torch.ones_like(matrix[..., 0])
    sign[..., 2] = torch.linalg.det(u @ vh).sign()
    return (u * sign[..., None, :]) @ vh


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Return the geodesic distance of rotation matrices (..., 3, 3), in [0, pi] rad."""
    # |R1 - R2| is 2 sqrt(2) sin(angle / 2), which unlike the trace's arc cosine is exact for small angles.
    chord = torch.linalg.matrix_norm(first - second) / 8**0.5
    return 2 * chord.clamp(max=1).asin()
