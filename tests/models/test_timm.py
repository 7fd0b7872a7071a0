"""The networks of today against timm: logits, features, gradients and moved statistics of a stack of two.

Narrow variants of every family by default, the registered networks with `-m slow`. As in `test_backbones`, activations
with corners are smooth functions where gradients are compared.
"""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from orc_jax.deploy.import_torch import convert
from orc_jax.models import MODELS
from orc_jax.models.network import make_network, weight_shapes
from tests.models.test_backbones import assert_predicts, normalized, photos, relative_errors, torch_step

pytest.importorskip("torch")
timm_models = pytest.importorskip("tests.timm_models", reason="timm is not installed", exc_type=ImportError)

CLASSES = 7
CASES = [*timm_models.NARROW, *(pytest.param(name, marks=pytest.mark.slow) for name in timm_models.WHOLE)]
CORNERS = ("narrow_mobilenetv3", "mobilenetv3", "narrow_resnetd", "resnet")


@pytest.fixture(autouse=True)
def narrow_models(monkeypatch):
    """The narrow variants are registered for these tests alone. A network keeps the activations it is made with."""
    for name, (model, _, _) in timm_models.NARROW.items():
        monkeypatch.setitem(MODELS, name, model)
    yield
    make_network.cache_clear()


def smooth(monkeypatch):
    make_network.cache_clear()
    monkeypatch.setattr(nnx, "relu", nnx.silu)
    monkeypatch.setattr(nnx, "hard_swish", nnx.silu)
    monkeypatch.setattr(nnx, "hard_sigmoid", nnx.sigmoid)
    monkeypatch.setattr(nnx, "max_pool", nnx.avg_pool)


def step(network, weights, data):
    """Gradients and moved statistics of a stack of two."""

    def loss(params, batch_stats):
        (logits, _), moved = network.train(params, batch_stats, normalized(data.images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean(), moved

    return jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(*weights)


@pytest.mark.parametrize("name", CASES)
def test_two_members_equal_timm(name, monkeypatch):
    size = timm_models.side(name)
    data = photos(size, CLASSES)
    references = [timm_models.randomize(timm_models.reference(name, CLASSES, size), seed) for seed in (0, 1)]
    members = [convert({k: v.numpy() for k, v in net.state_dict().items()}, name, size)[:2] for net in references]
    weights = jax.tree.map(lambda *x: np.stack(x), *members)
    make = lambda: make_network(timm_models.NARROW.get(name, (MODELS[name],))[0], CLASSES, (size, size, 3))  # noqa: E731
    assert jax.tree.map(lambda x: x.shape[1:], weights) == jax.tree.map(lambda x: x.shape, weight_shapes(make()))
    logits, features = jax.jit(jax.vmap(make().predict, in_axes=(0, 0, None)))(*weights, normalized(data.images))
    for i, network in enumerate(references):
        assert_predicts((logits[i], features[i]), network, data)

    smooth(monkeypatch)
    gradients, moved = step(make(), weights, data)
    for i, network in enumerate(references):
        timm_models.smooth(network)
        grads, statistics = torch_step(network, data)
        for ours, theirs in ((gradients, grads), (moved, statistics)):
            errors = relative_errors({k: np.asarray(v[i]) for k, v in ours.items()}, theirs)
            assert not {k: v for k, v in errors.items() if not v < 1e-4}
