"""What a study has cost: by how its trials ended, and over all the times that its command was run."""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eqssl.files import read
from eqssl.study.store.records import TrialRecord, write_json

FILE = "attempts.json"
STATUSES = ("COMPLETE", "STOPPED", "FAILED")


class Attempts:
    """How long each run of a study's command took, in a file of which a kill costs the time since the last `note`.

    Args:
        folder: of the study.
        token: of this run.
        start: of this run, as `time.perf_counter` tells it.
    """

    def __init__(self, folder: Path, token: str, start: float):
        self._folder, self._token, self._start = folder, token, start
        self._lock = threading.Lock()

    def note(self) -> list[float]:
        """Write how long this run has taken and return the seconds of every run, the first one first.

        Nothing is written before the study itself is.
        """
        with self._lock:
            path = self._folder / FILE
            known = json.loads(read(path) or "{}")
            known[self._token] = time.perf_counter() - self._start
            if read(self._folder / "study.json"):
                write_json(path, known)
            return list(known.values())


def ledger(
    records: Iterable[TrialRecord],
    device: str,
    devices_per_trial: float,
    attempts_s: list[float],
    unfinished: Iterable[TrialRecord] = (),
) -> dict[str, Any]:
    """Return the costs of trials.

    Args:
        records: of those that have ended.
        device: CPU or GPU, whichever a trial's time is counted in.
        devices_per_trial: how many of them a trial reserves now, and is taken to have reserved before a resume.
        attempts_s: seconds of every run of the command.
        unfinished: of those that were running when the study was stopped, up to their last epoch.

    Returns:
        `complete`, `stopped`, `failed` (trials by status), `unfinished` and `total`, each with `trials`, `epochs` and

        - `trial_s`: seconds of training and evaluation,
        - `resumed_s`: of these, seconds before a resume,
        - `overhead_s`: seconds beyond these in which their processes were held,
        - `device_hours`: of both together, on all devices of the trials;

        `device` and `devices_per_trial`; `attempts` and `wall_s`: how often the command ran, and for how long in all.
    """
    records = list(records)
    kinds = {status.lower(): [r for r in records if r.status == status] for status in STATUSES}
    kinds["unfinished"] = list(unfinished)
    kinds["total"] = records + kinds["unfinished"]
    return {
        "device": device,
        "devices_per_trial": devices_per_trial,
        **{kind: _costs(of, devices_per_trial) for kind, of in kinds.items()},
        "attempts": len(attempts_s),
        "wall_s": sum(attempts_s),
    }


def _costs(records: list[TrialRecord], devices: float) -> dict[str, float]:
    trial_s, overhead_s = sum(r.wall_s for r in records), sum(r.overhead_s for r in records)
    return {
        "trials": len(records),
        "epochs": sum(r.epochs for r in records),
        "trial_s": trial_s,
        "resumed_s": sum(r.resumed_s for r in records),
        "overhead_s": overhead_s,
        "device_hours": (trial_s + overhead_s) * devices / 3600,
    }


def ledger_line(costs: Mapping[str, Any]) -> str:
    """Return the ledger in one line.

    Args:
        costs: from `ledger`.
    """
    total, parts = costs["total"], []
    for kind in (*map(str.lower, STATUSES), "unfinished"):
        of = costs[kind]
        if of["trials"]:
            parts.append(f"{of['trials']} {kind} {of['device_hours']:.3g}")
    each_s = (total["trial_s"] + total["overhead_s"]) / max(total["trials"], 1)
    return (
        f"cost: {total['device_hours']:.3g} {costs['device']}-hours ({', '.join(parts) or 'no trial ended'}), "
        f"{each_s:.1f} s a trial, {total['overhead_s']:.1f} s overhead, {total['resumed_s']:.1f} s before a resume; "
        f"{costs['wall_s'] / 60:.1f} min, runs of the command: {costs['attempts']}"
    )
