"""The folder of a study, from which it is resumed: one file per suggested and per finished trial.

A damaged file is reported and renamed to FILE.damaged, and its trial is trained again.

- OUTPUT/STUDY/study.json: the study's identity; another study is refused. A copy is runs/study.json.
- OUTPUT/STUDY/configs/NUMBER.json: written when the configuration is suggested.
- OUTPUT/STUDY/trials/ID/trial.json: written when the trial is suggested.
- OUTPUT/STUDY/trials/ID/checkpoint: the last two, kept while the trial trains and if it failed.
- OUTPUT/STUDY/trials/ID/epochs.json: the metrics of its epochs.
- OUTPUT/STUDY/trials/ID/result.json: written once, when it has ended.
- OUTPUT/STUDY/trials/ID/contributions.parquet: the share of each evaluated image in its metrics, see `contributions`.
- OUTPUT/STUDY/trials/ID/predictions.parquet: of the probes of a full evaluation.
- OUTPUT/STUDY/runs/NNNN.json: the runs of the command, see `lock`.
- OUTPUT/STUDY/warm_start.json: points of an earlier study, given to the search first.
"""

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from eqssl.config import RunConfig, changed_options
from eqssl.config import identity as run_identity
from eqssl.files import (
    as_path,
    find,
    looks_whole,
    parse_json,
    parse_or_set_aside,
    persist,
    read,
    read_all,
    remove,
    set_aside,
    sizes,
    write_json,
)
from eqssl.study.listener import Listener
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.lock import RUNS, STUDY

logger = logging.getLogger(__name__)

