"""Real models of the zoo, loaded once."""

import pytest
import torch

from evomerge import zoo
from evomerge.merging.live import live_model, load_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def maths():
    return live_model(zoo.path("maths"), dtype=torch.float32)


@pytest.fixture
def base():
    return live_model(zoo.path("base"), dtype=torch.float32)


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(zoo.path("base"))
