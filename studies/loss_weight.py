"""How much reconstruction? Accuracy and retained factors against the weight of the reconstruction loss.

    python studies/loss_weight.py             the default: solids on a turntable, 3 weights x 2 seeds, all controls
    python studies/loss_weight.py --smoke     the same in about a minute, to see that everything works
    python studies/loss_weight.py --help      every option

Every weight has its matched control, plain auto-encoding at the same weight: a gain beyond that is due to the second
view. For a study of your own, copy this file and change the space.
"""

import sys

from eqssl.config import EvaluateConfig, RunConfig, TrainConfig
from eqssl.study import Study, log_uniform, main

STUDY = Study(
    name="loss_weight",
    question="How does the weight of the reconstruction loss trade invariance for equivariance?",
    space={"recon.weight": log_uniform(1.0, 100.0)},
    configs=3,
    seeds=2,
    sampler="grid",
    objectives={"linear": "maximize", "r2_mean": "maximize"},
    matched_controls=True,
    base=RunConfig(train=TrainConfig(epochs=8, batch_size=64, lr=1.6e-2), evaluate=EvaluateConfig(level="full")),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
