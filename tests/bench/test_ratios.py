"""Nothing has become slower by accident: ratios of one run against those of ratios.json, with a wide margin.

python -m tests.bench.test_ratios writes the file, on a machine that does nothing else.
"""

import json
from pathlib import Path

import pytest

from eqssl.bench import reading, step
from eqssl.bench.command import Options

FILE = Path(__file__).with_name("ratios.json")
MARGIN, SLACK = 1.5, 0.1  # the latter where little lies beyond the encoder, and other load alters it much
SIZES = Options(encoders=("resnet_tiny",), image_sizes=(64,), precisions=("fp32",), threads=1, seconds=10)


def ratios() -> dict[str, float]:
    """Return what all but the encoder takes of a step's time, and what else there is: the less the better."""
    *of_step, evaluation = step.measure(SIZES)
    with pytest.MonkeyPatch.context() as patch:  # small images, beside whose decoding the rest is seen
        patch.setattr(reading, "SIZE", 64)
        patch.setattr(reading, "RENDERED", 64)
        of_reading = {row.name: row.ratio for row in reading.measure(SIZES)}
    efficiency, with_recon = (row.ratio for row in of_step if "step efficiency" in row.against)
    (augmentation,) = (row.ratio for row in of_step if row.name.endswith(": augmentation") and row.against == "step")
    return {
        "step beyond its encoder": 1 / efficiency - 1,
        "step with reconstruction beyond its encoder": 1 / with_recon - 1,
        "augmentation over step": augmentation,
        "evaluation over training": evaluation.ratio,
        "JPEG from the cache over decoding": 1 / of_reading["JPEG 64 px: Parquet into the memory of another process"],
        "JPEG image by image over decoding": 1 / of_reading["JPEG 64 px: Parquet batch by batch"],
    }


@pytest.mark.slow  # 60 s
def test_nothing_takes_much_longer_than_it_did():
    stored, now = json.loads(FILE.read_text()), ratios()
    assert now.keys() == stored.keys()
    assert {name: ratio for name, ratio in now.items() if ratio > MARGIN * stored[name] + SLACK} == {}, stored


if __name__ == "__main__":
    FILE.write_text(json.dumps(ratios(), indent=2) + "\n")
