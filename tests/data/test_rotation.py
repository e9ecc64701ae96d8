import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from eqssl.data.rotation import (
    euler_to_matrix,
    euler_to_quaternion,
    nearest_rotation,
    quaternion_to_matrix,
)

EULER = (torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1) * math.pi


def test_matrix_is_that_of_scipy():
    expected = Rotation.from_euler("xyz", EULER.numpy()).as_matrix()
    np.testing.assert_allclose(euler_to_matrix(EULER), expected, atol=1e-12)


def test_quaternion_is_that_of_scipy_sign_included():
    euler = EULER / 2  # the range of the data set
    expected = Rotation.from_euler("xyz", euler.numpy()).as_quat()
    np.testing.assert_allclose(euler_to_quaternion(euler), expected, atol=1e-12)


def random_quaternions(count: int) -> torch.Tensor:
    return torch.tensor(Rotation.random(count, random_state=0).as_quat())


def test_matrix_of_a_quaternion_is_that_of_scipy_whatever_its_length_and_sign():
    quaternion = random_quaternions(500)
    expected = Rotation.from_quat(quaternion.numpy()).as_matrix()
    np.testing.assert_allclose(quaternion_to_matrix(-3 * quaternion), expected, atol=1e-12)
    assert quaternion_to_matrix(quaternion.view(5, 100, 4)).shape == (5, 100, 3, 3)


def test_nearest_rotation_is_a_rotation_and_leaves_rotations():
    rotation = quaternion_to_matrix(random_quaternions(200))
    torch.testing.assert_close(nearest_rotation(0.3 * rotation), rotation)
    noise = torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = nearest_rotation(noise)
    torch.testing.assert_close(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(200, 3, 3))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(200, dtype=torch.float64))
    # No rotation is nearer: the best of many others is not.
    distance = torch.linalg.matrix_norm(found - noise)
    others = torch.linalg.matrix_norm(rotation[:, None] - noise).amin(0)
    assert (distance <= others + 1e-12).all() and (torch.linalg.det(noise) < 0).any()
