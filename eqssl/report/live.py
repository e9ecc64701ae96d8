"""The summary of a study that is still running, from the records of the trials that have ended."""

import json
from pathlib import Path
from typing import Any

from eqssl.files import find, read
from eqssl.study import ledger
from eqssl.study.definition import WITHOUT_ENCODER, Study
from eqssl.study.record import Record
from eqssl.study.results import summarise
from eqssl.study.space import Choice, Range


def current_summary(folder: Path) -> dict[str, Any]:
    """Return what summary.json holds, or would hold if the study ended now.

    Args:
        folder: OUTPUT/STUDY.

    Raises:
        ValueError: for a folder that holds no study, or one of which no trial has ended.
    """
    text = read(folder / "summary.json")
    summary = json.loads(text) if text else None
    ended = len(find(folder, "trials/*/result.json"))
    if summary and ended <= len(summary["trials"]):
        return summary
    about = read(folder / "study.json")
    if not about:
        raise ValueError(f"{folder} holds no study; give the folder of a study, OUTPUT/STUDY")
    if not ended:
        raise ValueError(f"{folder}: no trial has ended yet; come back when one has")
    return _summary_of_records(folder, json.loads(about))


def _summary_of_records(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    identity, about = known["identity"], dict(known["about"])
    rows, seeds = identity["rows"], identity["seeds"]
    study = Study(
        name=identity["study"],
        question=about.pop("question"),
        space={option: _values(values) for option, values in identity["space"].items()},
        rows=rows,
        controls=about.pop("controls"),
        objectives=identity["objectives"],
    ).for_data(labelled=about["data"]["num_classes"] > 0)
    records = list(Record(folder, known["study_id"], identity).records().values())
    most = identity["trials"] + sum(1 if name in WITHOUT_ENCODER else seeds for name in study.rows)
    status = f"running, {len(records)} of at most {most} trials have ended"
    attempts_s = json.loads(read(folder / ledger.FILE) or "{}")
    about |= {"study_id": known["study_id"], "status": status, "wall_s": list(attempts_s.values() or [0.0])[-1]}
    return summarise(study, records, about)


def _values(values: dict[str, Any]) -> Choice | Range:
    return Choice(tuple(values["values"])) if "values" in values else Range(**values)
