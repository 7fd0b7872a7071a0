"""The laws for tests of one's own hold for methods of the package, and see what breaks them."""

import ast
from pathlib import Path

import numpy as np
import pytest

from orc_jax import testing
from tests import own_modules
from tests.methods import torch_methods
from tests.methods.comparison import NETWORKS

BROKEN = """
import itertools

import jax.numpy as jnp

from orc_jax.losses import cross_entropy
from orc_jax.methods.base import Method, pool_roles, scores
from orc_jax.verbs import forward, learn

traces = itertools.count()


def method(architectures, *, local=False, remembers=False):
    '''Learns from the labels, with a weight that must not depend on the device, nor on what has been before.'''
    def iterate(context, pool, batch):
        passed = forward(pool, context.normalize(batch.images))
        weight = (batch.labels[0] if local else 0) + 1.0 + (next(traces) if remembers else 0)

        def loss(out):
            return weight * cross_entropy(out.logits, batch.labels)

        return learn(context, passed, loss), scores(context, passed.logits, batch.labels)

    return Method(iterate, pool_roles(len(architectures), "peer", "peer"))
"""


@pytest.fixture(autouse=True)
def broken(tmp_path, monkeypatch):
    with own_modules.lying_in(tmp_path, monkeypatch, broken=BROKEN):
        yield


def config(method="broken:method", options=""):
    fields = {"teacher": "tiny_b", "student": "tiny_b", "num_networks": 2, "method_options": options}
    return testing.small_config(method=method, **fields)


def test_methods_that_are_the_same():
    testing.assert_same_student(config(), config("independent"))
    with pytest.raises(AssertionError, match="Mismatched elements"):
        testing.assert_same_student(config(), config("dml"))


def test_what_every_device_decides_for_itself_is_seen():
    testing.assert_devices_agree(config(), num_devices=2)
    with pytest.raises((AssertionError, RuntimeError)):
        testing.assert_devices_agree(config(options="local=True"), num_devices=2)
    with pytest.raises(RuntimeError, match=r"needed are 9 devices, and there are 4\. On a CPU .*jax_num_cpu_devices"):
        testing.build_run(config(), num_devices=9)


def test_what_is_remembered_outside_the_state_is_seen(tmp_path):
    """And that a run of one epoch tells nothing. What passes, docs/ways/extend.md shows."""
    one = config(options="remembers=True")
    with pytest.raises(AssertionError, match="Mismatched elements"):
        testing.assert_resumes(one, tmp_path / "run")
    one.num_epochs = 1
    with pytest.raises(AssertionError, match="a single checkpoint"):
        testing.assert_resumes(one, tmp_path / "short")


def test_another_loop_is_seen():
    testing.assert_equals_torch(config(), NETWORKS, torch_methods.independent)

    def twice(nets, optimizers, views, labels):
        for _ in range(2):
            torch_methods.independent(nets, optimizers, views, labels)

    with pytest.raises(AssertionError):
        testing.assert_equals_torch(config(), NETWORKS, twice)


def test_a_member_that_does_not_move_is_seen():
    """Though it agrees with PyTorch's."""
    still = config()
    still.learning_rate = 1e-9
    with pytest.raises(AssertionError, match="member 0 is still"):
        testing.assert_equals_torch(still, NETWORKS, torch_methods.independent)


def test_batches_are_of_different_examples():
    for batch in testing.batches(3, 16, 90):
        assert len(set(batch.tolist())) == 16 and batch.dtype == np.int32 and batch.max() < 90


def names(node):
    return [alias.name for alias in node.names]


def test_neither_pytest_nor_pytorch_is_needed():
    tree = ast.parse(Path(testing.__file__).read_text())
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports and not [line for line in imports if "torch" in line.replace("orc_jax.deploy.torch_layout", "")]
    assert "pytest" not in {name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in names(node)}
