"""How much reconstruction, of which view, under how strong augmentations? All of them searched together.

    python studies/joint.py                               single renders: 40 configurations, the best with five seeds
    python studies/joint.py --sampler random --output results/random                  the same by random search

Trials that fall behind are pruned, configurations that fall behind get no further seeds, and the chosen one is trained
again with five fresh seeds and reported on test.
"""

import sys

from eqssl.config import AUGMENTATIONS, DataConfig, RunConfig, TrainConfig
from eqssl.study import Study, choice, log_uniform, main, uniform

TOKENS = ("target-queries", "other-queries", "residual")  # attentions that also take the parts of the pooled vector
STUDY = Study(
    name="joint",
    question="How much reconstruction, of which view, under how strong augmentations?",
    space={
        "recon.weight": log_uniform(0.3, 100.0),
        "recon.view": choice("second", "both", "clean"),
        "recon.attention": choice("pooled-query", *TOKENS, "concat"),
        "recon.query_gradient": log_uniform(0.01, 1.0).when("recon.attention", "pooled-query"),
        "recon.tokens": choice("map", "vector").when("recon.attention", *TOKENS),
        **{f"augment.{family}": uniform(0.0, 1.0) for family in AUGMENTATIONS},
    },
    configs=40,
    seeds=5,
    sampler="tpe",
    seed_schedule="halving",
    pruner="halving",
    final_test=5,
    base=RunConfig(data=DataConfig(pairs="image"), train=TrainConfig(epochs=9, batch_size=64, lr=4e-3)),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
