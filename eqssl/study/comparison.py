"""A comparison of methods: one hyperparameter of every candidate is tuned on val, then the best settings are tested."""

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as change
from typing import Any

from eqssl.config import BASE_METHODS, EncoderConfig, get, replace
from eqssl.files import as_path, parse_or_set_aside, read, write_json
from eqssl.renames import names_fields
from eqssl.study.command import run_study
from eqssl.study.controls import autoencoding
from eqssl.study.definition import ATTENTION, REFERENCE_ROWS, REFERENCES, Study
from eqssl.study.execution import preflight
from eqssl.study.options import StudyOptions, default_options, settle
from eqssl.study.search.space import Params

logger = logging.getLogger(__name__)

TUNING_SEEDS = 2
SEARCH_OPTIONS = ("configs", "sampler", "seed_schedule", "pruner", "warm_start", "final_test", "objectives")


@names_fields
@dataclass(frozen=True)
class Candidate:
    """A method with one hyperparameter to tune.

    Args:
        overrides: of all its settings.
        hyperparameter: the dotted option that is tuned.
        values: of the hyperparameter, one setting each.
        builds_on: the candidate of an earlier stage whose learning rate it takes and whose accuracy it must keep.
    """

    overrides: Mapping[str, Any]
    hyperparameter: str
    values: tuple[float, ...]
    builds_on: str | None = None


@dataclass(frozen=True)
class Setting:
    """The best setting of a candidate.

    Args:
        overrides: of its row.
        accuracy: of the linear probe on val, the mean over seeds; 0 without labels.
        epoch_s: seconds of an epoch, the least of the candidate's settings: others shared the machine with other work.
        accurate: whether the accuracy keeps that of `builds_on`, so that R2 decided; None if it builds on nothing.
        at_edge: whether the hyperparameter has its smallest or largest value, so that a better one may lie beyond.
    """

    overrides: Params
    accuracy: float
    epoch_s: float
    accurate: bool | None = None
    at_edge: bool = False


def check_options(study: Study, options: StudyOptions, own: Iterable[str] = ()) -> None:
    """Refuse options that cannot work, and those without meaning in a study that searches no space.

    Args:
        study, options: as of `run_study`.
        own: dotted options that the study sets itself.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    default = default_options(study)
    found = {name: (getattr(options, name), getattr(default, name), "searches no space") for name in SEARCH_OPTIONS}
    found |= {name: (get(options.run, name), get(study.base, name), "sets it") for name in own}
    for name, (value, allowed, why) in found.items():
        if value not in (allowed, None):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {value}; allowed in {study.name}, which {why}: {allowed}")
    # The last study has fresh seeds, like a final test.
    preflight.check_options(change(study, space={}), change(options, final_test=options.seeds))


def methods_given(study: Study, options: StudyOptions, allowed: Sequence[str]) -> list[str]:
    """Return the methods of `--method.name`, separated by commas; empty if the option is not given.

    Args:
        study, options: as returned by `settle`: an option that is given is no longer in the space.
        allowed: names of methods.

    Raises:
        ValueError: for another name.
    """
    if "method.name" in study.space:
        return []
    given = [name.strip() for name in options.run.method.name.split(",")]
    if wrong := [name for name in given if name not in allowed]:
        raise ValueError(f"--method.name has {wrong[0]}; allowed: {', '.join(allowed)}; all of them if it is not given")
    return given


def methods_for(encoder: EncoderConfig, methods: Sequence[str], *, refuse: bool) -> list[str]:
    """Return the methods that work with an encoder: those that mask patches need one that has patches.

    Args:
        encoder: of the study.
        methods: names.
        refuse: raise for a method that does not work with it, rather than leave it out.

    Raises:
        ValueError: naming such a method.
    """
    from eqssl.methods import find_method
    from eqssl.models.backbones import masks_patches  # imports torch

    if masks_patches(encoder):
        return list(methods)
    plain = [name for name in BASE_METHODS if find_method(name).draw_masks is None]
    unfit = [name for name in methods if name not in plain]
    if unfit and refuse:
        without = f"allowed with --encoder.name {encoder.name}, which has none to mask: {', '.join(plain)}"
        raise ValueError(f"--method.name has {unfit[0]}, which masks patches; {without}")
    return [name for name in methods if name in plain]


def tune(
    study: Study,
    options: StudyOptions,
    candidates: Mapping[str, Candidate],
    earlier: Mapping[str, Setting],
    *,
    later: str,
    **shown: Any,
) -> tuple[dict[str, Setting], dict[str, Any]]:
    """Train all settings of every candidate with two seeds; return the best ones on val and a description of the data.

    A setting with a trial that failed or collapsed is not chosen. The choice is written to OUTPUT/STUDY/choices.json.
    Once the later study has begun, the choice is fixed, even if a trial repeated after a resume would change it.

    Args:
        study: its name and base are used.
        options: how it is run.
        candidates: by name; those whose settings all failed or collapsed are left out of the result, with a warning.
        earlier: settings that candidates build on; those that build on a missing one are left out.
        later: name of the study that uses the choice.
        shown: further arguments of `run_study`.

    Raises:
        SystemExit: 0 after a dry run.
    """
    study, options = settle(study, options)
    candidates = {name: c for name, c in candidates.items() if c.builds_on is None or c.builds_on in earlier}
    rows_of = {name: _settings(name, candidate, earlier) for name, candidate in candidates.items()}
    rows = {row: overrides for of_candidate in rows_of.values() for row, overrides in of_candidate.items()}
    on_val = replace(options.run, {"evaluate.split": "val", "evaluate.level": "quick"})
    tuning = change(options, run=on_val, seeds=TUNING_SEEDS, configs=None)
    summary = run_study(change(study, rows=rows), tuning, **shown)
    if options.dry_run:  # later stages depend on the results of this one
        raise SystemExit(0)
    output = as_path(options.output)
    path = output / study.name / "choices.json"
    best = None
    if read(output / later / "study.json"):
        best = parse_or_set_aside(path, read(path), lambda values: {n: Setting(**of) for n, of in values.items()})
    if best is None:
        metrics = mean_metrics(summary["trials"])
        best = {}
        for name, candidate in candidates.items():
            base = None if candidate.builds_on is None else earlier[candidate.builds_on]
            if sound := {row: metrics[row] for row in rows_of[name] if row in metrics}:
                best[name] = _best_setting(candidate, rows_of[name], sound, base)
        write_json(path, {name: asdict(setting) for name, setting in best.items()})
    for name, candidate in candidates.items():
        if name in best:
            if best[name].at_edge:
                option, value = candidate.hyperparameter, best[name].overrides[candidate.hyperparameter]
                logger.warning(
                    "%s: --%s %g is at the edge of the values tried; a better one may lie beyond", name, option, value
                )
            continue
        ends = [
            f"{trial['configuration']}: {trial['error'] or 'collapsed: ' + ', '.join(trial['collapsed'])}"
            for trial in summary["trials"]
            if trial["configuration"] in rows_of[name] and (trial["error"] or trial["collapsed"])
        ]
        logger.warning("%s is left out: %s", name, "; ".join(ends) or f"{later} was begun without")
    return best, summary["data"]


def _settings(name: str, candidate: Candidate, earlier: Mapping[str, Setting]) -> dict[str, Params]:
    """Return row -> overrides of every setting of a candidate."""
    shared = dict(candidate.overrides)
    if candidate.builds_on is not None:
        shared = {"train.lr": earlier[candidate.builds_on].overrides["train.lr"]} | shared
    option = candidate.hyperparameter
    values = set(candidate.values)
    digits = next(n for n in range(6, 18) if len({f"{value:.{n}g}" for value in values}) == len(values))
    return {f"{name}, {option} {value:.{digits}g}": shared | {option: value} for value in candidate.values}


def _best_setting(
    candidate: Candidate, rows: Mapping[str, Params], metrics: Mapping[str, Mapping[str, float]], base: Setting | None
) -> Setting:
    from eqssl.stats import ACCURACY_MARGIN  # imports scipy
    from eqssl.study.results import best_by_rule

    floor = math.inf if base is None else base.accuracy - ACCURACY_MARGIN
    # Without labels R2 decides alone, and without known factors accuracy does.
    values = {row: (of_row.get("linear", 0.0), of_row.get("r2_mean", 0.0)) for row, of_row in metrics.items()}
    *_, row = best_by_rule(values, floor)
    accuracy = values[row][0]
    epoch_s = min(of_row["train_s"] for of_row in metrics.values())
    at_edge = rows[row][candidate.hyperparameter] in (min(candidate.values), max(candidate.values))
    return Setting(rows[row], accuracy, epoch_s, None if base is None else accuracy >= floor, at_edge)


def mean_metrics(trials: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return configuration -> mean metrics of a summary's trials, without configurations that failed or collapsed."""
    seeds: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        seeds.setdefault(trial["configuration"], []).append(trial)
    return {
        name: {metric: statistics.fmean(t["metrics"][metric] for t in of_name) for metric in of_name[0]["metrics"]}
        for name, of_name in seeds.items()
        if all(trial["status"] == "COMPLETE" and not trial["collapsed"] for trial in of_name)
    }


