"""A short run, for comparisons of it."""

import pytest


@pytest.fixture
def short(config):
    config.num_networks, config.assistants, config.num_epochs = 3, "tiny_b", 1
    return config
