"""The statistics of a study's trials: an estimate of every metric of every configuration, and how they compare."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eqssl import stats
from eqssl.config import AUTOENCODE
from eqssl.metrics import METRICS, is_accuracy, metric_of, part_of
from eqssl.stats import Estimate
from eqssl.study.contributions import Loader, SamplingVariances
from eqssl.study.controls import autoencoding
from eqssl.study.definition import ATTENTION, CONTROLS, ONE_SEED, REFERENCES
from eqssl.study.store.records import TrialRecord
from eqssl.study.summary import Interval, Verdict

INVARIANCE, OF_ALL = "inv/invariance", "invariance"
USE_OTHER = "recon/use_other"
UNTRAINED = ("pixels", "random")  # rows that a trained method has to beat


def interval(estimate: Estimate, level: float = stats.LEVEL) -> Interval:
    """Return an estimate with its two-sided bounds."""
    return Interval(estimate.value, *estimate.bounds(level))


def _with_invariance(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a trial's metrics, or contributions to them, with all features in place of a missing invariant part.

    Without a split, all features belong to the method, as the invariant part does otherwise.
    """
    return {INVARIANCE: metrics[OF_ALL], **metrics} if OF_ALL in metrics else metrics


class Table:
    """Metrics of configurations under paired seeds.

    Args:
        records: records of trials; those that are not complete are left out.
        controls: configuration -> its controls, its base method first; default: base, no-recon and autoencode.
        objectives: metric -> maximize or minimize; the direction of other metrics is that of the registry.
        load: loads the contributions of held-out images to a trial's metrics; None: intervals do not account for the
            sampling of held-out images.

    Attributes:
        records: as given.
        params: configuration -> the options that it sets.
        trials: configuration with a complete trial -> seed -> the trial's id.
        names: configurations with a complete trial.
        failed: configurations without one.
        collapsed: configurations with a collapsed trial; they are never the best, nor on the front.
    """

    def __init__(
        self,
        records: Iterable[TrialRecord],
        controls: Mapping[str, Sequence[str]] | None = None,
        objectives: Mapping[str, str] | None = None,
        load: Loader | None = None,
    ):
        self._own_controls, self._objectives = controls or {}, objectives or {}
        self._load: Loader = load or (lambda trial_id: {})
        self.records = list(records)
        complete = [record for record in self.records if record.status == "COMPLETE"]
        self.params = {record.configuration: record.params for record in self.records}
        self.trials: dict[str, dict[int, str]] = {}
        for record in complete:
            self.trials.setdefault(record.configuration, {})[record.seed] = record.trial_id
        self.names = list(self.trials)
        self.failed = self.params.keys() - self.trials.keys()
        self.collapsed = {record.configuration for record in complete if record.collapsed}
        self._with_parts = {record.configuration for record in complete if INVARIANCE in record.metrics}
        index = pd.MultiIndex.from_arrays([[r.configuration for r in complete], [r.seed for r in complete]])
        frame = pd.DataFrame([_with_invariance(record.metrics) for record in complete], index, dtype=float)
        frame = frame[~frame.index.duplicated(keep="last")]
        means = frame.groupby(level=0, sort=False).mean()
        self._means = {str(m): {str(n): float(v) for n, v in of.dropna().items()} for m, of in means.items()}
        self._trained = [name for name in self.names if name not in ONE_SEED]
        self._values = frame.unstack().reindex(self._trained)  # columns: metric and seed

    # Metrics

    def sign(self, metric: str) -> int:
        """Return 1 for a metric that is better when larger, else -1."""
        if metric in self._objectives:
            return 1 if self._objectives[metric] == "maximize" else -1
        return metric_of(metric).sign

    def is_main(self, metric: str) -> bool:
        """Return whether the main table of the study has a column for a metric."""
        return metric in self._objectives or (metric in METRICS and METRICS[metric].in_main_table)

    def is_compared(self, metric: str) -> bool:
        """Return whether differences in a metric are tested: objectives, and registered ones of all features."""
        return metric in self._objectives or (metric_of(metric).is_compared and part_of(metric) is None)

    @cached_property
    def accuracy(self) -> str:
        """The objective that is an accuracy of all features, else that of the linear classifier."""
        return next(filter(is_accuracy, self._objectives), "linear")

    def values(self, metric: str) -> pd.DataFrame:
        """Return a metric's values, configurations with an encoder that have it x seeds, NaN if missing."""
        return pd.DataFrame(self._values[metric]).dropna(how="all") if metric in self._values else pd.DataFrame()

    def point_estimates(self, metric: str) -> dict[str, float]:
        """Return configuration -> mean over seeds."""
        return self._means.get(metric, {})

    def means(self, metric: str) -> dict[str, Interval]:
        """Return configuration -> mean and its 95 % bounds, NaN without enough seeds.

        The use of the other view by auto-encoding is always 0, so it has no bounds.
        """
        intervals = {name: Interval(mean) for name, mean in self.point_estimates(metric).items()}
        estimates = self._mean_estimates(metric)
        if metric == USE_OTHER:
            estimates = {name: of for name, of in estimates.items() if not self.is_autoencoding(name)}
        return intervals | {name: interval(of) for name, of in estimates.items()}

    def _mean_estimates(self, metric: str, others: dict[str, str] | None = None) -> dict[str, Estimate]:
        """Return configuration with an encoder -> mean; others: rows without an encoder that some are compared with."""
        values = self.values(metric)
        sampling = self._sampled(metric, dict.fromkeys(values.index) | (others or {}))
        return dict(zip(values.index, stats.mean_estimates(values, sampling), strict=True))

    # Controls

    def is_autoencoding(self, name: str) -> bool:
        """Return whether a configuration reconstructs its target from only the target's own tokens."""
        by_name = name == AUTOENCODE or name.endswith(f", {AUTOENCODE}")
        return by_name or self.params.get(name, {}).get(ATTENTION) == AUTOENCODE

    def controls(self, name: str) -> list[str]:
        """Return the controls of a configuration, its base method first.

        A control itself is compared only with its base; nothing that auto-encodes is compared with another that does.
        """
        found = self._own_controls.get(name, CONTROLS[:1] if name in CONTROLS else CONTROLS)
        auto = self.is_autoencoding(name)
        return [other for other in found if other != name and not (auto and self.is_autoencoding(other))]

    @cached_property
    def _no_candidates(self) -> set[str]:
        """References, and controls of another configuration."""
        own = {control for name, controls in self._own_controls.items() for control in controls if control != name}
        return {*REFERENCES, *CONTROLS, *own}

    def autoencode_control(self, name: str) -> str | None:
        """Return the control that differs from a configuration only in the attention; None if there is none.

        With another weight or other augmentations, their effect would be credited to cross-attention.
        """
        if name in self._no_candidates:
            return None
        wanted = autoencoding(self.params[name])
        found = [other for other in self.controls(name) if other in self.trials and self.is_autoencoding(other)]
        return next((other for other in found if autoencoding(self.params[other]) == wanted), None)

    def best_control(self, metric: str, name: str = "") -> str | None:
        """Return the control of a configuration, or of all that have none of their own, with the best mean."""
        return self._best(metric, self.controls(name))

    def best(self, metric: str) -> str | None:
        """Return the configuration with the best mean, excluding references."""
        excluded = {*REFERENCES, *self.collapsed}
        return self._best(metric, [name for name in self.names if name not in excluded])

    def _best(self, metric: str, names: Iterable[str]) -> str | None:
        means, sign = self.point_estimates(metric), self.sign(metric)
        return max((name for name in names if name in means), key=lambda name: sign * means[name], default=None)

    # Differences

    def differences(self, metric: str, others: Mapping[str, str | None]) -> dict[str, Estimate]:
        """Return configuration -> paired difference from another one.

        Args:
            metric: its name.
            others: configuration -> the one it is compared with. A pair without common seeds, or with too few of
                them, is left out.
        """
        values = self.values(metric)
        rows = {name: row for row, name in enumerate(values.index)}
        pairs = {name: other for name, other in others.items() if name in rows and other in rows and name != other}
        places = [(rows[name], rows[other]) for name, other in pairs.items() if other is not None]
        found = stats.difference_estimates(values, places, self._sampled(metric, pairs))
        return {name: of for name, of in zip(pairs, found, strict=True) if math.isfinite(of.error)}

    def gains(self, metric: str) -> dict[str, Estimate]:
        """Return configuration -> paired difference from its best control."""
        return self.differences(metric, {name: self.best_control(metric, name) for name in self.names})

    def behind(self, metric: str) -> dict[str, Estimate]:
        """Return configuration -> paired difference from the best one, excluding references."""
        best = self.best(metric)
        return self.differences(metric, {name: best for name in self.names if name not in REFERENCES})

    def beyond_autoencode(self, metric: str) -> dict[str, Estimate]:
        """Return configuration -> paired difference from its auto-encoding control: the gain from the other view."""
        return self.differences(metric, {name: self.autoencode_control(name) for name in self.names})

    def untrained(self) -> dict[str, list[str]]:
        """Return base method -> rows of `UNTRAINED` that its accuracy does not exceed significantly, or with a single
        seed at all."""
        controls = [self.controls(name) for name in self.names if name not in REFERENCES]
        bases = dict.fromkeys(names[0] for names in controls if names)
        found = {base: [row for row in UNTRAINED if self._lead(base, row) <= 0] for base in bases}
        return {base: rows for base, rows in found.items() if rows}

    def _lead(self, base: str, row: str) -> float:
        """Return the lower bound of the difference in accuracy, or the difference where there is no bound."""
        metric, means = self.accuracy, self.point_estimates(self.accuracy)
        difference = self.differences(metric, {base: row}).get(base)
        if row in ONE_SEED and row in means and base in self.values(metric).index:
            mean = self._mean_estimates(metric, {base: row})[base]
            difference = replace(mean, value=mean.value - means[row])
        low = difference.bounds()[0] if difference else math.nan
        return low if math.isfinite(low) else means.get(base, math.nan) - means.get(row, math.nan)

    # The held-out images as a sample

    @property
    def images_sampled(self) -> bool:
        """Whether intervals account for the sampling of held-out images, since their contributions are known."""
        return len(self._sampling.known) > 0

    @cached_property
    def _sampling(self) -> SamplingVariances:
        bests = {metric: self.best(metric) for metric in self._means if self.is_compared(metric)}
        uses = Counter(control for name in self._trained for control in self.controls(name))
        # In memory: the best by each metric, controls of several configurations, the candidate and its own control.
        kept = len({*bests.values()}) + sum(count > 1 for count in uses.values()) + 5
        variances = SamplingVariances(lambda trial_id: _with_invariance(self._load(trial_id)), self.trials, kept)
        # Configuration by configuration, so that the file of a trial is read once, not once per metric.
        for name in self._trained:
            for metric in variances.metrics(name):
                others = {None, self.best_control(metric, name), bests.get(metric), self.autoencode_control(name)}
                if metric in self._objectives:
                    others.add(self._trained[0])  # see `_own_sampling`
                for other in others:
                    variances.of(metric, name, other)
        return variances

    def _sampled(self, metric: str, others: Mapping[str, str | None]) -> NDArray | None:
        """Return the variance, due to the sample of held-out images, of each mean (other: None) or difference, (P,)."""
        if metric not in self._sampling.known:
            return None
        return np.array([self._sampling.of(metric, name, other) for name, other in others.items()])

    # Answers

    def verdicts(self, gains: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Verdict]:
        """Return configuration with a split -> whether it is more equivariant than its controls without loss.

        Controls, references and configurations with a failed control are not judged. Empty if the evaluation was quick,
        the seeds are too few or the data have no labels.

        Args:
            gains: metric -> configuration -> paired difference from its best control.
        """
        metrics = {metric: metric for metric in stats.MARGINS} | {"accuracy": self.accuracy, "invariance": INVARIANCE}
        found = {}
        for name in self.names:
            differences = {key: gains[metric][name] for key, metric in metrics.items() if name in gains.get(metric, {})}
            judged = name in self._with_parts and name not in self._no_candidates
            if judged and len(differences) == len(metrics) and self.failed.isdisjoint(self.controls(name)):
                answer, power = stats.verdict(differences)
                found[name] = Verdict(answer, power if math.isfinite(power) else None)
        return found

    def front_probability(self) -> dict[str, float]:
        """Return configuration -> probability that no other one is better in all objectives at once.

        Rows without an encoder and collapsed configurations are left out. Empty if there are too few seeds.
        """
        tables = [self.sign(metric) * self.values(metric) for metric in self._objectives]
        joined = pd.concat(tables, axis=1, join="inner").drop(index=list(self.collapsed), errors="ignore")
        if joined.empty:
            return {}
        values = joined.to_numpy().reshape(len(joined), len(tables), -1).swapaxes(1, 2)
        sampling = np.stack([self._own_sampling(metric, list(joined.index)) for metric in self._objectives], axis=1)
        found = stats.front_probability(values, sampling).tolist()
        return {name: share for name, share in zip(joined.index, found, strict=True) if math.isfinite(share)}

    def _own_sampling(self, metric: str, names: Sequence[str]) -> NDArray:
        """Return the part of the variance due to the sample of held-out images that configurations do not share, (C,).

        All are scored on the same images, which are easy or hard for all of them: a configuration's own part is half of
        the variance of its difference from the first one.
        """
        variances = self._sampled(metric, dict.fromkeys(names[1:], names[0])) if len(names) > 1 else None
        if variances is None:
            return np.zeros(len(names))
        halves = np.nan_to_num(variances) / 2
        return np.array([np.median(halves), *halves])
