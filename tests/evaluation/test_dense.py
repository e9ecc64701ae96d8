"""The dense probe on images whose objects are known, and on the rendered solids."""

import dataclasses

import pytest
import torch
from torch import nn

from eqssl.config import DataConfig, EncoderConfig, EvaluateConfig
from eqssl.data import load_data, register_source
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.data.stores import select
from eqssl.evaluation import dense
from eqssl.evaluation.dense import dense_predictions
from eqssl.evaluation.encoders import Constant, Pixels, Transferred
from eqssl.evaluation.features import frozen
from eqssl.evaluation.predictions import DENSE, Prediction, metrics_of, unit_contributions
from eqssl.evaluation.protocol import evaluate
from eqssl.models.encoder import Encoder

SIDE = 32
FULL = EvaluateConfig(level="full", train_images=100, images=50)


def squares(start: int, count: int) -> Split:
    """Return grey images of a bright rectangle, mostly near the centre, on a dark floor, and its masks."""
    generator = torch.Generator().manual_seed(start)
    top, left = (torch.randn(2, count, 1, 1, generator=generator) * 4 + 10).clamp(0, 24)
    height, width = torch.rand(2, count, 1, 1, generator=generator) * 10 + 6
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    masks = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    pixels = torch.where(masks, 200, 40).to(torch.uint8)
    ids = torch.arange(start, start + count)
    return Split(MemoryImages(pixels[:, None]), ids, masks=MemoryImages(masks[:, None]))


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return dataclasses.replace(data(squares(0, 600), squares(600, 300)), test=squares(900, 300))


@pytest.fixture(scope="module")
def few(shapes) -> Dataset:
    """Return fewer images, since level full encodes 50 views of each."""
    return shapes.map_splits(lambda split: select(split, slice(60)))


class Place(nn.Module):
    """Tokens that know their place and nothing of the image."""

    grid = (4, 4)

    def tokens(self, images):
        return torch.eye(16).expand(len(images), -1, -1)

    def forward(self, images):
        return self.tokens(images).mean(1)


def data(train: Split, eval_split: Split, image_size: int = SIDE) -> Dataset:
    return Dataset(
        "shapes", train, eval_split, eval_split, paired=False, channels=1, image_size=image_size, num_classes=0,
        mean=(0.3,), std=(0.25,), digest="0" * 16,
    )  # fmt: skip


def predictions(encoder: nn.Module, train: Split, eval_split: Split) -> list[Prediction]:
    """Return the predictions on all images of two splits."""
    with frozen(encoder):
        return dense_predictions(encoder, data(train, eval_split), EvaluateConfig(), {"all": slice(None)})


def score(encoder: nn.Module, train: Split, eval_split: Split) -> float:
    return metrics_of(predictions(encoder, train, eval_split))[DENSE]


def with_masks(split: Split, masks: torch.Tensor) -> Split:
    return dataclasses.replace(split, masks=MemoryImages(masks))


def test_tokens_that_contain_the_mask_reach_one(shapes):
    assert score(Pixels(), shapes.train, shapes.val) > 0.999
    assert score(Pixels((8, 8)), shapes.train, shapes.val) > 0.999


def test_shuffled_masks_and_the_place_alone_score_zero(shapes):
    assert score(Place(), shapes.train, shapes.val) == pytest.approx(0, abs=0.01)
    assert score(Constant(), shapes.train, shapes.val) == pytest.approx(0, abs=0.01)
    shuffled = with_masks(shapes.val, shapes.val.masks.pixels[torch.randperm(300, generator=torch.manual_seed(0))])
    noise = with_masks(shapes.train, shapes.train.masks.pixels.roll(1, 0))
    assert score(Pixels(), noise, shapes.val) == pytest.approx(0, abs=0.05)
    assert score(Pixels(), shapes.train, shuffled) < -0.5  # confident and wrong


@pytest.mark.parametrize("name", ["resnet_tiny", "test_vit3", "test_vit"])
def test_tokens_lie_on_their_patches(shapes, name):
    """A ResNet, and vision transformers with registers and a class token, which are no part of the map."""
    torch.manual_seed(0)
    stride = None if name == "resnet_tiny" else 8
    encoder = Encoder(EncoderConfig(name=name, output_stride=stride), 1, SIDE, shapes.mean, shapes.std)
    assert score(encoder, shapes.train, shapes.val) > 0.85
    tokens = encoder.tokens
    encoder.tokens = lambda images: tokens(images).roll(1, 1)
    assert score(encoder, shapes.train, shapes.val) < 0.8


def test_parts_and_levels(few):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(), 1, SIDE, few.mean, few.std)
    full = evaluate(encoder, few, config=FULL)
    assert {name for name in full if DENSE in name} == {DENSE, f"inv/{DENSE}", f"equi/{DENSE}"}
    assert full[DENSE] >= max(full[f"inv/{DENSE}"], full[f"equi/{DENSE}"]) > 0.5
    assert DENSE not in evaluate(encoder, few, config=dataclasses.replace(FULL, level="quick"))


def test_absent_without_masks_or_without_a_token_map(shapes, few, flat_images):
    assert DENSE in evaluate(Constant(), few, config=FULL)
    assert DENSE not in evaluate(Constant(), flat_images, config=FULL)
    unmasked = dataclasses.replace(few, val=dataclasses.replace(few.val, masks=None))
    assert DENSE not in evaluate(Constant(), unmasked, config=FULL)
    assert DENSE not in evaluate(nn.Sequential(nn.AvgPool2d(16), nn.Flatten()), few, config=FULL)
    empty = with_masks(shapes.val, torch.zeros(300, 1, SIDE, SIDE, dtype=torch.uint8))
    assert predictions(Pixels(), shapes.train, empty) == []


