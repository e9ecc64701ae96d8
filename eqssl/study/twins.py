"""Auto-encoding controls: the same configuration, its target reconstructed from its own tokens alone."""

from collections.abc import Iterator
from dataclasses import replace as change
from typing import Any

from eqssl.config import get
from eqssl.study.definition import ATTENTION, AUTOENCODE, CONTROLS, LEARNING, Study
from eqssl.study.options import StudyOptions
from eqssl.study.search.race import stages_of, trials_of
from eqssl.study.search.space import Configuration

WEIGHT, QUERY_GRADIENT = "recon.weight", "recon.query_gradient"


def with_twins(study: Study, options: StudyOptions) -> Study:
    """Return the study with an auto-encoding control for every searched configuration, if it asks for them.

    What a configuration gains beyond its twin is cross-attention's. Configurations that differ in the attention alone
    share one twin; one that auto-encodes itself, or reconstructs nothing, has none. A sampler that learns from results,
    and a race, leave the configurations or their seeds open: there the row autoencode stays the control of all.

    Args:
        study: with its space; unchanged unless `study.twins`.
        options: trials, seeds and sampler of the search.
    """
    if not (study.twins and study.space) or options.race or options.sampler in LEARNING or options.sampler == "random":
        return study
    rows = {name: overrides for name, overrides in study.rows.items() if name != AUTOENCODE}
    plain = tuple(name for name in CONTROLS if name != AUTOENCODE)
    searched = sorted(_searched(study, options), key=_order)  # a design shuffles its points
    names = {_key(c.overrides): c.name for c in searched if c.overrides.get(ATTENTION) == AUTOENCODE}
    controls: dict[str, tuple[str, ...]] = {}
    for configuration in searched:
        controls[configuration.name] = plain
        if _reconstructs_from_another_view(configuration.overrides, options):
            overrides = configuration.overrides | {ATTENTION: AUTOENCODE}
            overrides.pop(QUERY_GRADIENT, None)  # without meaning there: configurations that differ in it share a twin
            twin = names.setdefault(_key(overrides), _name(configuration))
            controls[configuration.name] = (*plain, twin)
            if twin not in {c.name for c in searched}:
                rows[twin] = overrides
                controls[twin] = plain
    return change(study, rows=rows, controls=dict(study.controls) | controls)


def _searched(study: Study, options: StudyOptions) -> Iterator[Configuration]:
    """Yield the configurations of the design that will be trained."""
    from eqssl.study.search.schedule import Suggestions

    trials = options.trials or trials_of(study.configurations, stages_of(options.seeds, race=False))
    suggestions = Suggestions(
        study, trials=trials, seeds=options.seeds, sampler=options.sampler, seed=options.run.train.seed
    )
    points = suggestions.search.points or []
    for number, point in enumerate(points[: suggestions.design - suggestions.left_out]):
        yield Configuration.suggested(point, number)


def _reconstructs_from_another_view(overrides: dict[str, Any], options: StudyOptions) -> bool:
    attention = overrides.get(ATTENTION, get(options.run, ATTENTION))
    return attention != AUTOENCODE and overrides.get(WEIGHT, get(options.run, WEIGHT)) > 0


def _order(configuration: Configuration) -> list[tuple[str, Any]]:
    return [(str(type(value)), value) for value in configuration.overrides.values()]


def _key(overrides: dict[str, Any]) -> str:
    return repr(sorted((option, value) for option, value in overrides.items() if option != QUERY_GRADIENT))


def _name(configuration: Configuration) -> str:
    """Return the twin's name: without the attention, which is not the configuration's."""
    if configuration.name == f"no. {configuration.number}":
        return f"{configuration.name}, {AUTOENCODE}"
    rest = {o: value for o, value in configuration.overrides.items() if o not in (ATTENTION, QUERY_GRADIENT)}
    return f"{Configuration.suggested(rest, configuration.number).name}, {AUTOENCODE}" if rest else AUTOENCODE
