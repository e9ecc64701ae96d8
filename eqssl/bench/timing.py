"""Timing in rounds, and the table of the results; without torch until a part needs it."""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MIN_ROUNDS = 3
HEAD = ("part", "measured", "median", "against", "ratio", "quartiles", "rounds", "aim", "note")


def interleave(subjects: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Time subjects in turn, A B A B ..., after one round that is not counted.

    Args:
        subjects: name -> function to time.
        seconds: duration of all rounds, of which there are at least three.

    Returns:
        name -> seconds of each round, float64 (R,).
    """
    rounds: list[list[float]] = []
    begin = float("-inf")
    while len(rounds) <= MIN_ROUNDS or time.perf_counter() - begin < seconds:
        rounds.append([timed(subject) for subject in subjects.values()])
        if len(rounds) == 1:
            begin = time.perf_counter()
    return dict(zip(subjects, np.array(rounds[1:]).T, strict=True))


def timed(subject: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, on the device too."""
    finish()
    start = time.perf_counter()
    subject()
    finish()
    return time.perf_counter() - start


def finish() -> None:
    """Wait for the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Args:
        part: of the bench, set by the command.
        name: subject; its `value` in `unit` is the median of the rounds.
        against: subject of the comparison.
        ratio: value over that of `against`, the median of the rounds; `low` and `high` are the quartiles.
        rounds: number of rounds.
        at_least, at_most: aim for the ratio.
        note: remark, such as the reason why a part was skipped.
    """

    part: str = ""
    name: str
    value: float | None = None
    unit: str = ""
    against: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """Return the row as text, a cell for each column of `HEAD`."""
        value = "" if self.value is None else f"{self.value:.4g} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        quartiles = "" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"
        aim = ""
        if self.ratio is not None and (self.at_least is not None or self.at_most is not None):
            met = (self.at_least or -np.inf) <= self.ratio <= (self.at_most or np.inf)
            limit = f"≥ {self.at_least}" if self.at_most is None else f"≤ {self.at_most}"
            aim = f"{limit}: {'met' if met else 'missed'}"
        return [self.part, self.name, value, self.against, ratio, quartiles, str(self.rounds or ""), aim, self.note]


def row(
    name: str, seconds: np.ndarray, against: str = "", base: np.ndarray | None = None, *,
    count: float = 0, unit: str = "ms", **more: Any,
) -> Row:  # fmt: skip
    """Return the row of a subject timed by `interleave`.

    Args:
        name: of the row.
        seconds: of the rounds, (R,).
        against, base: name and seconds of the comparison, timed in the same rounds. The ratio and its quartiles are
            taken over the ratios of each round, since other load on the machine affects both alike.
        count, unit: items per round, so that value and ratio are rates (more is better); default: milliseconds.
        more: further fields of the row.
    """
    value = count / np.median(seconds) if count else 1000 * np.median(seconds)
    made = Row(name=name, value=float(value), unit=unit, rounds=len(seconds), **more)
    if base is None:
        return made
    above, below = (base, seconds) if count else (seconds, base)
    low, ratio, high = np.quantile(above / below, [0.25, 0.5, 0.75]).tolist()
    return dataclasses.replace(made, against=against, ratio=ratio, low=low, high=high)


def limited(name: str, value: float, unit: str, limit: float, **more: Any) -> Row:
    """Return the row of a value that should stay below a limit in the same unit."""
    against, ratio = f"{limit:g} {unit}", value / limit
    return Row(name=name, value=value, unit=unit, against=against, ratio=ratio, at_most=1.0, **more)


def machine() -> dict[str, Any]:
    """Return the properties of the machine and the versions that the results depend on."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(about: Mapping[str, Any], options: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the table in Markdown, below the machine's properties and the options."""
    lines = [", ".join(f"{name} {value}" for name, value in values.items()) for values in (about, options)]
    cells = (HEAD, ["---"] * len(HEAD), *(r.cells() for r in rows))
    return "\n\n".join([*lines, "\n".join(f"| {' | '.join(of)} |" for of in cells)])


def save(folder: Path, about: Mapping[str, Any], options: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write bench.json."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "options": options, "rows": [dataclasses.asdict(r) for r in rows]}
    (folder / "bench.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
