"""Golden values of methods that compare maps: our layout of theirs, and the networks beside a student."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax.deploy.torch_layout import from_torch, torch_name
from orc_jax.methods.maps import beside
from orc_jax.models.network import weight_shapes
from tests.methods.golden import assert_golden
from tests.methods.test_verbs import setup


def nhwc(x):
    """A map of PyTorch's layout in ours."""
    return np.asarray(x).transpose(0, 2, 3, 1) if np.ndim(x) == 4 else x


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2) if np.ndim(x) == 4 else x


def listed(case, which):
    """The maps of a case by their numbers, `f_s0 f_s1 ...`."""
    names = sorted(name for name in case["in"] if name.startswith(f"f_{which}"))
    return [nhwc(case["in"][name]) for name in names]


def assert_loss(loss, case, student):
    """`loss(maps)`, per sample, is in the mean that of the case, and so are its gradients with respect to the maps.

    `student` has them, or one map alone.
    """
    assert_right(case, *jax.jit(jax.value_and_grad(lambda maps: loss(maps).mean()))(student))


def assert_right(case, value, grads):
    assert_golden(value, case["out"]["loss"])
    for name, grad in zip(sorted(case["grad"]), jax.tree.leaves(grads), strict=True):
        assert_golden(nchw(grad), case["grad"][name])


class Beside:
    """A network beside a student, with the weights of a case. `renamed` turns its PyTorch names into the case's."""

    def __init__(self, case, module, renamed=(), transposed=(), **options):
        self.case, self.transposed = case, transposed
        self.network = beside(setup(), module, **options)
        params, stats = weight_shapes(self.network)
        self.names = {}
        for name in (*params, *stats):
            theirs = torch_name(name).removeprefix(".")
            for pattern, by in renamed:
                theirs = re.sub(pattern, by, theirs)
            self.names[name] = theirs
        weights = case["param"] | case.get("buffer", {})
        assert set(self.names.values()) <= set(weights)
        taken = {name: jnp.asarray(self.ours(name, weights[theirs])) for name, theirs in self.names.items()}
        self.params, self.stats = ({name: taken[name] for name in shapes} for shapes in (params, stats))

    def ours(self, name, value):
        """A weight of PyTorch's layout."""
        if name in self.transposed:  # [in, out, height, width], flipped
            return np.asarray(value, np.float32).transpose(2, 3, 0, 1)[::-1, ::-1].copy()
        return from_torch(np.asarray(value))

    def assert_all(self, loss, student):
        """The loss `(params, maps) -> [batch]`, and its gradients with respect to weights."""
        step = jax.jit(jax.value_and_grad(lambda params, maps: loss(params, maps).mean(), (0, 1)))
        value, (grads, of_maps) = step(self.params, student)
        assert_right(self.case, value, of_maps)
        assert set(grads) == {name for name, theirs in self.names.items() if theirs in self.case["grad_param"]}
        for name, grad in grads.items():
            expected = self.ours(name, self.case["grad_param"][self.names[name]])
            if np.abs(expected).max() > 1e-12:
                assert_golden(grad, expected)
            else:  # a bias before a batch normalisation: 0 but for rounding
                assert np.abs(grad).max() < 1e-6

    def assert_moved(self, stats):
        """Running statistics after one pass in training mode."""
        assert set(stats) == set(self.stats)
        for name, value in stats.items():
            assert_golden(value, self.case["after"][self.names[name]])
