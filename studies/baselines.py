"""Does reconstruction help every method, and how does it compare with the equivariant ones?

    python studies/baselines.py            every method that needs no tokens, on a small ResNet and rendered solids
    python studies/baselines.py --encoder.name test_vit --encoder.output-stride 4            iBOT too, on a small ViT
    python studies/baselines.py --method.name byol,dino                      some of them, and those that build on these

Every method alone is tried at four learning rates, half to four times `--train.lr`, compared on val with two seeds; at
its best rate, every candidate that builds on it is tried with three values of one hyperparameter. The best settings are
trained again with fresh seeds and reported on test, with all metrics: every method alone; for as long as it takes with
reconstruction; with only the split; and with reconstruction by the default attention, by auto-encoding and by
concatenation at the same weight.
"""

import sys
from dataclasses import replace as change

from eqssl.config import BASE_METHODS, EvaluateConfig, RunConfig, TrainConfig, replace
from eqssl.study import Candidate, Study, StudyOptions, choice, main, on_test, run_study, tune
from eqssl.study.comparison import check_options, methods_for, methods_given, rows_on_test
from eqssl.study.options import settle

ALL = tuple(BASE_METHODS)
PLAIN, SPLIT = {"encoder.equi_fraction": 0.0, "recon.weight": 0.0}, {"recon.weight": 0.0}
RATES, WEIGHTS, SHARES = (0.5, 1.0, 2.0, 4.0), (1.0, 5.0, 25.0), (0.3, 1.0, 3.0)
STUDY = Study(
    name="baselines",
    question=__doc__.partition("\n")[0],
    space={"method.name": choice(*ALL)},
    configs=0,
    seeds=5,
    base=RunConfig(train=TrainConfig(epochs=8, batch_size=64, lr=1.6e-2), evaluate=EvaluateConfig(level="full")),
)


def candidates_of(paired: bool) -> dict[str, Candidate]:
    """Return the candidates that build on the methods: their reconstruction and the peers."""
    found = {f"{m} + reconstruction": Candidate({"method.name": m}, "recon.weight", WEIGHTS, m) for m in ALL}
    if not paired:  # no image lies between two views of an object
        between = {"method.name": "vicreg", "recon.view": "intermediate", "recon.attention": "concat"}
        found["vicreg + intermediate"] = Candidate(between, "recon.weight", WEIGHTS, "vicreg")
    for name, factors in (("sie, all", "all"), ("sie, one", "rotation" if paired else "angle_deg")):
        sie = SPLIT | {"method.name": "sie", "method.options.factors": factors}
        found[name] = Candidate(sie, "method.options.equi_coeff", tuple(4.5 * share for share in SHARES), "vicreg")
    peers = {m: PLAIN | {"method.name": m} for m in ("augself", "equimod")}
    return found | {m: Candidate(peers[m], "method.options.weight", SHARES, "simclr") for m in peers}


def run(study: Study, options: StudyOptions, **shown) -> dict:
    """Tune every candidate on val, then train the best settings again and report them on test."""
    study, options = settle(study, options)
    if given := methods_given(study, options, ALL):
        options = change(options, run=replace(options.run, {"method.name": given[0]}))
    check_options(study, options, own=["recon.weight", "evaluate.split"])
    methods, train = methods_for(options.run.encoder, given or ALL, refuse=bool(given)), options.run.train
    rates = tuple(share * train.lr for share in RATES)
    by_rate = {m: Candidate(PLAIN | {"method.name": m}, "train.lr", rates) for m in methods}
    study = change(study, space={})  # the rows vary the method
    first, second = (change(study, name=f"{study.name}_{stage}") for stage in ("alone", "tuning"))
    alone, data = tune(first, options, by_rate, {}, later=second.name, **shown)
    options = change(options, yes=True)  # asked once, before the first stage
    candidates = candidates_of(data["paired"])
    tuned, _ = tune(second, options, candidates, alone, later=study.name, **shown)
    rows, controls = rows_on_test(alone, candidates, tuned, train.epochs)
    return run_study(change(study, rows=rows, controls=controls), on_test(options, options.seeds), **shown)


if __name__ == "__main__":
    sys.exit(main(STUDY, run=run))
