"""The hard case: does cross-attention retain pose where objects turn about all three axes? Three seeds on test.

    python studies/free_pose.py                                  8,000 objects at 32 px, hours on a CPU
    python studies/free_pose.py --data.image-size 128 --encoder.name resnet18 --train.epochs 6 --seeds 1 --max-hours .15
                                                                 minutes on a GPU

Nothing is searched: the weight is the default study's choice. `supervised-factors` shows how much could be learned.
"""

import sys

from eqssl.config import DataConfig, EvaluateConfig, ReconConfig, RunConfig, TrainConfig
from eqssl.study import REFERENCE_ROWS, Study, main

ROWS = ("constant", "pixels", "random", "supervised-factors", "base", "no-recon", "autoencode")
SIE = {"method.name": "sie", "method.options.factors": "rotation", "recon.weight": 0.0}
STUDY = Study(
    name="free_pose",
    question="Does cross-attention retain pose where objects turn about all three axes?",
    space={},
    configs=0,
    seeds=3,
    rows={row: REFERENCE_ROWS[row] for row in ROWS} | {"sie": SIE, "pooled-query": {}},
    controls={"sie": ("base",)},
    subject="pooled-query",
    base=RunConfig(
        data=DataConfig(pose="free", objects=8000),
        recon=ReconConfig(weight=10.0),
        train=TrainConfig(epochs=20, batch_size=64, lr=1.6e-2, seed=3000),
        evaluate=EvaluateConfig(level="full", split="test"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
