"""Rotations as tensors, in the convention of 3DIEBench.

Euler angles are extrinsic, about the fixed axes x, then y, then z, as in `scipy.spatial.transform.Rotation.from_euler`
with "xyz". Quaternions are (x, y, z, w). Matrices rotate column vectors.
"""

import torch
from torch import Tensor


def euler_to_matrix(euler: Tensor) -> Tensor:
    """Return rotation matrices (N, 3, 3).

    SciPy's results differ in the last bit of float32, so that all images of solids would have to be rendered again.

    Args:
        euler: (N, 3), angles about x, y, z, rad.
    """
    (cx, cy, cz), (sx, sy, sz) = euler.cos().unbind(-1), euler.sin().unbind(-1)
    rows = (
        cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz,
        cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz,
        -sy, sx * cy, cx * cy,
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def euler_to_quaternion(euler: Tensor) -> Tensor:
    """Return unit quaternions (N, 4), the sign not canonicalised (as in 3DIEBench).

    Args:
        euler: (N, 3), angles about x, y, z, rad.
    """
    from scipy.spatial.transform import Rotation

    return torch.from_numpy(Rotation.from_euler("xyz", euler.numpy()).as_quat()).to(euler.dtype)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Return rotation matrices (..., 3, 3).

    Args:
        quaternion: (..., 4), of any length above 0.

    Raises:
        ValueError: for a quaternion of length 0.
    """
    from scipy.spatial.transform import Rotation

    matrices = Rotation.from_quat(quaternion.reshape(-1, 4).numpy()).as_matrix()
    return torch.from_numpy(matrices).to(quaternion.dtype).view(*quaternion.shape[:-1], 3, 3)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the rotation nearest to each matrix (Frobenius norm), by the singular value decomposition.

    Args:
        matrix: (..., 3, 3).
    """
    u, _, vh = torch.linalg.svd(matrix)
    # Reversing the direction of the smallest singular value turns a reflection into a rotation.
    sign = torch.ones_like(matrix[..., 0])
    sign[..., 2] = torch.linalg.det(u @ vh).sign()
    return (u * sign[..., None, :]) @ vh
