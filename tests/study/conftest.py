import pytest

from eqssl.config import RunConfig, replace

TINY = {
    "data.objects": 16,
    "train.epochs": 2,
    "train.batch_size": 32,
    "evaluate.train_images": 64,
    "evaluate.images": 16,
}


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> RunConfig:
    """Return a run that trains in a second, its data rendered once for all tests."""
    return replace(RunConfig(), {**TINY, "data.cache": str(tmp_path_factory.mktemp("cache"))})
