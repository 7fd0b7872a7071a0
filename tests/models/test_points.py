"""Feature points: where RepDistiller and mdistiller take them, and at no cost for those that do not ask."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.deploy.torch_layout import from_torch, torch_name, torch_shape
from orc_jax.models import FEATURE_POINTS, LARGE, MODELS, points
from orc_jax.models.network import make_network, trunk, weight_shapes

GOLDEN = np.load(Path(__file__).parents[1] / "fixtures/offline/feature_points.npz")
KINDS = ("post", "preact")
NAMES = sorted({key.partition("/")[0] for key in GOLDEN.files})
TWICE = ("resnet20", "resnet8x4", "wrn_40_1")  # of a kind that is there


def weights(network):
    """What the golden values were made with: drawn by the PyTorch names in sorted order."""
    params, batch_stats = weight_shapes(network)
    ours = {torch_name(name): name for name in params | batch_stats}
    rng, drawn = np.random.RandomState(0), {}
    for name in sorted(ours):
        leaf, shape = name.rpartition(".")[2], torch_shape((params | batch_stats)[ours[name]].shape)
        v = rng.standard_normal(shape).astype(np.float32)
        if v.ndim >= 2:
            v = v * np.sqrt(2 / np.prod(shape[1:]))
        elif leaf == "running_var":
            v = 1 + 0.2 * np.abs(v)
        else:
            v = 0.2 * v + (leaf == "weight")
        drawn[ours[name]] = jnp.asarray(from_torch(v))
    return {name: drawn[name] for name in params}, {name: drawn[name] for name in batch_stats}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in TWICE else ()) for n in NAMES])
def test_maps_are_those_of_the_reference_codes(name):
    network = make_network(MODELS[name], 10, (32, 32, 3), maps=("post", "preact", "pooled"))
    images = np.random.RandomState(1).standard_normal((2, 3, 32, 32)).astype(np.float32).transpose(0, 2, 3, 1)
    logits, features, more = jax.jit(network.predict)(*weights(network), jnp.asarray(images))
    close(logits, GOLDEN[f"{name}/logits"])
    found = {f"{kind}{i}": x for kind in KINDS for i, x in enumerate(more["maps"][kind])} | {"pooled": features}
    (pooled,) = more["maps"]["pooled"]
    np.testing.assert_allclose(pooled.mean((1, 2)), features, rtol=1e-4, atol=1e-4 * np.abs(features).max())
    expected = {key.split("/")[1] for key in GOLDEN.files if key.startswith(f"{name}/") and key.endswith("/entries")}
    assert expected <= set(found) and len(more["maps"]["post"]) == len(more["maps"]["preact"]) == FEATURE_POINTS[name]
    for point, x in found.items():
        x = np.asarray(x).transpose((0, 3, 1, 2) if x.ndim == 4 else (0, 1))
        golden = f"{name}/{point if point in expected else point.replace('preact', 'post')}"
        stats = np.array([x.mean(), np.sqrt(np.square(x).mean()), x.min(), x.max()])
        assert x.shape[1:] == tuple(GOLDEN[f"{golden}/shape"])
        close(stats, GOLDEN[f"{golden}/stats"])
        at = np.linspace(0, x.size - 1, 16).astype(int)
        close(x.reshape(-1)[at], GOLDEN[f"{golden}/entries"], np.abs(x).max())


# What comes after the last feature point, so that its maps do not depend on it; as RepDistiller's `get_feat_modules`.
AFTER = {
    "resnet8": {"fc"},
    "wrn_16_1": {"bn1", "fc"},
    "vgg8": {"classifier"},
    "MobileNetV2": {"conv2", "classifier"},
    "ShuffleV1": {"linear"},
    "ShuffleV2": {"conv2", "bn2", "linear"},
    "ResNet50": {"linear"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("ShuffleV1", "ResNet50") else ()) for n in AFTER]
)
def test_trunks(name):
    network = make_network(MODELS[name], 10, (32, 32, 3), maps=("post",))
    params, batch_stats = weight_shapes(network)
    others = params.keys() - trunk(network, params, batch_stats, (32, 32, 3))
    assert {parameter.partition(".")[0] for parameter in others} == AFTER[name]


def close(x, golden, largest=None):
    np.testing.assert_allclose(x, golden, rtol=0, atol=1e-5 * (largest or np.abs(golden).max()))


def traced(name, **options):
    network = make_network(MODELS[name], 10, (32, 32, 3), **options)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return jax.make_jaxpr(network.train, return_shape=True)(*weight_shapes(network), images)


LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in ("MobileNetV2", "ShuffleV1", "ShuffleV2")]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", *LARGER])
def test_who_does_not_ask_pays_nothing(name):
    """The traced program is the one of a network that notes nothing; one that notes has that many more outputs."""
    plain, ((logits, features), _) = traced(name)
    assert logits.shape == (2, 10) and features.ndim == 2
    asking, (outputs, moved) = traced(name, maps=KINDS)
    assert [len(outputs[-1]["maps"][kind]) for kind in KINDS] == [FEATURE_POINTS[name]] * 2
    assert len(asking.jaxpr.eqns) - len(plain.jaxpr.eqns) == (3 if name == "ShuffleV2" else 0)  # its joined halves
    assert len(asking.jaxpr.outvars) - len(plain.jaxpr.outvars) == 2 * FEATURE_POINTS[name]
    assert len(jax.tree.leaves(moved)) == len(weight_shapes(make_network(MODELS[name], 10, (32, 32, 3)))[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_networks_that_have_them(name):
    """As the registry says; of ImageNet's from the first stage's size on."""
    size = 64 if name in LARGE else 32
    network = make_network(MODELS[name], 10, (size, size, 3), maps=points.KINDS)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    maps = jax.eval_shape(network.predict, *weight_shapes(network), images)[2]["maps"]
    count = FEATURE_POINTS.get(name, 0)
    assert [len(maps[kind]) for kind in KINDS] == [count, count] and len(maps["pooled"]) == (count > 0)
    assert [x.shape for x in maps["post"]] == [x.shape for x in maps["preact"]]
    assert len(maps["norms"]) in (0, count - 1)
    for norm, x in zip(maps["norms"], maps["preact"][1:], strict=False):
        assert norm.shape == (2, x.shape[-1])


def test_post_and_preact_are_an_activation_apart():
    """But where a network has no last activation."""
    network = make_network(MODELS["resnet8"], 10, (32, 32, 3), maps=KINDS)
    maps = jax.jit(network.predict)(*network.init(jax.random.key(0)), jnp.ones((2, 32, 32, 3)))[2]["maps"]
    for post, preact in zip(maps["post"], maps["preact"], strict=True):
        np.testing.assert_array_equal(post, jax.nn.relu(preact))


def test_outside_of_a_pass_nothing_is_noted():
    x = jnp.ones((1, 2, 2, 3))
    points.note(post=x)
    assert not points.asked("post")
    with points.noting(("post",)) as maps:
        assert points.asked("post") and not points.asked("preact")
        points.note(post=x, preact=x)
    assert list(maps) == ["post"] and len(maps["post"]) == 1


def test_bfloat16_networks_give_maps_in_float32():
    network = make_network(MODELS["resnet8"], 10, (32, 32, 3), "bfloat16", maps=("post",))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    maps = jax.eval_shape(network.predict, *weight_shapes(network), images)[2]["maps"]
    assert {str(x.dtype) for x in maps["post"]} == {"float32"}
