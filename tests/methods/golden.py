"""Golden values of the offline methods: made by the reference codes in float64, with the gradients.

A file has cases `c0`, `c1`, ...; the keys of one are `c0/GROUP/NAME`: inputs `in`, options `opt`, weights of adapters
`param`, outputs `out`, gradients of the loss with respect to inputs `grad` and weights `grad_param`.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "fixtures" / "offline"


def cases(file):
    """The cases of a file, each as a parameter of a test: groups of values by name."""
    found = {}
    with np.load(FOLDER / f"{file}.npz") as values:
        for key in values.files:
            case, group, name = key.split("/")
            value = values[key]
            found.setdefault(case, {}).setdefault(group, {})[name] = value if value.shape else value.item()
    return [pytest.param(case, id=f"{file}-{name}") for name, case in found.items()]


def assert_golden(actual, expected):
    """Right to 1e-5 of the largest entry."""
    expected = np.asarray(expected, np.float64)
    assert np.shape(actual) == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def assert_loss(loss, case, names):
    """`loss(*inputs)` is that of the case, and so are its gradients with respect to the inputs of these names."""
    value, grads = jax.jit(jax.value_and_grad(loss, range(len(names))))(*(case["in"][name] for name in names))
    assert_golden(value, case["out"]["loss"])
    for name, grad in zip(names, grads, strict=True):
        assert_golden(grad, case["grad"][name])
