"""The statistics of a study's trials: an estimate of every metric of every configuration, and how they compare."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as change
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqssl.config import CROSS_ATTENTION_OPTIONS
from eqssl.stats import (
    Estimate,
    Interval,
    Verdict,
    benjamini_hochberg,
    difference_estimates,
    front_probability,
    mean_estimates,
    minimum_detectable_difference,
    verdict,
)
from eqssl.study.contributions import Loader, SamplingVariances, Units
from eqssl.study.definition import (
    ATTENTION,
    AUTOENCODE,
    CONTROLS,
    NEED_LABELS,
    REFERENCES,
    WITHOUT_ENCODER,
)
from eqssl.study.store.records import TrialRecord

# Without a split all features are the method's, and stand where others have their invariant part.
INVARIANCE, OF_ALL = "inv/invariance", "invariance"
LOWER_IS_BETTER = ("geodesic_deg", "pose_deg", "/error", "loss", "ssl", "recon")
BOUNDS = ("pixels", "random")  # rows that a trained method has to beat


class Table:
    """Metrics of configurations under paired seeds.

    Args:
        records: of trials; those that failed are left out, and what collapsed is never the best nor on the front.
        controls: configuration -> those it is compared with, its base method first; default: base, no-recon and
            autoencode.
        objectives: metric -> maximize or minimize; of any other its name tells.
        load: what each held-out image adds to a trial's metrics, as `SamplingVariances` has it; None: intervals leave
            out that the held-out images are a sample.

    Attributes:
        failed: configurations of which no trial came to its end.
        searched_collapsed: whether a searched configuration came to its end and collapsed.
    """

    def __init__(
        self,
        records: Iterable[TrialRecord],
        controls: Mapping[str, Sequence[str]] | None = None,
        objectives: Mapping[str, str] | None = None,
        load: Loader | None = None,
    ):
        self._own_controls, self._objectives = controls or {}, objectives or {}
        records = list(records)
        complete = [record for record in records if record.status == "COMPLETE"]
        self.failed = {r.configuration for r in records} - {r.configuration for r in complete}
        self._collapsed = {record.configuration for record in complete if record.collapsed}
        self.searched_collapsed = any(record.collapsed and record.number is not None for record in complete)
        self._params = {record.configuration: record.params for record in complete}
        self._with_parts = {record.configuration for record in complete if INVARIANCE in record.metrics}
        self._autoencoding = {r.configuration for r in complete if r.params.get(ATTENTION) == AUTOENCODE}
        self._records = [_with_invariance(record) for record in complete]
        self.names = list(dict.fromkeys(record.configuration for record in complete))
        self.seeds = sorted({record.seed for record in self._records})
        self._load = load
        self._values: dict[str, tuple[list[str], NDArray]] = {}
        self._means: dict[str, dict[str, float]] = {}

    # Values

    def sign(self, metric: str) -> int:
        """Return 1 for a metric that is better when larger, else -1."""
        guess = "minimize" if metric.endswith(LOWER_IS_BETTER) else "maximize"
        return -1 if self._objectives.get(metric, guess) == "minimize" else 1

    def values(self, metric: str) -> tuple[list[str], NDArray]:
        """Return the configurations with an encoder that have a metric, and its values (C, S), NaN where missing."""
        if metric not in self._values:
            having = [r for r in self._records if metric in r.metrics and r.configuration not in WITHOUT_ENCODER]
            rows = {name: row for row, name in enumerate(dict.fromkeys(record.configuration for record in having))}
            columns = {seed: column for column, seed in enumerate(self.seeds)}
            values = np.full((len(rows), len(columns)), np.nan)
            for record in having:
                values[rows[record.configuration], columns[record.seed]] = record.metrics[metric]
            self._values[metric] = list(rows), values
        return self._values[metric]

    def point_estimates(self, metric: str) -> dict[str, float]:
        """Return configuration -> mean over seeds."""
        if metric not in self._means:
            fixed = {r.configuration: r.metrics for r in self._records if r.configuration in WITHOUT_ENCODER}
            names, values = self.values(metric)
            trained = {name: float(np.nanmean(row)) for name, row in zip(names, values, strict=True)}
            self._means[metric] = {name: of[metric] for name, of in fixed.items() if metric in of} | trained
        return self._means[metric]

    def means(self, metric: str) -> dict[str, Interval]:
        """Return configuration -> mean and its 95 % bounds; NaN for bounds without seeds to judge by."""
        unsure = {name: Interval(mean, math.nan, math.nan) for name, mean in self.point_estimates(metric).items()}
        names, values = self.values(metric)
        try:
            found = mean_estimates(values, self._sampled(metric, [(name, None) for name in names]))
        except ValueError:
            return unsure
        return unsure | {name: estimate.interval() for name, estimate in zip(names, found, strict=True)}

    # What a configuration is compared with

    def is_autoencoding(self, name: str) -> bool:
        """Return whether a configuration reconstructs its target from the target's own tokens alone."""
        return name == AUTOENCODE or name.endswith(f", {AUTOENCODE}") or name in self._autoencoding

    def controls(self, name: str) -> Sequence[str]:
        """Return what a configuration is compared with, its base method first.

        A control itself is compared with its base alone, and one that auto-encodes with no other that does.
        """
        if name in self._own_controls:
            found = self._own_controls[name]
        else:
            found = CONTROLS[:1] if name in CONTROLS else CONTROLS
        auto = self.is_autoencoding(name)
        return tuple(other for other in found if other != name and not (auto and self.is_autoencoding(other)))

    def every_control(self) -> set[str]:
        """Return all that some configuration is compared with."""
        own = {control for row, controls in self._own_controls.items() for control in controls if control != row}
        return own | set(CONTROLS)

    def autoencode_control(self, name: str) -> str | None:
        """Return the control that differs from a configuration in the attention alone; None where there is none.

        One of another weight or other augmentations would credit the difference to cross-attention.
        """
        if name in REFERENCES or name in self.every_control():
            return None
        twins = (c for c in self.controls(name) if self.is_autoencoding(c) and c in self.names)
        return next((c for c in twins if self._but_attention(c) == self._but_attention(name)), None)

    def _but_attention(self, name: str) -> dict[str, Any]:
        return {option: value for option, value in self._params[name].items() if option not in CROSS_ATTENTION_OPTIONS}

    def best_control(self, metric: str, name: str = "") -> str | None:
        """Return the control of a configuration, or of all that have none of their own, with the best mean."""
        means = self.point_estimates(metric)
        known = (control for control in self.controls(name) if control in means)
        return max(known, key=lambda control: self.sign(metric) * means[control], default=None)

    def best(self, metric: str) -> str | None:
        """Return the configuration with the best mean, of those that are no reference."""
        no_winners = {*REFERENCES, *self._collapsed}
        means = {name: mean for name, mean in self.point_estimates(metric).items() if name not in no_winners}
        return max(means, key=lambda name: self.sign(metric) * means[name], default=None)

    # Differences

    def gains(self, metric: str) -> dict[str, Estimate]:
        """Return configuration -> paired difference from its best control; empty where there are too few seeds."""
        names = self.values(metric)[0]
        return self.differences(metric, {name: self.best_control(metric, name) for name in names})

    def behind(self, metric: str) -> dict[str, Estimate]:
        """Return configuration -> paired difference from the best one, without references and where there are seeds."""
        best = self.best(metric)
        return self.differences(metric, {name: best for name in self.values(metric)[0] if name not in REFERENCES})

    def beyond_autoencode(self, metric: str) -> dict[str, Estimate]:
        """Return configuration -> paired difference from its auto-encoding control: what the other view adds."""
        return self.differences(metric, {name: self.autoencode_control(name) for name in self.values(metric)[0]})

    def difference(self, metric: str, name: str, other: str | None) -> Estimate | None:
        """Return one paired difference; None where either is missing or there are too few seeds."""
        return self.differences(metric, {name: other}).get(name)

    def differences(self, metric: str, others: Mapping[str, str | None]) -> dict[str, Estimate]:
        """Return configuration -> paired difference from another; those without common seeds are left out.

        Args:
            metric: its name.
            others: configuration -> what it is compared with.
        """
        names, values = self.values(metric)
        rows = {name: row for row, name in enumerate(names)}
        present = np.isfinite(values)
        pairs = {
            name: other
            for name, other in others.items()
            if name in rows and other in rows and other != name and (present[rows[name]] & present[rows[other]]).any()
        }
        try:
            of_rows = [(rows[name], rows[other]) for name, other in pairs.items()]
            found = difference_estimates(values, of_rows, self._sampled(metric, list(pairs.items())))
        except ValueError:
            return {}
        return {name: of for name, of in zip(pairs, found, strict=True) if math.isfinite(of.error)}

    def beats(self, metric: str, name: str, other: str) -> bool | None:
        """Return whether a configuration is better than another beyond the noise; None where that cannot be judged.

        Args:
            metric: its name.
            name: a configuration with an encoder.
            other: any, one without an encoder too.
        """
        if other not in WITHOUT_ENCODER:
            estimate = self.difference(metric, name, other)
        else:
            names, values = self.values(metric)
            constant = self.point_estimates(metric).get(other)
            if name not in names or constant is None:
                return None
            try:
                all_rows = mean_estimates(values - constant, self._sampled(metric, [(n, other) for n in names]))
            except ValueError:
                return None
            estimate = all_rows[names.index(name)]
        if estimate is None:
            return None
        interval = estimate.interval()
        return (interval.low if self.sign(metric) > 0 else -interval.high) > 0

    def untrained(self, metric: str) -> dict[str, list[str]]:
        """Return base method -> which of pixels and random it does not beat beyond the noise.

        Args:
            metric: of the accuracy.
        """
        bases = dict.fromkeys(
            controls[0] for name in self.names if name not in REFERENCES and (controls := self.controls(name))
        )
        found = {
            base: [row for row in BOUNDS if row in self.names and self.beats(metric, base, row) is False]
            for base in bases
        }
        return {base: rows for base, rows in found.items() if rows}

    # The held-out images as a sample

    @property
    def images_sampled(self) -> bool:
        """Whether intervals heed that the held-out images are a sample, since their contributions are known."""
        return self._sampling is not None and any(self._sampling.of(name) for name in self.names)

    @cached_property
    def _sampling(self) -> SamplingVariances | None:
        if self._load is None:
            return None
        trials: dict[str, dict[int, str]] = {}
        for record in self._records:
            trials.setdefault(record.configuration, {})[record.seed] = record.trial_id
        variances = SamplingVariances(self._contributions, trials)
        trained = [name for name in self.names if name not in WITHOUT_ENCODER]
        measured = next((found for name in trained if (found := variances.of(name))), {})
        bests, every_control = [self.best(metric) for metric in sorted(measured)], self.every_control()
        # Configuration by configuration, so that the file of a trial is read once and not once a metric.
        for name in trained if measured else ():
            others = [*self.controls(name), *bests, *(BOUNDS if name in every_control else ())]
            for other in dict.fromkeys([None, *others]):
                if other != name:
                    variances.of(name, other)
        return variances

    def _contributions(self, trial_id: str) -> Mapping[str, Units]:
        found = self._load(trial_id) if self._load else {}
        return {INVARIANCE: found[OF_ALL], **found} if OF_ALL in found else found

    def _sampled(self, metric: str, pairs: Sequence[tuple[str, str | None]]) -> NDArray | None:
        """Return the variance by the sample of held-out images of every pair, (P,), 0 where it is not known.

        None where none is known.
        """
        if self._sampling is None:
            return None
        found = np.array([self._sampling.of(name, other).get(metric, 0.0) for name, other in pairs])
        return found if found.any() else None

    # Answers

    def accuracy(self) -> str:
        """Return the metric that stands for the accuracy: the objective that is one, else the linear classifier."""
        return next((metric for metric in self._objectives if metric in NEED_LABELS), "linear")

    def verdicts(self) -> dict[str, Verdict]:
        """Return configuration with a split -> whether it is more equivariant than its controls and loses nothing.

        Controls and references are not judged, nor what lacks a control since that failed. Empty where the evaluation
        was quick, the seeds are too few or the data have no labels.
        """
        metrics = {"r2_mean": "r2_mean", "equivariance": "equivariance"}
        metrics |= {"accuracy": self.accuracy(), "invariance": INVARIANCE}
        judged = [name for name in self.names if name in self._with_parts]
        judged = [name for name in judged if name not in REFERENCES and name not in self.every_control()]
        judged = [name for name in judged if self.failed.isdisjoint(self.controls(name))]
        gains = {key: self.gains(metric) for key, metric in metrics.items()}
        return {
            name: verdict({key: of[name] for key, of in gains.items()})
            for name in judged
            if all(name in of for of in gains.values())
        }

    def front_probability(self, objectives: Mapping[str, str]) -> dict[str, float]:
        """Return trained configuration -> probability that none of the others is better in all objectives at once.

        What collapsed is none of them. Empty where there are too few seeds.

        Args:
            objectives: metric -> maximize or minimize.
        """
        having = [self.values(metric)[0] for metric in objectives]
        names = [n for n in having[0] if n not in self._collapsed and all(n in others for others in having)]
        columns, sampled = [], []
        for metric, direction in objectives.items():
            rows = dict(zip(*self.values(metric), strict=True))
            sign = 1 if direction == "maximize" else -1
            columns.append(sign * np.array([rows[name] for name in names]).reshape(len(names), len(self.seeds)))
            sampled.append(self._own_sampling(metric, names))
        none = np.zeros(len(names))
        sampling = np.stack([none if of is None else of for of in sampled], axis=1)
        try:
            found = front_probability(np.stack(columns, axis=2), sampling if sampling.any() else None)
        except ValueError:
            return {}
        return dict(zip(names, np.asarray(found).tolist(), strict=True))

    def _own_sampling(self, metric: str, names: Sequence[str]) -> NDArray | None:
        """Return the part of the variance by the sample of held-out images that configurations do not share, (C,).

        All are scored on the same images, which are easy or hard for all of them: half of the variance of a difference
        from the first configuration is what one has for itself.
        """
        if len(names) < 2:
            return None
        first, *others = names
        halves = self._sampled(metric, [(name, first) for name in others])
        return None if halves is None else np.array([np.median(halves), *halves]) / 2

    def detectable(self, metric: str) -> float | None:
        """Return the minimum detectable difference of a typical comparison; None where there are too few seeds.

        Typical is the gain with the median standard error, of those that are no reference.
        """
        gains = [gain for name, gain in self.gains(metric).items() if name not in REFERENCES]
        gains.sort(key=lambda gain: gain.error)
        return minimum_detectable_difference(gains[len(gains) // 2]) if gains else None


def significant(estimates: Mapping[tuple[str, str], Estimate]) -> set[tuple[str, str]]:
    """Return the keys whose difference from 0 survives Benjamini-Hochberg at 5 % among all that are given."""
    if not estimates:
        return set()
    kept = benjamini_hochberg([estimate.p_value() for estimate in estimates.values()])
    return {key for key, survives in zip(estimates, kept, strict=True) if survives}


def _with_invariance(record: TrialRecord) -> TrialRecord:
    metrics = {INVARIANCE: record.metrics[OF_ALL]} if OF_ALL in record.metrics else {}
    return change(record, metrics=metrics | record.metrics)
