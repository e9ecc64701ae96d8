"""The folder of a study, from which it is resumed: one file per suggested and per finished trial.

- OUTPUT/STUDY/study.json: the study's identity; another study is refused.
- OUTPUT/STUDY/trials/ID/trial.json: written when the trial is suggested.
- OUTPUT/STUDY/trials/ID/checkpoint: while it trains, and the last one of a trial that failed.
- OUTPUT/STUDY/trials/ID/epochs.json: the metrics of its epochs.
- OUTPUT/STUDY/trials/ID/result.json: written once, when it has ended.
- OUTPUT/STUDY/trials/ID/contributions.parquet: the share of each evaluated image in its metrics, see `contributions`.
- OUTPUT/STUDY/trials/ID/predictions.parquet: of the probes of a full evaluation.
- OUTPUT/STUDY/runs/NNNN.json: the runs of the command, see `lock`.
- OUTPUT/STUDY/warm_start.json: points of an earlier study, given to the search first.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from eqssl.files import as_path, find, parse_json, read, read_all, remove, write_json
from eqssl.study.listener import Listener
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.lock import RUNS, STUDY

RESULTS_SCHEMA = 1  # of the files above, part of a study's identity
WARM_START = "warm_start.json"
CONTRIBUTIONS = "contributions.parquet"
PREDICTIONS = "predictions.parquet"
EPOCHS = "epochs.json"
ENDED = "ended_ms"  # the key there of the end of an epoch, ms since 1970
Point = tuple[dict[str, Any], dict[str, float]]  # a configuration's options and objectives
Status = Literal["COMPLETE", "STOPPED", "FAILED"]
RETRYABLE = " attempts)"  # ends the error of a trial that may succeed elsewhere, such as on another node
COLLAPSE_THRESHOLDS = {"rank": 2.0, "spread": 0.02}  # features on a line have a lower rank, at a point a lower spread


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial that has ended.

    Args:
        trial_id, configuration, number, params, seed: of the trial.
        status: COMPLETE, STOPPED by the pruner before its last epoch, or FAILED.
        epochs: trained.
        metrics: of the last epoch, with the evaluation.
        wall_s: seconds of training and evaluation, over all attempts.
        resumed_s: seconds of these before a resume.
        overhead_s: seconds beyond training and evaluation for which the last attempt reserved its process.
        warm: whether the process had run a trial before.
        error: of a trial that failed.
        history: epoch -> objectives, of evaluated epochs before the last.
        collapsed: parts of the features (all, inv, equi) that have collapsed; such a trial is never chosen.
        environment: versions and commit of the worker of the last attempt.
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
    environment: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values of the record in summary.json; those of earlier versions have no environment."""
        return {name: value for name, value in vars(self).items() if value or name != "environment"}


def collapsed_parts(metrics: dict[str, float]) -> list[str]:
    """Return the parts of the features (all, inv, equi) that lie near one point or one line."""
    return [
        part
        for part, prefix in {"all": "", "inv": "inv/", "equi": "equi/"}.items()
        if any(metrics.get(prefix + name, threshold) < threshold for name, threshold in COLLAPSE_THRESHOLDS.items())
    ]


