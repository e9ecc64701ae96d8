import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from eqssl.data.rotation import euler_to_matrix, euler_to_quaternion

EULER = (torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1) * math.pi


def test_matrix_is_that_of_scipy():
    expected = Rotation.from_euler("xyz", EULER.numpy()).as_matrix()
    np.testing.assert_allclose(euler_to_matrix(EULER), expected, atol=1e-12)


def test_quaternion_is_that_of_scipy_sign_included():
    euler = EULER / 2  # the range of the data set
    expected = Rotation.from_euler("xyz", euler.numpy()).as_quat()
    np.testing.assert_allclose(euler_to_quaternion(euler), expected, atol=1e-12)
