"""From the records of trials to what a study says: intervals per configuration, the choice, the files."""

import json
import math
import platform
import shutil
import statistics as middle
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.evaluation.statistics import (
    ACCURACY_MARGIN,
    Interval,
    front_probability,
    mean_intervals,
    minimum_detectable_difference,
    paired_differences,
    verdict,
)
from eqssl.files import write_atomically
from eqssl.study.definition import CONTROLS, WITHOUT_ENCODER, Study
from eqssl.study.record import TrialRecord, write_json

# Metrics that say nothing about an encoder.
COSTS = {"epoch", "lr", "train_s", "evaluate_s", "parameters", "sees_theta"}
LOWER_IS_BETTER = ("geodesic_deg", "/error", "loss", "ssl", "recon")
PACKAGES = ("eqssl", "torch", "torchvision", "timm", "ray", "optuna", "mlflow", "pyarrow", "numpy")


class Table:
    """Figures of configurations under paired seeds.

    Args:
        records: of trials; those that failed are left out.
        controls: configuration -> those it is compared with; default: base and split-0.
    """

    def __init__(self, records: Iterable[TrialRecord], controls: Mapping[str, Sequence[str]] | None = None):
        self._controls = controls or {}
        self._records = [record for record in records if record.status == "COMPLETE"]
        self.seeds = sorted({record.seed for record in self._records})

    def values(self, figure: str) -> tuple[list[str], np.ndarray]:
        """Return the trained configurations with a figure and its values (C, S), NaN where a trial is missing."""
        having = [r for r in self._records if figure in r.metrics and r.configuration not in WITHOUT_ENCODER]
        names = list(dict.fromkeys(record.configuration for record in having))
        values = np.full((len(names), len(self.seeds)), np.nan)
        for record in having:
            values[names.index(record.configuration), self.seeds.index(record.seed)] = record.metrics[figure]
        return names, values

    def means(self, figure: str) -> dict[str, Interval]:
        """Return configuration -> mean and its 95 % bounds; NaN for bounds without seeds to judge by."""
        unsure = {name: Interval(mean, math.nan, math.nan) for name, mean in self._estimates(figure).items()}
        names, values = self.values(figure)
        try:
            return unsure | dict(zip(names, mean_intervals(values), strict=True))
        except ValueError:
            return unsure

    def _estimates(self, figure: str) -> dict[str, float]:
        fixed = {r.configuration: r.metrics for r in self._records if r.configuration in WITHOUT_ENCODER}
        names, values = self.values(figure)
        trained = {name: float(np.nanmean(row)) for name, row in zip(names, values, strict=True)}
        return {name: metrics[figure] for name, metrics in fixed.items() if figure in metrics} | trained

    def controls(self, name: str) -> Sequence[str]:
        """Return what a configuration is compared with."""
        return self._controls.get(name, CONTROLS)

    def better_control(self, figure: str, name: str = "") -> str | None:
        """Return the control of a configuration, or of all that have none of their own, with the better mean."""
        return self._better(figure, name, self._estimates(figure))

    def _better(self, figure: str, name: str, means: dict[str, float]) -> str | None:
        known = (control for control in self.controls(name) if control in means)
        return max(known, key=lambda control: _sign(figure) * means[control], default=None)

    def best(self, figure: str) -> str | None:
        """Return the trained configuration with the best mean."""
        names, values = self.values(figure)
        return names[int(np.argmax(_sign(figure) * np.nanmean(values, axis=1)))] if names else None

    def gains(self, figure: str) -> dict[str, Interval]:
        """Return configuration -> paired difference from its better control; empty where there are too few seeds."""
        means = self._estimates(figure)
        return self._differences(figure, lambda name: self._better(figure, name, means))

    def behind(self, figure: str) -> dict[str, Interval]:
        """Return configuration -> paired difference from the best one; empty where there are too few seeds."""
        best = self.best(figure)
        return self._differences(figure, lambda name: best)

    def _differences(self, figure: str, other: Callable[[str], str | None]) -> dict[str, Interval]:
        names, values = self.values(figure)
        compared = {name: other(name) for name in names}
        compared = {name: control for name, control in compared.items() if control not in (None, name)}
        pairs = [(names.index(name), names.index(control)) for name, control in compared.items()]
        try:
            return dict(zip(compared, paired_differences(values, pairs), strict=True))
        except ValueError:
            return {}

    def verdicts(self, accuracy: str) -> dict[str, bool]:
        """Return configuration with a split -> whether it is more equivariant than its controls and loses nothing.

        Empty where the evaluation was quick or the seeds are too few.
        """
        figures = {"r2_mean": "r2_mean", "equivariance": "equivariance", "accuracy": accuracy}
        evaluated, having_parts = self.values("invariance")[0], self.values("inv/invariance")[0]
        every_control = {control for name in evaluated for control in self.controls(name)}
        found = {}
        for name in having_parts:
            controls = [control for control in self.controls(name) if control in evaluated and control != name]
            if not controls or name in every_control:
                continue
            others = [row for row in having_parts if row not in (*controls, name)]  # they tell about the noise
            rows = [*controls, name, *others]
            tables = {key: self._rows(rows, figure) for key, figure in figures.items()}
            # Without a split all features are the method's.
            tables["inv/invariance"] = self._rows(rows, "inv/invariance", "invariance")
            try:
                found[name] = verdict(tables, len(controls), range(len(controls))).holds
            except ValueError:
                return {}
        return found

    def _rows(self, names: list[str], *figures: str) -> np.ndarray:
        """Return float (C, S) of the first of the figures that each configuration has."""
        known = {figure: dict(zip(*self.values(figure), strict=True)) for figure in reversed(figures)}
        found = {name: row for rows in known.values() for name, row in rows.items()}
        return np.stack([found[name] for name in names])

    def front_probability(self, objectives: Mapping[str, str]) -> dict[str, float]:
        """Return trained configuration -> probability that none of the others is better in all objectives at once.

        Empty where there are too few seeds.

        Args:
            objectives: figure -> maximize or minimize.
        """
        having = [self.values(figure)[0] for figure in objectives]
        names = [name for name in having[0] if all(name in others for others in having)]
        signs = [1 if direction == "maximize" else -1 for direction in objectives.values()]
        try:
            columns = [sign * self._rows(names, figure) for sign, figure in zip(signs, objectives, strict=True)]
            return dict(zip(names, front_probability(np.stack(columns, axis=2)).tolist(), strict=True))
        except ValueError:
            return {}

    def detectable(self, figure: str) -> float | None:
        """Return the minimum detectable difference; None where there are too few seeds."""
        try:
            return minimum_detectable_difference(self.values(figure)[1])
        except ValueError:
            return None