RESULTS_SCHEMA = 2  # of the files above, part of a study's identity
CONFIGS, TRIALS = "configs", "trials"
STUDY_ID = "study_id"  # in every record, to recognise files of another study
TRIAL, RESULT = "trial.json", "result.json"  # in a trial's folder
WARM_START = "warm_start.json"
CONTRIBUTIONS = "contributions.parquet"
PREDICTIONS = "predictions.parquet"
EPOCHS = "epochs.json"
ENDED = "ended_ms"  # the key there of the end of an epoch, ms since 1970
RECONSTRUCTIONS = "reconstructions.npy"
# Pictures alone: where one is missing or damaged, no trial is trained again.
ATTENTION = "attention.npz"
RETRIEVED = "retrieved.npy"
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
        files: path in the trial's folder -> bytes, of what a complete trial has left.
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
    files: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values of the record in summary.json: without sizes of files or an unknown environment."""
        left_out = {"files"} if self.environment else {"files", "environment"}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    @property
    def trial(self) -> Trial:
        """The trial.

        Raises:
            ValueError: for an id that is not that of the configuration and the seed.
        """
        for overrides in (self.params, None):
            trial = Trial(Configuration(self.configuration, overrides, self.number), self.seed)
            if trial.id == self.trial_id:
                return trial
        raise ValueError(f"trial {self.trial_id} is not {self.configuration} / seed {self.seed}")


def collapsed_parts(metrics: dict[str, float]) -> list[str]:
    """Return the parts of the features (all, inv, equi) that lie near one point or one line."""
    return [
        part
        for part, prefix in {"all": "", "inv": "inv/", "equi": "equi/"}.items()
        if any(metrics.get(prefix + name, threshold) < threshold for name, threshold in COLLAPSE_THRESHOLDS.items())
    ]


class StudyFolder(Listener):
    """The records of a study.

    Args:
        folder: OUTPUT/STUDY.
        study_id: unique among studies.
        identity: plain values that must be equal for trials to belong to one study.
        owned: returns whether this process still owns the folder; once it does not, nothing more is written.

    Attributes:
        stopped: returns whether the study is being stopped, so that failing writes are not retried.
    """

    def __init__(
        self, folder: Path, study_id: str, identity: dict[str, Any], *, owned: Callable[[], bool] = lambda: True
    ):
        self.folder, self.study_id, self.identity = folder, study_id, identity
        self.stopped: Callable[[], bool] = lambda: False
        self._owned = owned
        self._configurations: dict[int, Configuration] = {}
        self._records: dict[str, TrialRecord] = {}
        self._written: set[Path] = set()  # files of configurations and suggested trials

    @classmethod
    def open(
        cls, folder: Path, identity: dict[str, Any], *, resume: bool, owned: Callable[[], bool] = lambda: True
    ) -> "StudyFolder":
        """Return a new study, or one to resume: trials whose failure may not recur, or whose files are damaged, run
        again.

        Except for damaged files, which are set aside, nothing is changed before `create`.

        Args:
            folder: OUTPUT/STUDY.
            identity: plain values that must be equal for trials to belong to one study.
            resume: whether the folder may hold a study.
            owned: as above.

        Raises:
            ValueError: for a folder that holds another study, or this one without `resume`, or other files.
        """
        identity = json.loads(json.dumps(identity))
        if known := known_study(folder, resume=resume):
            before = known["identity"]
            if names := changed_options(before, identity, known["defaults"]):
                lines = [f"  {name}: {before.get(name)!r} there, {identity.get(name)!r} now" for name in names]
                raise ValueError("\n".join([f"--resume: {folder} holds another study; it differs in", *lines]))
            study = cls(folder, known["study_id"], identity, owned=owned)
            study._restore()
            return study
        # A name with a dot is a temporary file of a killed process.
        if folder.exists() and any(path.name != RUNS and path.name[0] != "." for path in folder.iterdir()):
            raise ValueError(f"--output: {folder} exists and holds no {STUDY} of a study; choose another --output")
        return cls(folder, uuid.uuid4().hex, identity, owned=owned)

    def create(self, data: str, about: dict[str, Any] | None = None, warm_points: Sequence[Point] = ()) -> None:
        """Write study.json.

        Args:
            data: digest of the images.
            about: plain values for the report of a running study; a later run of the command may change them.
            warm_points: points of an earlier study, kept for a resume.

        Raises:
            ValueError: for a folder that cannot be written, or whose trials were trained on other data.
        """
        known = known_study(self.folder) or {"data": data}
        if known["data"] != data:
            raise ValueError(f"--resume: {self.folder} was trained on other data ({known['data']} there, {data} now)")
        try:
            if warm_points:
                write_json(self.folder / WARM_START, list(warm_points))
            values = {"study_id": self.study_id, "identity": self.identity, "data": data, "about": about or {}}
            values["defaults"] = run_identity(RunConfig())
            for path in (self.folder / STUDY, self.folder / RUNS / STUDY):
                write_json(path, values)
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
        path = self.folder / WARM_START
        known = parse_or_set_aside(path, read(path), lambda values: [(dict(p), dict(v)) for p, v in values])
        if known is not None:
            return known
        path = as_path(earlier, "--warm-start") / "summary.json"
        summary = parse_json(path, read(path) or b"")
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
        return self.folder / TRIALS / trial.id

    def trial_suggested(self, trial: Trial) -> None:
        """Write a trial and its configuration down before it starts."""
        configuration = trial.configuration
        if configuration.number is not None:
            self._configurations.setdefault(configuration.number, configuration)
            self._write_once(self.folder / CONFIGS / f"{configuration.number:04d}.json", asdict(configuration))
        self._write_once(self.trial_folder(trial) / TRIAL, asdict(configuration) | {"seed": trial.seed})

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        """Write a record and remove the checkpoint, unless the trial failed.

        Raises:
            OSError: for a record that could not be written before the study was stopped or had lost its folder.
        """
        path = self.trial_folder(trial) / RESULT
        if not self._write(path, asdict(record)):
            raise OSError(f"{path} was not written before the study was stopped")
        self._records[trial.id] = record
        if record.status != "FAILED":
            remove(self.trial_folder(trial) / "checkpoint")

    def _write_once(self, path: Path, values: dict[str, Any]) -> None:
        if path not in self._written and self._write(path, values):
            self._written.add(path)

    def _write(self, path: Path, values: dict[str, Any]) -> bool:
        """Write a record, as soon as that is possible; return False if the study is stopped or loses its folder first.

        An exception would fail the trial, or Tune's whole run.
        """

        def write() -> bool:
            if owned := self._owned():
                write_json(path, values | {STUDY_ID: self.study_id})
            return owned

        try:
            return persist(write, lambda error: self.stopped())
        except OSError as error:
            logger.warning("%s was not written; its trial continues after a resume: %s", path, error)
            return False

    def configurations(self) -> list[Configuration]:
        """Return every suggested configuration of the search, each under its number."""
        return list(self._configurations.values())

    def records(self) -> dict[str, TrialRecord]:
        """Return trial id -> record of every trial that has ended, except those that run again."""
        return dict(self._records)

    def _restore(self) -> None:
        """Read all files of the study."""
        read_own = partial(_read_all, self.folder, study_id=self.study_id)
        suggested = read_own(f"{CONFIGS}/*.json", _suggested_configuration)
        suggested |= read_own(f"{TRIALS}/*/{TRIAL}", _suggested_trial)
        records = read_own(f"{TRIALS}/*/{RESULT}", _own_record)
        self._written = set(suggested)
        paths: dict[int, Path] = {}
        for path, configuration in [*suggested.items(), *((p, of.trial.configuration) for p, of in records.items())]:
            number = configuration.number
            if number is None:
                continue
            if self._configurations.setdefault(number, configuration) != configuration:
                raise ValueError(
                    f"--resume: {paths[number]} and {path} hold other options of configuration {number}; remove the "
                    "one that is not of this study"
                )
            paths.setdefault(number, path)
        found = sizes(self.folder)
        self._records = {record.trial_id: record for record in records.values() if self._is_final(record, found)}

    def _is_final(self, record: TrialRecord, found: dict[str, int]) -> bool:
        """Return whether a trial need not run again: its failure would recur, or its files are intact."""
        if record.error and record.error.endswith(RETRYABLE):
            return False
        final = True
        for name, size in record.files.items():
            path = self.folder / TRIALS / record.trial_id / name
            size_now = found.get(f"{TRIALS}/{record.trial_id}/{name}")
            if size_now is None:
                logger.warning("%s is missing: its trial is trained again", path)
            elif size_now != size or not looks_whole(path):
                set_aside(path, "it is not what was written, so that its trial is trained again")
            else:
                continue
            final = False
        return final


def _read_all(
    folder: Path, pattern: str, make: Callable[[Path, Any], Any], study_id: str | None = None
) -> dict[Path, Any]:
    """Return path -> content of a study's records, without damaged ones.

    Args:
        folder: OUTPUT/STUDY.
        pattern: of the files.
        make: takes the path and the values of a file.
        study_id: records of another study count as damaged, and damaged ones are set aside; None: they are left there.
    """

    def own(path: Path, values: dict[str, Any]) -> Any:
        if values.pop(STUDY_ID, study_id) != study_id and study_id is not None:
            raise ValueError("it is of another study")
        return make(path, values)

    paths = sorted(find(folder, pattern), key=str)
    texts = zip(paths, read_all(paths), strict=True)
    move = study_id is not None
    made = ((path, parse_or_set_aside(path, text, partial(own, path), move=move)) for path, text in texts)
    return {path: of for path, of in made if of is not None}


def _suggested_configuration(path: Path, values: dict[str, Any]) -> Configuration:
    configuration = Configuration(**values)
    if path.stem != f"{configuration.number:04d}":
        raise ValueError(f"it is of configuration {configuration.number}")
    return configuration


def _suggested_trial(path: Path, values: dict[str, Any]) -> Configuration:
    seed = values.pop("seed")
    trial = Trial(Configuration(**values), seed)
    if trial.id != path.parent.name:
        raise ValueError(f"it is of trial {trial.id}")
    return trial.configuration


def _own_record(path: Path, values: dict[str, Any]) -> TrialRecord:
    record = TrialRecord(**values)
    if record.trial.id != path.parent.name or record.status not in get_args(Status):
        raise ValueError(f"it is of trial {record.trial_id}, status {record.status}")
    return record


def read_records(folder: Path) -> list[TrialRecord]:
    """Return the records of the trials of a study that have ended so far, and change nothing in its folder."""
    return list(_read_all(folder, f"{TRIALS}/*/{RESULT}", _own_record).values())


def trial_outputs(folder: Path) -> dict[str, int]:
    """Return path -> bytes of what a complete trial has left in its folder."""
    return {
        name: size
        for name, size in sizes(folder).items()
        if name.startswith("encoder/") or name in (CONTRIBUTIONS, PREDICTIONS, RECONSTRUCTIONS)
    }


def known_study(folder: Path, *, resume: bool = True) -> dict[str, Any] | None:
    """Return the content of study.json or, where that is damaged or missing, of its copy; None without a study.

    Args:
        folder: OUTPUT/STUDY.
        resume: whether the folder may hold a study.

    Raises:
        ValueError: where both are damaged, with the path, or for a study without `resume`.
    """
    damaged: ValueError | None = None
    for path in (folder / STUDY, folder / RUNS / STUDY):
        try:
            if (text := read(path)) is not None:
                known = parse_json(path, text)
                if not resume:
                    break
                if path.parent != folder:
                    logger.warning("%s; its copy %s is used", damaged or f"{folder / STUDY} is missing", path)
                found = {name: known[name] for name in ("study_id", "identity", "data", "about")}
                return found | {"defaults": known.get("defaults", {})}  # of the version of eqssl that wrote it
        except (KeyError, TypeError) as error:
            damaged = damaged or ValueError(f"{path} is damaged ({error!r}); restore or remove it")
        except ValueError as error:
            damaged = damaged or error
    else:
        if damaged:
            raise damaged
        return None
    raise ValueError(f"--output: {folder} holds a study; continue it with --resume or choose another --output")
