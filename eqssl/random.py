"""Random numbers that belong to a sample: a pure function of (seed, epoch, image, stream), with no state.

The bits are the same on CPU and GPU, in any batch, order and process. Counters are folded one after another into a
64-bit hash by the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_SHUFFLE_STREAM = -1


def counter_uniform(seed: int, epoch: int, ids: Tensor, stream: int, n: int) -> Tensor:
    """Return uniform numbers that depend on nothing but the arguments of their own row.

    Args:
        seed: seed of the run.
        epoch: pass over the images.
        ids: int64 (B,), the images' identities.
        stream: purpose of the numbers, 0 or more; streams are independent of one another.
        n: numbers per image.

    Returns:
        float32 (B, n) in [0, 1), multiples of 2^-24, on the device of `ids`.
    """
    bits = _hash(seed, epoch, stream, ids[:, None], torch.arange(n, device=ids.device))
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order in which an epoch visits n images.

    Returns:
        int64 (n,), each of 0 to n - 1 once.
    """
    return torch.argsort(_hash(seed, epoch, _SHUFFLE_STREAM, torch.arange(n)), stable=True)


def _hash(*counters: int | Tensor) -> Tensor:
    """Fold counters, broadcast against one another, into int64 hashes."""
    state = torch.zeros((), dtype=torch.int64)
    for counter in counters:
        state = _splitmix(state, torch.as_tensor(counter))
    return state


def _splitmix(state: Tensor, index: Tensor) -> Tensor:
    """Return output `index` of the SplitMix64 sequence that starts at `state`; int64 arithmetic wraps."""
    z = state + (index + 1) * _GOLDEN
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        z = (z ^ _shift_right(z, shift)) * multiplier
    return z ^ _shift_right(z, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift logically, since torch's own shift copies the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
