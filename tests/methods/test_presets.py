"""Published settings of whole trainings: what they set, what a command line keeps, and the page that lists them."""

from pathlib import Path

import pytest

from eqssl.config import MethodConfig, RunConfig, get, replace
from eqssl.methods import METHODS, find_method, with_preset
from eqssl.methods.presets import Preset

PRESETS = {(name, preset): found for name in METHODS for preset, found in find_method(name).presets.items()}
PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.mark.parametrize(("method", "name"), PRESETS)
def test_a_preset_sets_all_of_its_options_and_no_other(method, name):
    before = RunConfig(method=MethodConfig(name=method, preset=name))
    after, options = with_preset(before), PRESETS[method, name].options
    assert {option: get(after, option) for option in options} == options
    assert after == replace(before, options | {"method.preset": None}) and with_preset(after) == after


def test_options_of_the_command_line_are_kept():
    run = RunConfig(method=MethodConfig(name="byol", preset="cifar"))
    run = with_preset(replace(run, {"train.epochs": 3}), {"train.epochs"})
    assert (run.train.epochs, run.train.optimizer, run.train.lr, run.encoder.name) == (3, "sgd", 0.12, "resnet18")


def test_without_a_preset_nothing_is_set_and_one_that_a_method_lacks_is_refused():
    assert with_preset(RunConfig()) == RunConfig()
    with pytest.raises(ValueError, match=r"--method.preset is 'cifar'; allowed with --method.name ibot: imagenet"):
        with_preset(RunConfig(method=MethodConfig(name="ibot", preset="cifar")))


def test_published_rates_are_those_of_a_batch_of_256():
    lr, batch = (PRESETS["simsiam", "cifar"].options[f"train.{name}"] for name in ("lr", "batch_size"))
    assert lr * batch / 256 == pytest.approx(0.06)
    lr, batch = (PRESETS["sie", "3diebench"].options[f"train.{name}"] for name in ("lr", "batch_size"))
    assert lr * batch / 256 == pytest.approx(1e-3)


def row(method: str, name: str, preset: Preset) -> str:
    return f"| `--method.name {method} --method.preset {name}` | {preset.expected} | {preset.source} |"


def test_the_page_lists_every_preset():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `--method.name")]
    assert rows == [row(*key, preset) for key, preset in PRESETS.items()]
