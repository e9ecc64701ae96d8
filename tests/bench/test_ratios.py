"""Nothing has become slower by accident: ratios of one run against those of ratios.json, with a wide margin.

python -m tests.bench.test_ratios writes the file, on a machine that does nothing else.
"""

import json
from pathlib import Path

import pytest

from eqssl.bench import step
from eqssl.bench.options import Options

FILE = Path(__file__).with_name("ratios.json")
MARGIN = 1.5
SIZES = Options(encoders=("resnet_tiny",), image_size=64, batch_size=64, precision="fp32", threads=1, seconds=15)


def ratios() -> dict[str, float]:
    """Return what all but the encoder takes of a step's time, and what reconstruction adds: the less the better."""
    rows = step.measure(SIZES)
    efficiency, with_recon = (row.ratio for row in rows if "step efficiency" in row.against)
    (augmentation,) = (row.ratio for row in rows if row.name.endswith(": augmentation") and row.against == "step")
    return {
        "step over its encoder": 1 / efficiency,
        "step with reconstruction over its encoder": 1 / with_recon,
        "augmentation over step": augmentation,
    }


@pytest.mark.slow
def test_no_part_of_a_step_is_much_slower_than_it_was():
    stored, now = json.loads(FILE.read_text()), ratios()
    assert now.keys() == stored.keys()
    assert {name: ratio for name, ratio in now.items() if ratio > MARGIN * stored[name]} == {}, stored


if __name__ == "__main__":
    FILE.write_text(json.dumps(ratios(), indent=2) + "\n")
