"""Does reconstruction help every method, and how does it stand beside the equivariant ones?

    python studies/baselines.py            every method that needs no tokens, on a small ResNet and rendered solids
    python studies/baselines.py --encoder.name test_vit --encoder.output-stride 4            iBOT too, on a small ViT
    python studies/baselines.py --method.name byol                              one of them, and what builds on it

Every method alone has three learning rates, compared on val with one seed (`baselines_alone`); at its best rate, every
entrant that builds on it has three settings of one knob (`baselines_tuning`). What is best is trained again with fresh
seeds and reported on test (`baselines`); each method also alone for as long as it takes with reconstruction.
"""

import math
import re
import sys
from dataclasses import replace as change
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from eqssl.config import RunConfig, TrainConfig
from eqssl.study import REFERENCE_ROWS, Entrant, Study, StudyOptions, main, on_test, relative_times, run_study, tune
from eqssl.study.space import choice

ALL = ("simclr", "vicreg", "barlow_twins", "byol", "simsiam", "moco_v3", "dino", "ibot")
PLAIN, SPLIT = {"encoder.split": 0.0, "recon.weight": 0.0}, {"recon.weight": 0.0}
RATES, WEIGHTS, SHARES = (2e-3, 4e-3, 8e-3), (1.0, 5.0, 25.0), (0.3, 1.0, 3.0)
STUDY = Study(
    name="baselines",
    question=__doc__.partition("\n")[0],
    space={"method.name": choice(*ALL)},
    configurations=0,
    seeds=5,
    base=RunConfig(train=TrainConfig(epochs=3, batch_size=64, lr=4e-3)),
)


def methods_of(study: Study, options: StudyOptions) -> list[str]:
    """Return the methods that are compared: the one that was given, or all that the encoder can take."""
    given = options.run.method.name
    if "method.name" in study.space:
        plain_vit = re.search(r"(^|_)(vit\d?|deit3?)(_|$)", options.run.encoder.name)  # no davit, no maxvit
        return [m for m in ALL if m != "ibot" or plain_vit]
    if given not in ALL:
        raise ValueError(f"--method.name is {given}; allowed: {', '.join(ALL)}, without it all of them")
    return [given]


def entrants(paired: bool) -> dict[str, Entrant]:
    """Return what builds on the methods: their reconstruction and the peers."""
    found = {f"{m} + reconstruction": Entrant({"method.name": m}, "recon.weight", WEIGHTS, m) for m in ALL}
    if not paired:  # no image lies between two views of an object
        stops = {"method.name": "vicreg", "recon.view": "intermediate", "recon.roles": "concat"}
        found["vicreg + intermediate"] = Entrant(stops, "recon.weight", WEIGHTS, "vicreg")
    for name, factors in (("sie, all", "all"), ("sie, one", "rotation" if paired else "angle_deg")):
        sie = SPLIT | {"method.name": "sie", "method.options.factors": factors}
        found[name] = Entrant(sie, "method.options.equi_coeff", tuple(4.5 * share for share in SHARES), "vicreg")
    for name in ("augself", "equimod"):
        found[name] = Entrant(PLAIN | {"method.name": name}, "method.options.weight", SHARES, "simclr")
    return found


def rows_on_test(alone: dict, tuned: dict, on: dict[str, str], longer: dict[str, float], epochs: int) -> tuple:
    """Return the rows of the final table, and what each is compared with."""
    rows = {name: REFERENCE_ROWS[name] for name in ("constant", "pixels", "random", "supervised", "recon-only")}
    for m, setting in alone.items():
        rows[m] = setting.overrides
        rows[f"{m}, equal time"] = setting.overrides | {"train.epochs": math.ceil(epochs * longer.get(m, 1.0))}
        rows[f"{m}, split-0"] = {o: v for o, v in setting.overrides.items() if o != "encoder.split"}
    rows |= {entrant: setting.overrides for entrant, setting in tuned.items()}
    builds_on = on | {row: row.partition(",")[0] for row in rows if row.partition(",")[0] in alone}
    return rows, {row: (m, f"{m}, split-0") for row, m in builds_on.items()}


def run(study: Study, options: StudyOptions, **shown) -> dict:
    """Tune every entrant on val, then train what was best again and report it on test."""
    methods = methods_of(study, options)
    study = change(study, space={})  # the rows vary the method
    rates = {m: Entrant(PLAIN | {"method.name": m}, "train.lr", RATES) for m in methods}
    alone, data = tune(change(study, name="baselines_alone"), options, rates, {}, **shown)
    who = entrants(data["paired"])
    tuned, _ = tune(change(study, name="baselines_tuning"), options, who, alone, **shown)
    on = {name: who[name].on for name in tuned}
    both = {m: tuned[f"{m} + reconstruction"] for m in alone if f"{m} + reconstruction" in tuned}
    pairs = {m: (with_it.overrides, alone[m].overrides) for m, with_it in both.items()}
    longer = relative_times(pairs, options, "baselines_relative_times.json")
    rows, controls = rows_on_test(alone, tuned, on, longer, options.run.train.epochs)
    return run_study(change(study, rows=rows, controls=controls), on_test(options, options.seeds), **shown)


if __name__ == "__main__":
    sys.exit(main(STUDY, run=run))
