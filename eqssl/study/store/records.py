"""The folder of a study, the single truth from which it is resumed: one file per asked and per finished trial.

- OUTPUT/STUDY/study.json: what the study is; another one is refused.
- OUTPUT/STUDY/trials/ID/trial.json: written when the trial is suggested.
- OUTPUT/STUDY/trials/ID/checkpoint: while it trains, and the last good one of a trial that failed.
- OUTPUT/STUDY/trials/ID/epochs.json: the metrics of its epochs, while it trains and after.
- OUTPUT/STUDY/trials/ID/result.json: written once, when it has ended.
- OUTPUT/STUDY/trials/ID/contributions.parquet: what each held-out image adds to its metrics, see `contributions`.
- OUTPUT/STUDY/lease.json: while a process runs the study, see `lease`.
- OUTPUT/STUDY/attempts.json: how long each such process ran, see `ledger`.
- OUTPUT/STUDY/warm_start.json: what the search was told first, where it was.
"""

import json
import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from eqssl.files import as_path, find, read, read_all, remove, write_atomically
from eqssl.study.listener import Listener
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store import lock as lease

WARM_START = "warm_start.json"
CONTRIBUTIONS = "contributions.parquet"
Point = tuple[dict[str, Any], dict[str, float]]  # a configuration's options and objectives
# The end of the error of a trial that might have gone on elsewhere, such as on a node that works.
GIVEN_UP = " attempts)"
Status = Literal["COMPLETE", "STOPPED", "FAILED"]
LEAST = {"rank": 2.0, "spread": 0.02}  # features on one line are below the first, at one point below the second


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A finished trial.

    Args:
        trial_id, configuration, number, params, seed: which trial it was.
        status: COMPLETE, STOPPED before its last epoch since it was behind, or FAILED.
        epochs: trained.
        metrics: of the last epoch, the evaluation included.
        wall_s: seconds in training and evaluation, over all attempts.
        resumed_s: of these, seconds of earlier attempts, before a resume.
        overhead_s: seconds that the last attempt held its process beyond training and evaluation.
        warm: whether the process had run a trial before.
        error: why it failed.
        history: epoch -> the study's objectives, of epochs before the last that had an evaluation.
        collapsed: parts of the features (all, inv, equi) that have collapsed; the choice passes over such a trial.
    """

    trial_id: str
    configuration: str
    number: int | None
    params: dict[str, Any]
    seed: int
    status: Status
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    resumed_s: float = 0.0
    overhead_s: float = 0.0
    warm: bool = False
    error: str | None = None
    history: dict[str, dict[str, float]] = field(default_factory=dict)
    collapsed: list[str] = field(default_factory=list)


def collapsed_parts(metrics: dict[str, float]) -> list[str]:
    """Return which parts of the features (all, inv, equi) lie at one point or on one line."""
    prefixes = {"all": "", "inv": "inv/", "equi": "equi/"}
    return [
        part
        for part, prefix in prefixes.items()
        if any(metrics.get(prefix + metric, least) < least for metric, least in LEAST.items())
    ]


class Record(Listener):
    """An open study folder."""

    def __init__(self, folder: Path, study_id: str, identity: dict[str, Any]):
        self.folder, self.study_id, self.identity = folder, study_id, identity
        self._again: set[str] = set()  # trials that are tried again

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any], *, resume: bool) -> "Record":
        """Return the study of a folder, new or to be continued; nothing is written before `create`.

        Args:
            folder: OUTPUT/STUDY.
            identity: plain values; everything that must be equal for the results to belong together.
            resume: whether the folder may exist.

        Raises:
            ValueError: for a folder that exists without `resume`, or belongs to another study.
        """
        path = folder / "study.json"
        identity = json.loads(json.dumps(identity))
        if text := read(path):
            known = json.loads(text)
            check_same(folder, known["identity"], identity, resume=resume)
            return cls(folder, known["study_id"], identity)
        if folder.exists() and any(not path.name.startswith(lease.FILE) for path in folder.iterdir()):
            raise ValueError(f"--output: {folder} exists and holds no study; take another --output")
        return cls(folder, uuid.uuid4().hex, identity)

    def create(self, data: str, about: dict[str, Any] | None = None, warm_points: Sequence[Point] = ()) -> None:
        """Make the folder, unless it is there. Trials that an earlier command gave up are no longer on record.

        Args:
            data: digest of the images.
            about: plain values that a report shows while the study runs; they may change from start to start.
            warm_points: what the search was told first, kept for a resume.

        Raises:
            ValueError: for a folder that cannot be written, or whose trials were trained on other data.
        """
        path = self.folder / "study.json"
        text = read(path)
        earlier = json.loads(text)["data"] if text else data
        if earlier != data:
            raise ValueError(f"--resume: {self.folder} was trained on other data ({earlier} there, {data} now)")
        try:
            if warm_points:
                write_json(self.folder / WARM_START, list(warm_points))
            self._again = {r.trial_id for r in self.records().values() if r.error and r.error.endswith(GIVEN_UP)}
            known = {"study_id": self.study_id, "identity": self.identity, "data": data, "about": about or {}}
            write_json(path, known)
        except OSError as error:
            raise ValueError(f"--output: {self.folder} cannot be written ({error})") from error

    def warm_points(self, earlier: str | None, objectives: Iterable[str]) -> list[Point]:
        """Return options and objectives of an earlier study's configurations, the same after every resume.

        As in that study itself, one of which a trial failed, was stopped early or collapsed has none.

        Args:
            earlier: its folder or a URI of it, only read the first time; None: nothing.
            objectives: metrics of which a configuration must have one.

        Raises:
            ValueError: for a study with nothing to learn from.
        """
        if earlier is None:
            return []
        if text := read(self.folder / WARM_START):
            return [(params, values) for params, values in json.loads(text)]
        summary = json.loads((as_path(earlier, "--warm-start") / "summary.json").read_text())
        unsound = {t["configuration"] for t in summary["trials"] if t["status"] != "COMPLETE" or t["collapsed"]}
        points = [
            (c["params"], {f: c["metrics"][f]["estimate"] for f in objectives if f in c["metrics"]})
            for c in summary["configurations"]
            if c["number"] is not None and c["name"] not in unsound
        ]
        points = [(params, values) for params, values in points if values]
        if not points:
            raise ValueError(f"--warm-start is {earlier!r}, which has no configuration with {list(objectives)}")
        return points

    def trial_folder(self, trial: Trial) -> Path:
        return self.folder / "trials" / trial.id

    def asked(self, trial: Trial) -> None:
        """Note that a trial was suggested, before it starts."""
        path = self.trial_folder(trial) / "trial.json"
        if not read(path):
            write_json(path, {**asdict(trial.configuration), "seed": trial.seed})

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        """Note how the trial ended; its checkpoint is kept only where it shows what came before a failure."""
        write_json(self.trial_folder(trial) / "result.json", asdict(record))
        self._again.discard(trial.id)
        if record.status != "FAILED":
            remove(self.trial_folder(trial) / "checkpoint")

    def asked_trials(self) -> list[Trial]:
        """Return every trial that was suggested, in the order of the suggestions."""
        trials = []
        for text in read_all(find(self.folder, "trials/*/trial.json")):
            values = json.loads(text)
            seed = values.pop("seed")
            trials.append(Trial(Configuration(**values), seed))
        return sorted(trials, key=lambda t: (-1 if t.configuration.number is None else t.configuration.number, t.seed))

    def records(self) -> dict[str, TrialRecord]:
        """Return trial id -> record of every finished trial, but those that are tried again."""
        found = (TrialRecord(**json.loads(text)) for text in read_all(find(self.folder, "trials/*/result.json")))
        return {record.trial_id: record for record in found if record.trial_id not in self._again}


def check_same(folder: Path, known: dict[str, Any], identity: dict[str, Any], *, resume: bool) -> None:
    """Refuse to mix two studies in one folder.

    Raises:
        ValueError: with the differences, or with what to do.
    """
    names = sorted(name for name in known.keys() | identity.keys() if known.get(name) != identity.get(name))
    if names and resume:
        lines = (f"  {name}: {known.get(name)!r} there, {identity.get(name)!r} now" for name in names)
        raise ValueError(f"--resume: {folder} holds another study; it differs in\n" + "\n".join(lines))
    if not resume:
        other = " (another one than this)" if names else ""
        raise ValueError(f"--output: {folder} holds a study{other}; continue it with --resume or take another --output")


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that JSON has a number for."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON, atomically."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