def _sign(figure: str) -> int:
    """Return 1 for a figure that is better when larger, else -1."""
    return -1 if figure.endswith(LOWER_IS_BETTER) else 1


RULE = (
    "of the searched configurations with the most seeds that did not collapse and whose {accuracy} is at most {margin} "
    "below the better control's, the one with the best {goal}; if there is none, the one with the best {accuracy}; "
    "of its seeds the first"
)


def choose(study: Study, records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial whose encoder is kept, by `RULE`; None where no searched configuration qualifies."""
    records = list(records)
    searched = {r.configuration for r in records if r.number is not None and r.status == "COMPLETE"}
    searched -= {r.configuration for r in records if r.collapsed}
    seeds = Counter(r.configuration for r in records)
    searched = {name for name in searched if seeds[name] == max(map(seeds.__getitem__, searched))}
    table = Table(records, study.controls)
    signs = {name: 1 if direction == "maximize" else -1 for name, direction in study.objectives.items()}
    means = {figure: {n: sign * i.estimate for n, i in table.means(figure).items()} for figure, sign in signs.items()}
    figures = [figure for figure in study.objectives if searched & means[figure].keys()]
    if not figures:
        return None
    guard, goal = figures[0], figures[-1]
    control = table.better_control(guard)
    floor = means[guard][control] - ACCURACY_MARGIN if control else -math.inf
    good = [name for name in searched if means[guard].get(name, -math.inf) >= floor and name in means[goal]]
    key = goal if good else guard
    name = max(sorted(good or searched & means[guard].keys()), key=means[key].__getitem__)
    complete = (r for r in records if r.configuration == name and r.status == "COMPLETE")
    return min(complete, key=lambda record: record.seed)


def summarise(study: Study, records: list[TrialRecord], about: dict[str, Any]) -> dict[str, Any]:
    """Return all that summary.json holds.

    Args:
        study: whose objectives decide the choice.
        records: of all finished trials.
        about: what the caller knows beside: options, data, wall seconds.
    """
    places = {name: place for place, name in enumerate(study.rows)}
    records = sorted(records, key=lambda r: (places.get(r.configuration, len(places)), r.number or 0, r.seed))
    table = Table(records, study.controls)
    figures = sorted({figure for record in records for figure in record.metrics} - COSTS)
    means = {figure: table.means(figure) for figure in figures}
    gains = {figure: table.gains(figure) for figure in figures}
    behind = {figure: table.behind(figure) for figure in figures}
    chosen = choose(study, records)
    on_front = table.front_probability(study.objectives)
    verdicts = table.verdicts(next(iter(study.objectives)))
    accuracy, goal = next(iter(study.objectives)), list(study.objectives)[-1]
    warm = [record.overhead_s for record in records if record.warm]
    return {
        "study": study.name,
        "question": study.question,
        **about,
        "space": {option: asdict(values) for option, values in study.space.items()},
        "objectives": dict(study.objectives),
        "chosen": chosen and {name: getattr(chosen, name) for name in ("configuration", "params", "trial_id")},
        "rule": RULE.format(accuracy=accuracy, goal=goal, margin=ACCURACY_MARGIN),
        "overhead_s": {"median_warm": middle.median(warm) if warm else None, "warm_trials": len(warm)},
        "minimum_detectable_difference": {figure: table.detectable(figure) for figure in figures},
        "better_control": {figure: table.better_control(figure) for figure in figures},
        "best": {figure: table.best(figure) for figure in figures},
        "configurations": [
            {
                "name": name,
                "number": record.number,
                "params": record.params,
                "seeds": [r.seed for r in records if r.configuration == name and r.status == "COMPLETE"],
                "metrics": {figure: _bounds(means[figure][name]) for figure in figures if name in means[figure]},
                "front_probability": on_front.get(name),
                "equivariant_without_loss": verdicts.get(name),
                "gains": {figure: _bounds(gains[figure][name]) for figure in figures if name in gains[figure]},
                "behind": {figure: _bounds(behind[figure][name]) for figure in figures if name in behind[figure]},
            }
            for name, record in {record.configuration: record for record in records}.items()
        ],
        "trials": [asdict(record) for record in records],
        "environment": environment(),
    }


def _bounds(interval: Interval) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(interval).items()}


def environment() -> dict[str, str]:
    """Return the versions that the results rest on, and the commit where the package is a checkout."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            from eqssl import __version__  # a checkout that is not installed

            versions[name] = __version__
    versions |= {"python": platform.python_version(), "platform": platform.platform()}
    return versions | ({"commit": found} if (found := commit(Path(__file__).parent)) else {})


def commit(folder: Path) -> str | None:
    """Return the commit of a folder under version control, with `-dirty` after it where a known file was changed."""
    git = ["git", "-C", str(folder)]
    try:
        if not subprocess.run([*git, "ls-files"], capture_output=True, check=True).stdout:
            return None  # a package installed inside another project's checkout
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(described, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_parquet(records: list[TrialRecord], path: Path) -> None:
    """Write one row per trial and metric, a column for every option that any trial set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    options = sorted({option for record in records for option in record.params})
    rows = [
        {
            "trial_id": record.trial_id,
            "configuration": record.configuration,
            "number": record.number,
            "seed": record.seed,
            "status": record.status,
            "epochs": record.epochs,
            "wall_s": record.wall_s,
            **{option: _plain(record.params.get(option)) for option in options},
            "metric": metric,
            "value": value,
        }
        for record in records
        for metric, value in record.metrics.items()
    ]
    write_atomically(path, lambda temporary: pq.write_table(pa.Table.from_pylist(rows), temporary))


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def keep_encoder(trial_folder: Path, target: Path) -> None:
    """Copy a trial's encoder to the study's `best_encoder`, in one rename."""
    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(trial_folder / "encoder", temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def write_results(summary: dict[str, Any], records: list[TrialRecord], folder: Path) -> list[Path]:
    """Write summary.json, trials.parquet, the best encoder and the report; return the files worth tracking.

    Args:
        summary: from `summarise`.
        records: of all finished trials.
        folder: of the study.
    """
    from eqssl.report.report import write_report

    write_json(folder / "summary.json", summary)
    write_parquet(records, folder / "trials.parquet")
    if summary["chosen"]:
        keep_encoder(folder / "trials" / summary["chosen"]["trial_id"], folder / "best_encoder")
    return [folder / "summary.json", folder / "trials.parquet", *write_report(summary, folder)]
