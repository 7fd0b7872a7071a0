"""Four virtual CPU devices, tiny networks, and strictness: rank promotion raises."""

import functools
import os
import signal

from tests import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 {flags.QUICK}"

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from rich.console import Console

from orc_jax import config as configs
from orc_jax import models, training
from orc_jax.data import sets
from orc_jax.data.types import Dataset
from orc_jax.models import layers, network, points
from orc_jax.testing import small_config, toy_dataset
from tests import helpers

jax.config.update("jax_numpy_rank_promotion", "raise")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which a run under nohup ignores, and the runs that tests start with it


class TinyNet(nnx.Module):
    """Two convolutions: the smallest network with everything that a pool has to deal with."""

    def __init__(self, num_classes, *, width, image_shape=(32, 32, 3), dtype=jnp.float32, axis_name=None, rngs):
        make = layers.make_layers(dtype, axis_name, rngs)
        self.conv1 = make.conv(image_shape[-1], width, 3)
        self.bn1 = make.norm(width)
        self.conv2 = make.conv(width, 8, 3, strides=2)
        self.fc = make.linear(8, num_classes)

    def __call__(self, images):
        y = self.bn1(self.conv1(images))
        x = nnx.relu(y)
        points.note(post=x, preact=x)
        points.note(post=x, preact=y)
        points.note_norm(self.bn1)
        layers.branch_point(self, x)
        y = self.conv2(x)
        x = nnx.relu(y)
        points.note(post=x, preact=y, pooled=x, norms=jnp.ones((2, 8)))
        features = layers.global_average_pool(x)
        return self.fc(features), features


TINY = {"tiny_a": functools.partial(TinyNet, width=6), "tiny_b": functools.partial(TinyNet, width=4)}


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Each file drops its compiled programs: too many in one process exhaust the memory maps of Linux."""
    yield
    helpers.steppers.clear()
    network.make_network.cache_clear()
    network.weight_shapes.cache_clear()
    jax.clear_caches()


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A folder for compiled programs. JAX takes the first that it is given, and keeps to it."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(autouse=True, scope="session")
def kept_programs(programs):
    """Each program is compiled once, whichever file needs it."""
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    """The tiny networks are registered for the tests alone."""
    for name, model in TINY.items():
        monkeypatch.setitem(models.MODELS, name, model)
        monkeypatch.setitem(models.LAST_STAGE, name, ("conv2", "fc"))
        monkeypatch.setitem(models.FEATURE_POINTS, name, 3)


@pytest.fixture(scope="session")
def toy() -> Dataset:
    return toy_dataset()


@pytest.fixture
def toy_set(monkeypatch, toy):
    """`config.dataset = "toy"` is the toy set; the real loader serves all others."""
    load = sets.load

    def loaded(config, *rest, **options):
        return toy if config.dataset == "toy" else load(config, *rest, **options)

    monkeypatch.setattr(sets, "load", loaded)


@pytest.fixture
def config():
    """A run of four tiny networks, two of them of one architecture and interleaved with the others."""
    return small_config(teacher="tiny_a", assistants="tiny_b,tiny_a", student="tiny_b", num_networks=4)


@pytest.fixture
def console(tmp_path):
    """A console that writes to `console.txt`."""
    with (tmp_path / "console.txt").open("w") as file:
        yield Console(file=file, width=100)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A workdir with a finished run; the tests copy it before they change anything."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def finished(trained, config, console):
    """The same, trained when the first test asks for it."""
    if not trained.exists():
        training.train(configs.resolve(config), trained, console)
    return trained


@pytest.fixture
def plain(trained, config, console):
    """As `finished`, but of two networks that learn from the labels alone, to which the config is set."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    workdir = trained.with_name("plain")
    if not workdir.exists():
        training.train(configs.resolve(config), workdir, console)
    return workdir
