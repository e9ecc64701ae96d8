"""The summary of a study that is still running, from the records of its trials, or from its probes' predictions."""

import dataclasses
from pathlib import Path
from typing import Any

from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.files import find, finite, parse_json, read
from eqssl.metrics import register_stored
from eqssl.study.definition import ONE_SEED, Study
from eqssl.study.results import summarise
from eqssl.study.store.lock import run_seconds
from eqssl.study.store.records import PREDICTIONS, TrialRecord, known_study, read_records
from eqssl.study.summary import space_from_dict


def current_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a study that has ended, or of the trials that have ended so far.

    Args:
        folder: OUTPUT/STUDY.

    Raises:
        ValueError: for a folder without a study, for a study of an earlier version, or if no trial has ended.
    """
    text = read(folder / "summary.json")
    summary = parse_json(folder / "summary.json", text) if text else None
    ended = len(find(folder, "trials/*/result.json"))
    if summary and "answer" not in summary:
        raise ValueError(f"{folder} is of an earlier version of eqssl, whose report holds; run the study again")
    if summary and ended <= len(summary["trials"]):
        return summary
    known = known_study(folder)
    if known is None:
        raise ValueError(f"{folder} holds no study; give the folder of a study, OUTPUT/STUDY")
    if not ended:
        raise ValueError(f"{folder}: no trial has ended yet; come back when one has")
    identity, study, records = known["identity"], _study(known), read_records(folder)
    most = identity["trials"] + sum(1 if name in ONE_SEED else identity["seeds"] for name in study.rows)
    status = f"running, {len(records)} of at most {most} trials have ended"
    run = {name: value for name, value in known["about"].items() if name not in ("question", "controls", "subject")}
    run |= {"study_id": known["study_id"], "status": status, "wall_s": (run_seconds(folder) or [0.0])[-1]}
    return summarise(study, records, run, folder)


def summary_of_predictions(folder: Path) -> dict[str, Any]:
    """Return `current_summary` with every probe's metrics recomputed from its predictions.

    Args:
        folder: OUTPUT/STUDY.

    Raises:
        ValueError: as `current_summary` does; also for a folder that was reduced to its summary, for predictions of
            another protocol, and for a complete trial whose predictions were not saved.
    """
    from eqssl.evaluation.predictions import load_predictions, metrics_of  # imports torch

    summary, known = current_summary(folder), known_study(folder)
    if known is None:
        raise ValueError(f"--from-predictions: {folder} has no study.json: its trials are not here, only their summary")
    if (protocol := known["identity"]["protocol"]) != PROTOCOL_VERSION:
        raise ValueError(f"--from-predictions: {folder} is of protocol {protocol}; allowed: {PROTOCOL_VERSION}")
    records = []
    for record in (TrialRecord(**trial) for trial in summary["trials"]):
        if record.status == "COMPLETE":
            try:
                predictions = load_predictions(folder / "trials" / record.trial_id / PREDICTIONS)
            except FileNotFoundError as error:
                raise ValueError(
                    f"--from-predictions: trial {record.trial_id} ({record.configuration}, seed {record.seed}) of "
                    f"{folder} has no {PREDICTIONS}; they are saved by a study with --evaluate.level full"
                ) from error
            record = dataclasses.replace(record, metrics=record.metrics | finite(metrics_of(predictions)))
        records.append(record)
    return summary | summarise(_study(known), records, {}, folder) | {"environment": summary["environment"]}


def _study(known: dict[str, Any]) -> Study:
    """Return the study that a study.json describes."""
    identity, about = known["identity"], known["about"]
    register_stored(about.get("metrics", {}))
    return Study(
        name=identity["study"],
        question=about["question"],
        space=space_from_dict(identity["space"]),
        rows=identity["rows"],
        controls=about["controls"],
        subject=about.get("subject", ""),
        objectives=identity["objectives"],
        seeds=identity["seeds"],
    ).for_data(labelled=about["data"]["num_classes"] > 0, known=about["data"].get("known", True))
