"""Nothing has become slower by accident: ratios of one run against those of ratios.json, with a wide margin.

python -m tests.bench.test_ratios writes the file, on a machine that does nothing else.
"""

import json
from pathlib import Path

import pytest

from eqssl.bench import data, evaluation, step
from eqssl.bench.options import Options

FILE = Path(__file__).with_name("ratios.json")
MARGIN, SLACK = 1.5, 0.1  # the latter where little lies beyond the encoder, and other load alters it much
SIZES = Options(
    encoders=("resnet_tiny",), image_size=64, batch_size=64, precision="fp32", threads=1, seconds=10,
    data_images=64, data_pixels=1 << 23, data_sizes=(64,),
)  # fmt: skip


def ratios() -> dict[str, float]:
    """Return what all but the encoder takes of a step's time, and what else there is: the less the better."""
    of_step, of_reading = step.measure(SIZES), data.measure(SIZES)
    efficiency, with_recon = (row.ratio for row in of_step if "step efficiency" in row.against)
    (augmentation,) = (row.ratio for row in of_step if row.name.endswith(": augmentation") and row.against == "step")
    decoding = {row.name: row.ratio for row in of_reading if row.against == "decoding alone"}
    return {
        "step beyond its encoder": 1 / efficiency - 1,
        "step with reconstruction beyond its encoder": 1 / with_recon - 1,
        "augmentation over step": augmentation,
        "evaluation over training": evaluation.measure(SIZES)[0].ratio,
        "JPEG into memory over decoding": 1 / decoding["JPEG 64 px: Parquet into memory"],
        "JPEG image by image over decoding": 1 / decoding["JPEG 64 px: Parquet image by image"],
    }


@pytest.mark.slow
def test_nothing_takes_much_longer_than_it_did():
    stored, now = json.loads(FILE.read_text()), ratios()
    assert now.keys() == stored.keys()
    assert {name: ratio for name, ratio in now.items() if ratio > MARGIN * stored[name] + SLACK} == {}, stored


if __name__ == "__main__":
    FILE.write_text(json.dumps(ratios(), indent=2) + "\n")
