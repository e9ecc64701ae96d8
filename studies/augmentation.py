"""How strong should each augmentation be? Dose and response, one family at a time.

    python studies/augmentation.py            single renders, 11 families x 4 strengths x 2 seeds, all reference rows
    python studies/augmentation.py --data.source parquet --data.path data/photos            your own photographs

The other families stay at their default. On grey images, fix the families that need colour: `--augment.saturation 0
--augment.hue 0 --augment.grayscale 0`.
"""

import sys

from eqssl.config import AUGMENTATIONS, DataConfig, ReconConfig, RunConfig, TrainConfig
from eqssl.study import Study, main, uniform

STUDY = Study(
    name="augmentation",
    question="How does the strength of each augmentation trade invariance for equivariance?",
    space={f"augment.{family}": uniform(0.0, 1.0) for family in AUGMENTATIONS},
    configs=4 * len(AUGMENTATIONS),
    seeds=2,
    sampler="one-at-a-time",
    base=RunConfig(
        data=DataConfig(pairs="image"),
        recon=ReconConfig(weight=25.0),
        train=TrainConfig(epochs=6, batch_size=64, lr=4e-3),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