def test_a_score_does_not_depend_on_the_batch_or_the_order(shapes, monkeypatch):
    expected = score(Pixels(), shapes.train, shapes.val)
    monkeypatch.setattr(dense, "MAX_TOKENS", 3000)  # five tokens of each image
    drawn = score(Pixels(), shapes.train, shapes.val)
    assert drawn != expected and drawn > 0.999
    monkeypatch.setattr(dense, "BATCH", 7)
    assert score(Pixels(), shapes.train, shapes.val) == pytest.approx(drawn, abs=1e-7)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert score(Pixels(), select(shapes.train, order), shapes.val) == pytest.approx(drawn, abs=1e-7)


def test_contributions_of_images_have_the_metric_as_their_mean(shapes):
    torch.manual_seed(0)
    found = predictions(Encoder(EncoderConfig(), 1, SIDE, shapes.mean, shapes.std), shapes.train, shapes.val)
    units, values, weights = unit_contributions(found)[DENSE]
    assert units.tolist() == shapes.val.ids.tolist() and (weights == 1).all()
    assert values.mean() == pytest.approx(metrics_of(found)[DENSE], abs=1e-5)


def test_masks_of_other_sizes_cover_the_central_square(shapes):
    large = shapes.val.masks.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3).to(torch.uint8) * 255
    oblong = nn.functional.pad(large, (10, 10), value=1)
    assert score(Pixels(), shapes.train, with_masks(shapes.val, oblong)) == score(Pixels(), shapes.train, shapes.val)


def test_an_encoder_on_images_of_another_size_keeps_its_map(shapes):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(), 3, 64, (0.3,) * 3, (0.25,) * 3)
    transferred = Transferred(encoder, channels=1, image_size=SIDE)
    assert transferred.grid == (8, 8) and score(transferred, shapes.train, shapes.val) > 0.8


@pytest.mark.parametrize(("masks", "message"), [
    (torch.zeros(300, 1, 32, 32), r"masks are torch.float32 of shape \(.*\); allowed: uint8 or bool \(B, 1, H, W\)"),
    (torch.zeros(300, 3, 32, 32, dtype=torch.uint8), r"masks are torch.uint8 of shape \(\d+, 3, 32, 32\); allowed"),
    (torch.zeros(200, 1, 32, 32, dtype=torch.bool), "300 images has 200 masks; allowed: one of each"),
])  # fmt: skip
def test_masks_that_cannot_be_used_are_refused(shapes, masks, message):
    with pytest.raises(ValueError, match=message):
        predictions(Pixels(), shapes.train, with_masks(shapes.val, masks))


def test_a_token_map_of_another_shape_is_refused(shapes):
    encoder = Place()
    encoder.grid = (2, 8)
    encoder.tokens = lambda images: torch.zeros(len(images), 17, 3)
    with pytest.raises(
        ValueError, match=r"tokens have the shape \(256, 17, 3\); allowed with a grid of 2x8: \(256, 16"
    ):
        predictions(encoder, shapes.train, shapes.val)


def test_masks_of_your_own_source_follow_its_images(shapes):
    register_source("shapes", lambda config: shapes)
    data = load_data(DataConfig(source="shapes", train_images=200))
    assert len(data.train) == len(data.train.masks) == 200
    assert score(Pixels(), data.train, data.val) > 0.99
    resized = load_data(DataConfig(source="shapes", image_size=16))
    assert score(Pixels(), resized.train, resized.val) > 0.9


def test_solids_have_the_metric(tmp_path):
    solids = load_data(DataConfig(cache=str(tmp_path), objects=24, views_per_object=4, image_size=16))
    encoder = Encoder(EncoderConfig(), 3, 16, solids.mean, solids.std)
    assert abs(evaluate(encoder, solids, config=FULL)[DENSE]) < 1


def test_all_channels_of_a_token_are_read_though_the_features_are_fewer(few):
    """Raw pixels of large images: a token of a 6 x 6 map keeps more values than the averaged whole image."""
    large = few.map_splits(
        lambda split: dataclasses.replace(
            split, images=MemoryImages(split.images.pixels.repeat_interleave(3, 2).repeat_interleave(3, 3))
        )
    )
    large = dataclasses.replace(large, image_size=96)
    encoder = Pixels((6, 6))
    images = torch.zeros(1, 1, 96, 96)
    assert encoder.tokens(images).shape[2] != encoder(images).shape[1]
    expected = score(encoder, large.train, large.val)
    assert evaluate(encoder, large, config=FULL)[DENSE] == pytest.approx(expected, abs=1e-6)


def test_parts_of_tokens_that_are_wider_than_the_features_are_refused(few):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(), 1, SIDE, few.mean, few.std)
    tokens = encoder.tokens
    encoder.tokens = lambda images: tokens(images).repeat(1, 1, 2)
    encoder.forward = lambda images: tokens(images).mean(1)
    with pytest.raises(ValueError, match=rf"tokens have {2 * encoder.dim} channels; allowed .*: {encoder.dim}, as"):
        evaluate(encoder, few, config=FULL)


def test_the_place_alone_scores_zero_on_large_maps_too(shapes):
    class LargePlace(Place):
        grid = (16, 16)

        def tokens(self, images):
            return torch.zeros(len(images), 256, 1)

    assert score(LargePlace(), shapes.train, shapes.val) == pytest.approx(0, abs=0.01)
