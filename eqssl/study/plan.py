"""The plan of a study, for --dry-run: its trials and an estimate of their duration, without Ray."""

from collections.abc import Iterator

from eqssl.files import as_path
from eqssl.study.controls import with_matched_controls
from eqssl.study.definition import DESIGNS, Study, seed_stages
from eqssl.study.execution.preflight import check_options, duration
from eqssl.study.options import StudyOptions, opening
from eqssl.study.search.space import Trial, short
from eqssl.study.store.records import known_study, read_records


def plan(study: Study, options: StudyOptions) -> Iterator[str]:
    """Yield the lines of a study's plan; nothing is trained or written.

    Args:
        study, options: consistent with each other, see `settle`.

    Raises:
        ValueError: for options that cannot work or, without --resume, a folder that contains a study.
    """
    from eqssl.study.search.schedule import Suggestions  # imports optuna

    check_options(study, options)
    study = with_matched_controls(study, options)
    folder = as_path(options.output) / study.name
    records = read_records(folder) if known_study(folder, resume=options.resume) else []
    suggestions = Suggestions(study, options)
    suggestions.restore((record.trial.configuration for record in records), {r.trial_id: r for r in records})
    left = suggestions.total - suggestions.ended
    yield opening(study, options)
    yield f"{left} trials to come in {folder}" + f", {suggestions.ended} have ended" * bool(records)
    is_sampled = bool(study.space) and options.sampler not in DESIGNS
    trials: dict[str, list[Trial]] = {}  # known before the first result, by configuration
    for trial in iter(suggestions.next, None):
        if trial.configuration.number is not None and is_sampled:
            break
        trials.setdefault(trial.configuration.name, []).append(trial)
    for first, *others in trials.values():
        configuration, seeds = first.configuration, ", ".join(str(trial.seed) for trial in (first, *others))
        params = configuration.overrides
        values = "; no encoder" if params is None else "".join(f"; {o} {short(value)}" for o, value in params.items())
        yield f"  {configuration.name}: seed{'s' * bool(others)} {seeds}{values}"
    if is_sampled:
        options_varied = ", ".join(study.space)
        yield f"  {study.count_configs(options.configs)} configurations, sampled by {options.sampler}: {options_varied}"
    stages = seed_stages(options.seeds, options.seed_schedule)
    if len(stages) > 1:
        yield f"  seeds of a configuration: {', of the best third '.join(map(str, stages))}"
    if options.final_test:
        yield f"then a final test of the choice, its controls and references with {options.final_test} seeds"
    epochs, trained = suggestions.work() - left, [record for record in records if record.epochs]
    if not trained:
        yield f"{epochs} epochs; how long one takes is measured when the study starts, before its first trial"
        return
    epoch_s = sum(record.wall_s for record in trained) / sum(record.epochs for record in trained)
    yield (
        f"{epochs} epochs x {epoch_s:.3g} s, evaluations included, as in the {len(trained)} trials that have ended = "
        f"{duration(epochs * epoch_s)}, divided by the trials at a time"
    )
