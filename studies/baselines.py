"""Does reconstruction help every method, and how does it stand beside the equivariant ones?

    python studies/baselines.py            every method that needs no tokens, on a small ResNet and rendered solids
    python studies/baselines.py --encoder.name test_vit --encoder.output-stride 4            iBOT too, on a small ViT
    python studies/baselines.py --method.name byol,dino                         some of them, and what builds on these

Every method alone has three learning rates, half, once and twice `--train.lr`, compared on val with one seed
(`baselines_alone`); at its best rate, every entrant that builds on it has three settings of one knob
(`baselines_tuning`). What is best is trained again with fresh seeds and reported on test (`baselines`), every method
also alone for as long as it takes with reconstruction.
"""

import sys
from dataclasses import replace as change
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from eqssl.config import BASE_METHODS, RunConfig, TrainConfig, replace
from eqssl.study import Entrant, Study, StudyOptions, choice, main, on_test, relative_times, run_study, tune
from eqssl.study.comparison import check_options, rows_on_test

ALL = tuple(BASE_METHODS)
PLAIN, SPLIT = {"encoder.equi_fraction": 0.0, "recon.weight": 0.0}, {"recon.weight": 0.0}
RATES, WEIGHTS, SHARES = (0.5, 1.0, 2.0), (1.0, 5.0, 25.0), (0.3, 1.0, 3.0)
STUDY = Study(
    name="baselines",
    question=__doc__.partition("\n")[0],
    space={"method.name": choice(*ALL)},
    configurations=0,
    seeds=5,
    base=RunConfig(train=TrainConfig(epochs=8, batch_size=64, lr=1.6e-2)),
)


def methods_of(study: Study, options: StudyOptions) -> list[str]:
    """Return the methods that are compared: those that were given, or all that the encoder can take."""
    given, encoder = [name.strip() for name in options.run.method.name.split(",")], options.run.encoder
    asked = ALL if "method.name" in study.space else given
    if wrong := [name for name in asked if name not in ALL]:
        raise ValueError(f"--method.name has {wrong[0]}; allowed: {', '.join(ALL)}, without it all of them")
    from eqssl.methods import find_method
    from eqssl.models.backbones import masks_patches  # imports torch, which the other studies do not wait for

    plain = [m for m in ALL if find_method(m).draw_masks is None]
    hiding = [m for m in asked if m not in plain]
    if not hiding or masks_patches(encoder):
        return list(asked)
    if asked is given:
        raise ValueError(
            f"--method.name has {hiding[0]}, which hides patches; allowed with --encoder.name {encoder.name}, which "
            f"has none to hide: {', '.join(plain)}"
        )
    return plain


def entrants(paired: bool) -> dict[str, Entrant]:
    """Return what builds on the methods: their reconstruction and the peers."""
    found = {f"{m} + reconstruction": Entrant({"method.name": m}, "recon.weight", WEIGHTS, m) for m in ALL}
    if not paired:  # no image lies between two views of an object
        stops = {"method.name": "vicreg", "recon.view": "intermediate", "recon.attention": "concat"}
        found["vicreg + intermediate"] = Entrant(stops, "recon.weight", WEIGHTS, "vicreg")
    for name, factors in (("sie, all", "all"), ("sie, one", "rotation" if paired else "angle_deg")):
        sie = SPLIT | {"method.name": "sie", "method.options.factors": factors}
        found[name] = Entrant(sie, "method.options.equi_coeff", tuple(4.5 * share for share in SHARES), "vicreg")
    for name in ("augself", "equimod"):
        found[name] = Entrant(PLAIN | {"method.name": name}, "method.options.weight", SHARES, "simclr")
    return found


def run(study: Study, options: StudyOptions, **shown) -> dict:
    """Tune every entrant on val, then train what was best again and report it on test."""
    check_options(study, options, own=["recon.weight", "evaluate.split"])
    methods, given = methods_of(study, options), "method.name" not in study.space
    study = change(study, space={})  # the rows vary the method
    options = change(options, run=replace(options.run, {"method.name": methods[0]} if given else {}))
    rates = tuple(share * options.run.train.lr for share in RATES)
    alone_at = {m: Entrant(PLAIN | {"method.name": m}, "train.lr", rates) for m in methods}
    first, second = f"{study.name}_alone", f"{study.name}_tuning"
    alone, data = tune(change(study, name=first), options, alone_at, {}, later=second, **shown)
    options = change(options, yes=True)  # asked once, before the first stage
    who = entrants(data["paired"])
    tuned, _ = tune(change(study, name=second), options, who, alone, later=study.name, **shown)
    both = {m: tuned[f"{m} + reconstruction"] for m in alone if f"{m} + reconstruction" in tuned}
    pairs = {m: (with_it.overrides, alone[m].overrides) for m, with_it in both.items()}
    longer = relative_times(pairs, options, f"{study.name}_relative_times.json")
    rows, controls = rows_on_test(alone, who, tuned, longer, options.run.train.epochs)
    return run_study(change(study, rows=rows, controls=controls), on_test(options, options.seeds), **shown)


if __name__ == "__main__":
    sys.exit(main(STUDY, run=run))