def rows_on_test(
    alone: Mapping[str, Setting], candidates: Mapping[str, Candidate], tuned: Mapping[str, Setting], epochs: int
) -> tuple[dict[str, Params | None], dict[str, tuple[str, ...]]]:
    """Return the rows of the final table, and the controls of each.

    Every method has a row of its own; one of equal time, trained for as long as the method with reconstruction takes,
    unless that takes no longer; one of the split without reconstruction; and, where its reconstruction was tuned, one
    each of auto-encoding and of concatenation at the same weight.

    Args:
        alone: method -> its setting.
        candidates: that build on the methods; METHOD + reconstruction is the reconstruction of a method.
        tuned: candidate -> its setting.
        epochs: of every other row.
    """
    rows = {name: row for name, row in REFERENCE_ROWS.items() if name in REFERENCES}
    controls: dict[str | None, list[str]] = {}  # of a method
    for method, setting in alone.items():
        reconstruction, longer = tuned.get(f"{method} + reconstruction"), 1.0
        if reconstruction and setting.epoch_s:  # 0 of an untrained encoder
            longer = reconstruction.epoch_s / setting.epoch_s
        rows[method] = setting.overrides
        if longer > 1:
            rows[f"{method}, equal time"] = setting.overrides | {"train.epochs": math.ceil(epochs * longer)}
        rows[f"{method}, no-recon"] = {o: v for o, v in setting.overrides.items() if o != "encoder.equi_fraction"}
        controls[method] = [method, f"{method}, no-recon"]
        if reconstruction:
            rows[f"{method}, autoencode"] = autoencoding(reconstruction.overrides)
            rows[f"{method}, concat"] = reconstruction.overrides | {ATTENTION: "concat"}
            controls[method].append(f"{method}, autoencode")
    rows |= {name: setting.overrides for name, setting in tuned.items()}
    builds_on = {name: candidates[name].builds_on for name in tuned}
    builds_on |= {row: row.partition(",")[0] for row in rows if row.partition(",")[0] in alone}
    return rows, {row: tuple(controls[method]) for row, method in builds_on.items()}
