"""Matched controls: rows that share a configuration's options except for the reconstruction, or its attention."""

from dataclasses import replace as change

from eqssl.config import AUTOENCODE, CROSS_ATTENTION_OPTIONS, RunConfig, replace
from eqssl.study.definition import ATTENTION, CONTROLS, DESIGNS, PRETRAINED, Study
from eqssl.study.options import StudyOptions
from eqssl.study.search.space import Configuration, Params, exact

PLAIN = tuple(row for row in CONTROLS if row != AUTOENCODE)
# Rows of a final test, in addition to the choice and its own controls.
FINAL_ROWS = ("constant", "pixels", "random", PRETRAINED, *PLAIN)


def with_matched_controls(study: Study, options: StudyOptions) -> Study:
    """Return the study with an auto-encoding control for every searched configuration, if the study asks for them.

    The gain of a configuration over this control is due to cross-attention. Configurations that differ only in the
    attention share one control; a configuration that itself auto-encodes, or reconstructs nothing, has none. With
    samplers other than designs, or with seed halving, the configurations or their seeds are not known in advance: the
    row autoencode then remains the control of all.

    Args:
        study: the study with its space; returned unchanged unless `study.matched_controls`.
        options: configs, seeds and sampler of the search.
    """
    open_ended = options.sampler not in DESIGNS or options.seed_schedule != "fixed"
    if not study.matched_controls or not study.space or open_ended:
        return study
    from eqssl.study.search.schedule import Suggestions  # imports optuna

    rows = {name: overrides for name, overrides in study.rows.items() if name != AUTOENCODE}
    controls: dict[str, tuple[str, ...]] = {}
    trained = [trial.configuration for trial in iter(Suggestions(study, options).next, None)]
    searched = {c.name: (c, c.overrides or {}) for c in trained if c.number is not None}.values()
    # Exact options of a control -> its name; a searched configuration that auto-encodes may be one.
    matched = {exact(autoencoding(params)): c.name for c, params in searched if params.get(ATTENTION) == AUTOENCODE}
    for configuration, params in searched:
        controls[configuration.name] = PLAIN
        if not _reads_other_view(replace(options.run, params)):
            continue
        control = autoencoding(params)
        if exact(control) not in matched:
            rest = {option: value for option, value in control.items() if option != ATTENTION}
            taken = {row.removesuffix(f", {AUTOENCODE}") for row in rows}
            short = Configuration.suggested(rest, configuration.number or 0, taken).name
            name = matched[exact(control)] = f"{short}, {AUTOENCODE}" if rest else AUTOENCODE
            rows[name], controls[name] = control, PLAIN
        controls[configuration.name] = (*PLAIN, matched[exact(control)])
    return change(study, rows=rows, controls=dict(study.controls) | controls)


def autoencoding(params: Params) -> Params:
    """Return the same options with auto-encoding in place of the attention."""
    rest = {option: value for option, value in params.items() if option not in CROSS_ATTENTION_OPTIONS}
    return rest | {ATTENTION: AUTOENCODE}


def _reads_other_view(run: RunConfig) -> bool:
    return run.recon.attention != AUTOENCODE and run.recon.weight > 0


def final_test(study: Study, options: StudyOptions, name: str, params: Params) -> Study:
    """Return the study that retrains a choice together with its controls.

    If more than the reconstruction was searched, the choice is compared with controls that share the other options: a
    gain from stronger augmentation is not a gain from reconstruction. The auto-encoding control has all options of the
    choice except the attention.

    Args:
        study, options: those of the search.
        name, params: name and overrides of the choice, which is the last row.
    """
    rows = {row: overrides for row, overrides in study.rows.items() if row in FINAL_ROWS}
    shared = {option: value for option, value in params.items() if not option.startswith("recon.")}
    own: dict[str, Params] = {}
    for row in PLAIN:
        overrides = rows.get(row)
        if overrides is not None and shared.keys() - overrides.keys():
            own[f"{name}, {row}"] = shared | overrides
    compared = tuple(f"{name}, {row}" if f"{name}, {row}" in own else row for row in PLAIN)
    controls = {row: PLAIN[:1] for row in own} | {name: compared}
    asked = study.matched_controls or AUTOENCODE in study.rows
    if asked and _reads_other_view(replace(options.run, params)):
        autoencode = f"{name}, {AUTOENCODE}"
        own[autoencode] = autoencoding(params)
        controls |= {name: (*compared, autoencode), autoencode: compared}
    return change(
        study,
        name=f"{study.name}_test",
        space={},
        configs=0,
        rows=rows | own | {name: params},
        controls={row: of for row, of in study.controls.items() if row in rows} | controls,
        matched_controls=False,
        subject=name,
    )