class StudyFolder(Listener):
    """An open study folder.

    Args:
        folder: OUTPUT/STUDY.
        study_id: unique among studies.
        identity: see `open`.
    """

    def __init__(self, folder: Path, study_id: str, identity: dict[str, Any]):
        self.folder, self.study_id, self.identity = folder, study_id, identity
        self._retried: set[str] = set()  # ids of trials that run again after a failure

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any], *, resume: bool) -> "StudyFolder":
        """Return a new study or one to resume, whose failed trials run again where that may help.

        Nothing is written before `create`.

        Args:
            folder: OUTPUT/STUDY.
            identity: plain values that must be equal for trials to belong to one study.
            resume: whether the folder may hold a study.

        Raises:
            ValueError: for a folder that holds another study, or this one without `resume`, or other files.
        """
        identity = json.loads(json.dumps(identity))
        if text := read(folder / STUDY):
            known = parse_json(folder / STUDY, text)
            check_same(folder, known["identity"], identity, resume=resume)
            study = cls(folder, known["study_id"], identity)
            study._retried = {r.trial_id for r in study.records().values() if r.error and r.error.endswith(RETRYABLE)}
            return study
        # A name with a dot is a temporary file of a killed process.
        if folder.exists() and any(path.name != RUNS and path.name[0] != "." for path in folder.iterdir()):
            raise ValueError(f"--output: {folder} exists and holds no study; take another --output")
        return cls(folder, uuid.uuid4().hex, identity)

    def create(self, data: str, about: dict[str, Any] | None = None, warm_points: Sequence[Point] = ()) -> None:
        """Write study.json.

        Args:
            data: digest of the images.
            about: plain values for the report of a running study; a later run of the command may change them.
            warm_points: points of an earlier study, kept for a resume.

        Raises:
            ValueError: for a folder that cannot be written, or whose trials were trained on other data.
        """
        text = read(self.folder / STUDY)
        known_data = parse_json(self.folder / STUDY, text)["data"] if text else data
        if known_data != data:
            raise ValueError(f"--resume: {self.folder} was trained on other data ({known_data} there, {data} now)")
        try:
            if warm_points:
                write_json(self.folder / WARM_START, list(warm_points))
            values = {"study_id": self.study_id, "identity": self.identity, "data": data, "about": about or {}}
            write_json(self.folder / STUDY, values)
        except OSError as error:
            raise ValueError(f"--output: {self.folder} cannot be written ({error})") from error

    def warm_points(self, earlier: str | None, objectives: Iterable[str]) -> list[Point]:
        """Return options and objectives of an earlier study's searched configurations, the same after every resume.

        Configurations with a trial that failed, was stopped or collapsed are left out.

        Args:
            earlier: its folder or a URI, only read the first time; None: no points.
            objectives: metrics; a configuration must have one of them.

        Raises:
            ValueError: for a study without such a configuration.
        """
        if earlier is None:
            return []
        if text := read(self.folder / WARM_START):
            return [(params, values) for params, values in parse_json(self.folder / WARM_START, text)]
        summary = json.loads((as_path(earlier, "--warm-start") / "summary.json").read_text())
        unsound = {t["configuration"] for t in summary["trials"] if t["status"] != "COMPLETE" or t["collapsed"]}
        points = []
        for configuration in summary["configurations"]:
            metrics = configuration["metrics"]
            values = {name: metrics[name]["estimate"] for name in objectives if name in metrics}
            if values and configuration["number"] is not None and configuration["name"] not in unsound:
                points.append((configuration["params"], values))
        if not points:
            raise ValueError(f"--warm-start is {earlier!r}, which has no configuration with {list(objectives)}")
        return points

    def trial_folder(self, trial: Trial) -> Path:
        """Return OUTPUT/STUDY/trials/ID."""
        return self.folder / "trials" / trial.id

    def trial_suggested(self, trial: Trial) -> None:
        """Write a trial down before it starts."""
        path = self.trial_folder(trial) / "trial.json"
        if not read(path):
            write_json(path, {**asdict(trial.configuration), "seed": trial.seed})

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        """Write a record and remove the checkpoint, unless the trial failed."""
        write_json(self.trial_folder(trial) / "result.json", asdict(record))
        self._retried.discard(trial.id)
        if record.status != "FAILED":
            remove(self.trial_folder(trial) / "checkpoint")

    def suggested_trials(self) -> list[Trial]:
        """Return every suggested trial, in the order of the suggestions; reference rows come first."""
        trials = []
        for values in self._read_all("trials/*/trial.json"):
            seed = values.pop("seed")
            trials.append(Trial(Configuration(**values), seed))
        return sorted(trials, key=lambda t: (-1 if t.configuration.number is None else t.configuration.number, t.seed))

    def records(self) -> dict[str, TrialRecord]:
        """Return trial id -> record of every trial that has ended, except those that run again."""
        records = (TrialRecord(**values) for values in self._read_all("trials/*/result.json"))
        return {record.trial_id: record for record in records if record.trial_id not in self._retried}

    def _read_all(self, pattern: str) -> list[dict[str, Any]]:
        paths = find(self.folder, pattern)
        return [parse_json(path, text) for path, text in zip(paths, read_all(paths), strict=True)]


def check_same(folder: Path, known: dict[str, Any], identity: dict[str, Any], *, resume: bool) -> None:
    """Refuse to mix two studies in one folder.

    Raises:
        ValueError: with the differences, or with possible actions.
    """
    names = sorted(name for name in known.keys() | identity.keys() if known.get(name) != identity.get(name))
    if names and resume:
        lines = (f"  {name}: {known.get(name)!r} there, {identity.get(name)!r} now" for name in names)
        raise ValueError(f"--resume: {folder} holds another study; it differs in\n" + "\n".join(lines))
    if not resume:
        other = " (another one than this)" if names else ""
        raise ValueError(f"--output: {folder} holds a study{other}; continue it with --resume or take another --output")
