"""The result of a study as typed values: the content of summary.json."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eqssl.files import as_path, read
from eqssl.renames import did_you_mean
from eqssl.study.search.space import Choice, Range, Space
from eqssl.study.store.records import TrialRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from eqssl.models.encoder import Encoder

SUMMARY, BEST_ENCODER = "summary.json", "best_encoder"  # in the study's folder
# Fields that are by metric.
INTERVALS = {"metrics", "gains", "beyond_autoencode", "beyond_split", "behind", "differences", "best"}


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided bounds."""

    estimate: float
    low: float = math.nan  # NaN if there are too few seeds
    high: float = math.nan
    significant: bool | None = None  # of a difference, among all comparisons of its table; None: not tested

    @property
    def has_bounds(self) -> bool:
        """Whether there were enough seeds for bounds."""
        return math.isfinite(self.low)

    def to_dict(self) -> dict[str, Any]:
        """Return the interval as plain JSON values: None for NaN, and no `significant` if that was not tested."""
        values = {name: None if value != value else value for name, value in vars(self).items()}
        return {name: value for name, value in values.items() if name != "significant" or value is not None}


@dataclass(frozen=True)
class Best(Interval):
    """The mean of the best configuration."""

    name: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a configuration is more equivariant than its controls without loss, see `eqssl.stats.verdict`."""

    answer: Literal["yes", "no", "inconclusive"]
    power: float | None  # None if it is unknown


@dataclass(frozen=True)
class ConfigResult:
    """The results of one configuration; intervals by metric, at 95 %."""

    name: str
    number: int | None  # in the order of the search; None for a reference row
    params: dict[str, Any]
    seeds: list[int]  # of complete trials
    controls: list[str]  # rows of the study that it is compared with
    autoencode: str | None  # the control that differs from it only in the attention
    metrics: dict[str, Interval]  # means over seeds
    front_probability: float | None  # probability that no other configuration is better in all objectives at once
    equivariant_without_loss: Verdict | None  # None for rows that are not judged
    gains: dict[str, Interval]  # differences from the best control, metric by metric
    beyond_autoencode: dict[str, Interval]  # differences from `autoencode`
    behind: dict[str, Interval]  # differences from the best configuration


@dataclass(frozen=True)
class Chosen:
    """The choice of a study."""

    configuration: str
    params: dict[str, Any]
    trial_id: str  # of the trial whose encoder is kept
    reason: str


@dataclass(frozen=True)
class Answer:
    """The comparison that the study's sentence is about."""

    configuration: str  # the choice, or the subject of a study without a search
    base: str | None  # its base method; None if the study has none
    goal: str  # metric to be improved
    level: float  # of the intervals: .95, or more for the best of several candidates
    candidates: int  # configurations among which it was chosen
    differences: dict[str, Interval]  # from the base, the goal first; the means themselves if there is no base
    signs: dict[str, int]  # metric -> 1 if larger is better, else -1
    labelled: bool  # whether an accuracy was measured
    missing: list[str]  # controls without a complete trial
    autoencodes: bool  # whether the configuration itself auto-encodes
    autoencode: str | None  # the control that differs from it only in the attention
    beyond_autoencode: dict[str, Interval]  # differences from that control
    untrained: list[str] = field(default_factory=list)  # rows that the base's accuracy does not exceed significantly
    beyond_split: dict[str, Interval] = field(default_factory=dict)  # differences from the split without reconstruction


@dataclass(frozen=True)
class NoAnswer:
    """The reason why a study has no answer."""

    reason: str
    best: dict[str, Best]  # objective -> best configuration
    configuration: None = None


