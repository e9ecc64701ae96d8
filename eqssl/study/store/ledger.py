"""The cost of a study, from the records of its trials."""

from collections.abc import Iterable, Mapping
from typing import Any

from eqssl.study.store.records import TrialRecord

STATUSES = ("COMPLETE", "STOPPED", "FAILED")


def ledger(
    records: Iterable[TrialRecord],
    device: str,
    devices_per_trial: float,
    run_seconds: list[float],
    unfinished: Iterable[TrialRecord] = (),
) -> dict[str, Any]:
    """Return the cost of the trials by their status.

    Args:
        records: records of trials that have ended.
        device: CPU or GPU, the unit of `device_hours`.
        devices_per_trial: devices that a trial reserves now, assumed to be the same before a resume.
        run_seconds: seconds of every run of the command.
        unfinished: records of trials that a stop interrupted, up to their last epoch.

    Returns:
        `complete`, `stopped`, `failed`, `unfinished` and `total`, each with `trials`, `epochs`, `trial_s` (seconds of
        training and evaluation), `resumed_s` (the part of these before a resume), `overhead_s` (seconds beyond these
        for which processes were reserved) and `device_hours` (of both, on all devices of the trials); `device` and
        `devices_per_trial`; `attempts` and `wall_s`, the number of runs of the command and their seconds.
    """
    records, unfinished = list(records), list(unfinished)
    groups = {status.lower(): [r for r in records if r.status == status] for status in STATUSES}
    groups |= {"unfinished": unfinished, "total": records + unfinished}
    costs: dict[str, Any] = {"device": device, "devices_per_trial": devices_per_trial}
    for name, group in groups.items():
        trial_s, overhead_s = sum(r.wall_s for r in group), sum(r.overhead_s for r in group)
        costs[name] = {
            "trials": len(group),
            "epochs": sum(r.epochs for r in group),
            "trial_s": trial_s,
            "resumed_s": sum(r.resumed_s for r in group),
            "overhead_s": overhead_s,
            "device_hours": (trial_s + overhead_s) * devices_per_trial / 3600,
        }
    return costs | {"attempts": len(run_seconds), "wall_s": sum(run_seconds)}


def ledger_line(costs: Mapping[str, Any]) -> str:
    """Return a ledger as one line."""
    total, parts = costs["total"], []
    for name in (*map(str.lower, STATUSES), "unfinished"):
        if costs[name]["trials"]:
            parts.append(f"{costs[name]['trials']} {name} {costs[name]['device_hours']:.3g}")
    mean_s = (total["trial_s"] + total["overhead_s"]) / max(total["trials"], 1)
    return (
        f"cost: {total['device_hours']:.3g} {costs['device']}-hours ({', '.join(parts) or 'no trial ended'}), "
        f"{mean_s:.1f} s a trial, {total['overhead_s']:.1f} s overhead, {total['resumed_s']:.1f} s before a resume; "
        f"{costs['wall_s'] / 60:.1f} min, runs of the command: {costs['attempts']}"
    )
