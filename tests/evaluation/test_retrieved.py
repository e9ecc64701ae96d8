import torch

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import to_float
from eqssl.evaluation.encoders import Pixels
from eqssl.evaluation.features import encode_bank, frozen
from eqssl.evaluation.protocol import evaluate
from eqssl.evaluation.retrieved import SHOWN, retrieved_views

CONFIG = EvaluateConfig(level="full", train_images=300, images=64)


def predictions_of(dataset, config=CONFIG):
    predictions = []
    evaluate(Pixels(), dataset, config=config, predictions=predictions)
    return predictions


def test_views_of_objects_are_those_of_the_metric(objects):
    predictions = predictions_of(objects)
    first, wanted, retrieved = retrieved_views(predictions, objects, "val")
    (hits,) = (p for p in predictions if p.metric == "hit1")
    view_of = dict(zip(objects.val.ids.tolist(), objects.val.images.take(torch.arange(len(objects.val))), strict=True))
    assert len(first) == SHOWN
    for i, image in enumerate(hits.examples[:SHOWN].tolist()):  # three views of an object have successive ids
        assert torch.equal(first[i], view_of[image])
        assert torch.equal(wanted[i], view_of[image + 1 + i % 2])
        assert torch.equal(retrieved[i], view_of[image + int(hits.predicted[i, 1 + i % 2])])


def test_views_of_single_images_are_those_of_the_metric(textured_images):
    predictions = predictions_of(textured_images)
    first, wanted, retrieved = retrieved_views(predictions, textured_images, "val")
    (hits,) = (p for p in predictions if p.metric == "hit1")
    encoder, transform = Pixels(), next(p.factor for p in predictions if p.metric == "r2")
    with frozen(encoder):
        bank = encode_bank(encoder, textured_images, textured_images.val, [transform])
        features = bank.second.view(*hits.predicted.shape, -1)
        for i in range(SHOWN):
            for image, view in ((wanted[i], 1 + i), (retrieved[i], int(hits.predicted[i, 1 + i]))):
                torch.testing.assert_close(
                    encoder(to_float(image[None]))[0], features[i, view], atol=0.51 / 255, rtol=0
                )
        clean = bank.first.view(*hits.predicted.shape, -1)[:SHOWN, 0]
        torch.testing.assert_close(encoder(to_float(first)), clean)
    assert (first != wanted).flatten(1).any(1).all()


def test_there_are_none_at_level_quick(textured_images):
    config = EvaluateConfig(train_images=300, images=64)
    assert retrieved_views(predictions_of(textured_images, config), textured_images, "val") is None
