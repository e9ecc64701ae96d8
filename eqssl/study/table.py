"""The statistics of a study's trials: what is estimated for every configuration, and how they compare."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as change

import numpy as np

from eqssl.evaluation.statistics import (
    Interval,
    front_probability,
    mean_intervals,
    minimum_detectable_difference,
    paired_differences,
    verdict,
)
from eqssl.study.definition import CONTROLS, NEED_LABELS, REFERENCES, WITHOUT_ENCODER
from eqssl.study.record import TrialRecord

# Without a split all features are the method's, and stand where others have their invariant part.
INVARIANCE, OF_ALL = "inv/invariance", "invariance"
LOWER_IS_BETTER = ("geodesic_deg", "/error", "loss", "ssl", "recon")


class Table:
    """Figures of configurations under paired seeds.

    Args:
        records: of trials; those that failed are left out, and what collapsed is never the best nor on the front.
        controls: configuration -> those it is compared with; default: base and split-0.
        objectives: figure -> maximize or minimize; of any other its name tells.
    """

    def __init__(
        self,
        records: Iterable[TrialRecord],
        controls: Mapping[str, Sequence[str]] | None = None,
        objectives: Mapping[str, str] | None = None,
    ):
        self._controls, self._objectives = controls or {}, objectives or {}
        complete = [record for record in records if record.status == "COMPLETE"]
        self._collapsed = {record.configuration for record in complete if record.collapsed}
        self._with_parts = {record.configuration for record in complete if INVARIANCE in record.metrics}
        self._records = [_with_invariance(record) for record in complete]
        self.seeds = sorted({record.seed for record in self._records})

    def sign(self, figure: str) -> int:
        """Return 1 for a figure that is better when larger, else -1."""
        guess = "minimize" if figure.endswith(LOWER_IS_BETTER) else "maximize"
        return -1 if self._objectives.get(figure, guess) == "minimize" else 1

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
        return max(known, key=lambda control: self.sign(figure) * means[control], default=None)

    def best(self, figure: str) -> str | None:
        """Return the configuration with the best mean, of those that are no reference."""
        no_winners = {*REFERENCES, *self._collapsed}
        means = {name: mean for name, mean in self._estimates(figure).items() if name not in no_winners}
        return max(means, key=lambda name: self.sign(figure) * means[name], default=None)

    def gains(self, figure: str) -> dict[str, Interval]:
        """Return configuration -> paired difference from its better control; empty where there are too few seeds."""
        means = self._estimates(figure)
        return self._differences(figure, lambda name: self._better(figure, name, means))

    def behind(self, figure: str) -> dict[str, Interval]:
        """Return configuration -> paired difference from the best one, without references and where there are seeds."""
        best = self.best(figure)
        return self._differences(figure, lambda name: None if name in REFERENCES else best)

    def _differences(self, figure: str, other: Callable[[str], str | None]) -> dict[str, Interval]:
        names, values = self.values(figure)
        compared = {name: other(name) for name in names}
        compared = {name: control for name, control in compared.items() if control not in (None, name)}
        pairs = [(names.index(name), names.index(control)) for name, control in compared.items()]
        try:
            return dict(zip(compared, paired_differences(values, pairs), strict=True))
        except ValueError:
            return {}

    def verdicts(self) -> dict[str, bool]:
        """Return configuration with a split -> whether it is more equivariant than its controls and loses nothing.

        Accuracy is the one that is an objective, else kNN. Empty where the evaluation was quick, the seeds are too few
        or the data have no labels.
        """
        accuracy = next((figure for figure in self._objectives if figure in NEED_LABELS), NEED_LABELS[0])
        figures = {"r2_mean": "r2_mean", "equivariance": "equivariance", "accuracy": accuracy, INVARIANCE: INVARIANCE}
        having_all = set.intersection(*(set(self.values(figure)[0]) for figure in figures.values()))
        evaluated = [name for name in self.values(INVARIANCE)[0] if name in having_all]
        having_parts = [name for name in evaluated if name in self._with_parts]
        every_control = {control for name in evaluated for control in self.controls(name)}
        found = {}
        for name in having_parts:
            controls = [control for control in self.controls(name) if control in evaluated and control != name]
            if not controls or name in every_control:
                continue
            others = [row for row in having_parts if row not in (*controls, name)]  # they tell about the noise
            rows = [*controls, name, *others]
            tables = {key: self._rows(rows, figure) for key, figure in figures.items()}
            try:
                found[name] = verdict(tables, len(controls), range(len(controls))).holds
            except ValueError:
                return {}
        return found

    def _rows(self, names: list[str], figure: str) -> np.ndarray:
        """Return a figure of these configurations, float (C, S)."""
        found = dict(zip(*self.values(figure), strict=True))
        return np.stack([found[name] for name in names])

    def front_probability(self, objectives: Mapping[str, str]) -> dict[str, float]:
        """Return trained configuration -> probability that none of the others is better in all objectives at once.

        What collapsed is none of them. Empty where there are too few seeds.

        Args:
            objectives: figure -> maximize or minimize.
        """
        having = [self.values(figure)[0] for figure in objectives]
        names = [n for n in having[0] if n not in self._collapsed and all(n in others for others in having)]
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


def _with_invariance(record: TrialRecord) -> TrialRecord:
    figures = {INVARIANCE: record.metrics[OF_ALL]} if OF_ALL in record.metrics else {}
    return change(record, metrics=figures | record.metrics)