@dataclass(frozen=True)
class StudySummary:
    """The result of a study."""

    study: str
    question: str
    sentence: str  # the answer in words
    about: dict[str, Any]  # the run, as top-level keys of summary.json: options, data, status, wall_s, ledger, ...
    space: Space
    objectives: dict[str, str]  # metric -> maximize or minimize
    chosen: Chosen | None  # None if no searched configuration qualifies by `rule`
    answer: Answer | NoAnswer
    rule: str  # of the choice
    images_sampled: bool  # whether intervals account for the sampling of held-out images
    untrained: dict[str, list[str]]  # base method -> rows that its accuracy does not exceed significantly
    overhead_s: dict[str, float | None]  # `median_warm` of the warm trials, and their number, `warm_trials`
    minimum_detectable_difference: dict[str, float | None]  # metric -> that of a typical gain, at a power of .8
    best_control: dict[str, str | None]  # metric -> name
    best: dict[str, str | None]  # metric -> name of the best configuration, excluding references
    configurations: list[ConfigResult]  # in the order of the study's rows and of the search
    records: list[TrialRecord]  # of all trials, in the same order
    environment: dict[str, str]  # versions of packages, and the commit
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # label, direction, ... of every measured metric
    folder: Path | None = None  # the study's folder, if it was loaded from one

    def __repr__(self) -> str:
        """Return a short text: all values would fill pages of a notebook."""
        return f"<study {self.study}: {len(self.configurations)} configurations, {len(self.records)} trials>"

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values of summary.json."""
        names = [f.name for f in fields(self) if f.name not in ("about", "records", "folder")]
        values = {name: _plain(getattr(self, name)) for name in names}
        if not self.metrics:  # the case for summaries of earlier versions
            del values["metrics"]
        return self.about | values | {"trials": [record.to_dict() for record in self.records]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StudySummary":
        """Return the summary from plain values, as `to_dict` returns them."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        chosen, answer = values["chosen"], values["answer"]
        typed = {
            "about": {name: value for name, value in values.items() if name not in known and name != "trials"},
            "space": space_from_dict(values["space"]),
            "chosen": Chosen(**chosen) if chosen else None,
            "answer": (Answer if answer["configuration"] else NoAnswer)(**_with_intervals(answer)),
            "configurations": [ConfigResult(**_with_intervals(of)) for of in values["configurations"]],
            "records": [TrialRecord(**trial) for trial in values["trials"]],
        }
        return cls(**known | typed)

    @cached_property
    def trials(self) -> "pd.DataFrame":
        """One row per trial: seed, status and times, a column per option that varies, and one per metric."""
        import pandas as pd

        # Their columns come first, next to those of the trial.
        options = {option: None for record in self.records for option in record.params}
        rows = [vars(record) | options | record.params | record.metrics for record in self.records]
        return pd.DataFrame(rows).drop(columns=["params", "metrics", "history"])

    @cached_property
    def configs(self) -> "pd.DataFrame":
        """One row per configuration, indexed by name.

        Columns are paths in summary.json: `number`, `params.recon.weight`, `metrics.linear.estimate`,
        `gains.linear.low`, `equivariant_without_loss.answer`, ...
        """
        import pandas as pd

        return pd.json_normalize(_plain(self.configurations)).set_index("name")

    def encoder(self) -> "Encoder":
        """Return the chosen encoder, on the CPU in evaluation mode.

        Raises:
            ValueError: for a study without a choice, or whose folder lacks the encoder.
        """
        from eqssl.models.export import load_encoder

        if self.chosen is None or self.folder is None:
            raise ValueError(f"study {self.study} has no {BEST_ENCODER}: nothing was chosen")
        return load_encoder(self.folder / BEST_ENCODER)

    def figure(self, name: str = "tradeoff") -> "Figure":
        """Return a figure of the report.

        Args:
            name: such as `tradeoff` (in the report: `front`), `responses`, `heatmap`, `reconstructions`, `attention`.

        Raises:
            ValueError: for another name; the message lists those that this study has data for.
        """
        if name not in self._figures:
            near = did_you_mean(name, self._figures)
            raise ValueError(f"figure is {name!r}; allowed for study {self.study}: {', '.join(self._figures)}{near}")
        return self._figures[name]

    @cached_property
    def _figures(self) -> "dict[str, Figure]":
        import matplotlib

        from eqssl.report.figures import STYLE
        from eqssl.report.importance import study_importances
        from eqssl.report.report import study_pictures

        summary = self.to_dict()
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's in a notebook, when optuna imports it
            pictures = study_pictures(summary, self.folder, study_importances(summary))
        figures = {}
        for picture in pictures:
            figures[picture.name] = picture.figure
            picture.figure._repr_png_ = picture.save  # type: ignore[attr-defined] # notebooks then need no pyplot
        if "front" in figures:
            figures["tradeoff"] = figures["front"]
        return figures


def load_study(path: str | Path) -> StudySummary:
    """Return the result of a study that has ended.

    Args:
        path: OUTPUT/STUDY or its summary.json, also a URI.

    Raises:
        ValueError: for a path without a summary, or with one that is truncated or of another version.
    """
    folder = as_path(path)
    folder = folder.parent if folder.name == SUMMARY else folder
    text = read(folder / SUMMARY)
    if text is None:
        raise ValueError(f"{folder} holds no {SUMMARY}, which a study writes at its end")
    try:
        return replace(StudySummary.from_dict(json.loads(text)), folder=folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / SUMMARY} is cut or of another version of eqssl ({error!r})") from error


def _plain(value: Any) -> Any:
    """Return a part of a summary as plain JSON values."""
    if isinstance(value, Interval):
        return value.to_dict()
    if isinstance(value, dict):
        return {name: _plain(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return _plain(vars(value)) if is_dataclass(value) else value


def _with_intervals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration or of the answer, with typed intervals and verdict."""
    typed = dict(values)
    for name in INTERVALS & values.keys():
        kind: type[Interval] = Best if name == "best" else Interval
        typed[name] = {
            metric: kind(**{key: value for key, value in of.items() if value is not None})
            for metric, of in values[name].items()
        }
    if verdict := values.get("equivariant_without_loss"):
        typed["equivariant_without_loss"] = Verdict(**verdict)
    return typed


def space_from_dict(values: Mapping[str, Any]) -> Space:
    """Return the space from plain values, as in summary.json and study.json."""
    space: Space = {}
    for option, of in values.items():
        only = (of["only"][0], tuple(of["only"][1])) if of.get("only") else None
        space[option] = Choice(tuple(of["values"]), only=only) if "values" in of else Range(**{**of, "only": only})
    return space
