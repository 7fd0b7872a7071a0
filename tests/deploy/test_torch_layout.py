"""Names and layouts of PyTorch, there and back."""

import numpy as np
import pytest

from orc_jax.deploy.torch_layout import from_torch, state_dict, to_torch, torch_name, torch_shape


def test_names():
    names = {
        "conv1.kernel": "conv1.weight",
        "layer1.0.bn1.scale": "layer1.0.bn1.weight",
        "layer1.0.bn1.bias": "layer1.0.bn1.bias",
        "bn1.mean": "bn1.running_mean",
        "bn1.var": "bn1.running_var",
        "fc.bias": "fc.bias",
    }
    assert {name: torch_name(name) for name in names} == names


@pytest.mark.parametrize(("ours", "theirs"), [((3, 2, 5, 7), (7, 5, 3, 2)), ((5, 7), (7, 5)), ((4,), (4,)), ((), ())])
def test_layouts(ours, theirs):
    """A convolution is [height, width, in, out] here and [out, in, height, width] there, a linear layer [in, out]."""
    value = np.random.default_rng(0).normal(size=ours).astype(np.float32)
    there = to_torch(value)
    assert there.shape == theirs == torch_shape(ours) and there.flags.c_contiguous
    np.testing.assert_array_equal(from_torch(there), value)
    if len(ours) == 4:
        assert there[6, 4, 2, 1] == value[2, 1, 4, 6]
    assert from_torch(there.astype(np.float64)).dtype == np.float32


def test_what_float32_cannot_hold_is_infinite():
    """Without a warning: that is an error in tests."""
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(from_torch(np.array([1e300, -1e300, 2.0])), [np.inf, -np.inf, 2.0])


def test_a_state_dict_is_complete():
    """Batch normalisations have their counters, other layers none."""
    params = {"conv1.kernel": np.ones((3, 3, 1, 2)), "bn1.scale": np.ones(2), "bn1.bias": np.ones(2)}
    arrays = state_dict(params, {"bn1.mean": np.zeros(2), "bn1.var": np.ones(2)})
    shapes = {name: value.shape for name, value in arrays.items()}
    assert shapes == {
        "conv1.weight": (2, 1, 3, 3),
        **dict.fromkeys(("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"), (2,)),
        "bn1.num_batches_tracked": (),
    }
    assert arrays["bn1.num_batches_tracked"].dtype == np.int64
