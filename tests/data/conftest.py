from types import SimpleNamespace

import pytest

from mmjax.data import tokenizer
from mmjax.data.source import open_source


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data config whose set is prepared once for all tests."""
    config = SimpleNamespace(source="digits_captions", dir=str(tmp_path_factory.mktemp("data")))
    open_source(config, "train")
    return config


@pytest.fixture(scope="session")
def train_source(data):
    return open_source(data, "train")


@pytest.fixture(scope="session")
def words(train_source):
    return tokenizer.load(train_source.info.tokenizer)
