"""How everything here is timed: rounds of all subjects in turn, and the moments within a training step."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqssl.data.dataset import Dataset, MemoryImages

MIN_ROUNDS = 3


def interleave(subjects: dict[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Time subjects in turn, A B A B ..., after one round that is not counted.

    Args:
        subjects: name -> what is timed.
        seconds: rounds go on for so long, three or more.

    Returns:
        name -> seconds of each round, float64 (R,).
    """
    rounds = []
    begin = float("-inf")
    while len(rounds) <= MIN_ROUNDS or time.perf_counter() - begin < seconds:
        rounds.append([timed(subject) for subject in subjects.values()])
        if len(rounds) == 1:
            begin = time.perf_counter()
    return dict(zip(subjects, np.array(rounds[1:]).T, strict=True))


def timed(subject: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, on the device too."""
    _finish()
    start = time.perf_counter()
    subject()
    _finish()
    return time.perf_counter() - start


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Stopwatch:
    """Splits the real training steps of a `Run` by hooks into parts, without a synchronisation.

    Make it, `watch` the data set, make the run of it, `follow` the run; then every epoch of one step, between `start`
    and `stop`, is one round.
    """

    def __init__(self) -> None:
        self._moments: list[tuple[str, Any]] = []

    def watch(self, dataset: Dataset) -> Dataset:
        """Return a data set in memory with training images whose reading is the part `data`."""
        images = _Watched(dataset.train.images.pixels, self._mark)
        return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))

    def follow(self, run: Any) -> None:
        """Take the times of an `eqssl.training.loop.Run`: what ends at each moment is named there.

        The backward pass runs through reconstruction, method and encoder, in this order: the latest first.
        """
        model, mark, encode = run.model, self._mark, run.model.encode

        def encoded(encoder: nn.Module, images: Tensor, **masked: Tensor) -> Tensor:
            tokens = encode(encoder, images, **masked)
            if encoder is model.encoder:  # a teacher's pass is the method's
                mark("encoder")
                tokens.register_hook(lambda gradient: mark("method"))
            return tokens

        def reconstructing(module: Any, inputs: tuple) -> None:
            mark("method")
            for tokens in inputs[0]:
                if tokens.requires_grad:
                    tokens.register_hook(lambda gradient: mark("reconstruction"))

        model.register_forward_pre_hook(lambda *_: mark("augmentation"))
        model.encode = encoded  # a hook of the module would break what is compiled in two
        last = "method" if model.reconstruction is None else "reconstruction"
        if model.reconstruction is not None:
            model.reconstruction.register_forward_pre_hook(reconstructing)
        model.register_forward_hook(lambda *_: mark(last))
        run.optimizer.register_step_pre_hook(lambda *_: mark("encoder"))

    def start(self) -> None:
        """Begin a step."""
        self._moments = []
        self._mark("")

    def stop(self) -> dict[str, float]:
        """End a step and return seconds of each part; `optimizer` has the teachers' update and the epoch's end."""
        self._mark("optimizer")
        _finish()
        seconds: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._moments, self._moments[1:], strict=False):
            passed = before.elapsed_time(after) / 1000 if torch.cuda.is_available() else after - before
            seconds[name] = seconds.get(name, 0.0) + passed
        return seconds

    def _mark(self, name: str) -> None:
        """Note the moment at which something ends."""
        moment: Any = time.perf_counter()
        if torch.cuda.is_available():
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._moments.append((name, moment))


@dataclasses.dataclass(frozen=True)
class _Watched(MemoryImages):
    mark: Callable[[str], None]

    def take(self, indices: Tensor) -> Tensor:
        self.mark("augmentation")  # whose draws of a pair come before the images
        pixels = super().take(indices)
        self.mark("data")
        return pixels


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return k of the least-squares fit seconds ~ sizes^k."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
