"""The table: a row for everything measured, the machine it was measured on, as JSON and Markdown."""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.report.render import markdown_rows


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing measured.

    Args:
        part: of the bench.
        name: what was measured; `value` in `unit`, the median of the rounds.
        against: what it is compared with.
        ratio: value over that of `against`, the median of the rounds; `low` and `high`: their quartiles.
        rounds: how many.
        at_least, at_most: the ratio aimed at.
        note: what a reader has to know, such as why it was skipped.
    """

    part: str
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
        """Return the row's cells in Markdown."""
        value = "" if self.value is None else f"{self.value:.4g} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        spread = "" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"
        rounds = "" if self.rounds is None else str(self.rounds)
        return [self.part, self.name, value, self.against, ratio, spread, rounds, self._aim(), self.note]

    def _aim(self) -> str:
        if self.ratio is None or self.at_least is self.at_most is None:
            return ""
        met = (self.at_least or -np.inf) <= self.ratio <= (self.at_most or np.inf)
        limit = f"≥ {self.at_least}" if self.at_most is None else f"≤ {self.at_most}"
        return f"{limit}: {'met' if met else 'missed'}"


def row(
    part: str, name: str, seconds: np.ndarray, against: str = "", base: np.ndarray | None = None, *,
    count: int = 0, unit: str = "", **more: Any,
) -> Row:  # fmt: skip
    """Return the row of a subject timed by `interleave`.

    Args:
        part, name: of the row.
        seconds: of the rounds, (R,).
        against, base: name and seconds of what it is compared with, timed in the same rounds; the ratio and its spread
            are over the ratios within a round, which what else the machine does reaches alike.
        count, unit: of what is done in a round: the value, and the ratio, are then a rate, the more the better; else
            the value is in milliseconds, the less the better.
        more: further fields of the row.
    """
    value = count / np.median(seconds) if count else 1000 * np.median(seconds)
    made = Row(part=part, name=name, value=float(value), unit=unit or "ms", rounds=len(seconds), **more)
    if base is None:
        return made
    above, below = (base, seconds) if count else (seconds, base)
    low, ratio, high = np.quantile(above / below, [0.25, 0.5, 0.75]).tolist()
    return dataclasses.replace(made, against=against, ratio=ratio, low=low, high=high)


def machine(precision: str) -> dict[str, Any]:
    """Return what the figures depend on beside the options.

    Args:
        precision: of the encoder, as it was asked for.
    """
    import torch

    from eqssl.devices import multiplies_bf16
    from eqssl.training.context import Alone

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": ("bf16" if multiplies_bf16(Alone().device) else "fp32") if precision == "auto" else precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(about: dict[str, Any], options: dict[str, Any], rows: list[Row]) -> str:
    """Return the table with the machine above it."""
    head = ["part", "measured", "median", "against", "ratio", "quartiles", "rounds", "aim", "note"]
    lines = [", ".join(f"{name} {value}" for name, value in values.items()) for values in (about, options)]
    return "\n\n".join([*lines, markdown_rows(head, [r.cells() for r in rows])]) + "\n"


def save(folder: Path, about: dict[str, Any], options: dict[str, Any], rows: list[Row]) -> None:
    """Write bench.json and bench.md."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "options": options, "rows": [dataclasses.asdict(r) for r in rows]}
    (folder / "bench.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "bench.md").write_text(markdown(about, options, rows))
