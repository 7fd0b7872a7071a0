"""What the compiled step looks like on CPU: nothing that XLA is slow at."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import parallel, processor
from orc_jax.config import default
from orc_jax.data.types import Dataset, Images
from orc_jax.models import conv
from orc_jax.testing import Stepper, batches, build_run


def compiled_program(method="orc"):
    """Of a pool of ResNet-8s, on images large enough for XLA not to exchange a convolution's operands."""
    images = Images(np.zeros((90, 32, 32, 3), np.uint8), np.zeros(90, np.int32))
    photos = Dataset("photos", images, images, ("a", "b", "c"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    config = default()
    config.method, config.teacher, config.student, config.num_networks = method, "resnet8", "resnet8", 3
    config.batch_size, config.crop_padding = 16, 1
    stepper = Stepper(build_run(config, photos))
    return stepper.train_step.compile(stepper.init(), stepper.data, parallel.shard(batches(1, 16, 90)[0], 1)).as_text()


def computations(hlo):
    """The lines of each computation of a compiled program."""
    found, name = {}, None
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) .*{$", line):
            name = header[1]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def slow_convolutions(hlo):
    """What XLA:CPU takes long over: grouped convolutions, other layouts than one (it brings those outside of loops and
    branches into it), and the extra dimension that it gives to batch-grouped gradients."""
    convolutions = [line for line in hlo.splitlines() if " convolution(" in line]
    assert convolutions
    fast = "dim_labels=b01f_01io->b01f"
    return [line for line in convolutions if "group_count" in line or not re.search(fast + r"(,|$)", line)]


def transposed_chains(hlo):
    """Computations that normalise images and change their layout in one go, once more for every use."""
    large = re.compile(r"f32\[(\d+,){3,4}\d+\]\S* (\w+)\(")
    chains = []
    for name, lines in computations(hlo).items():
        ops = {match[2] for match in map(large.search, lines) if match}
        if "transpose" in ops and ops & {"multiply", "maximum"}:
            chains.append(name)
    return chains


def given_to_ynnpack(hlo):
    """Convolutions that XLA:CPU hands to YNNPACK for themselves; a reduction may still take one in with it."""
    found = computations(hlo)
    fusions = [re.search(r"calls=%?([\w.-]+)", line)[1] for line in hlo.splitlines() if "__ynn_fusion" in line]
    return [line for name in fusions for line in found[name] if "ROOT" in line and " convolution(" in line]


cpu_only = pytest.mark.skipif(jax.default_backend() != "cpu", reason="what is bad on a GPU is another matter")


@cpu_only
def test_the_compiled_step_has_nothing_slow():
    hlo = compiled_program()
    assert not slow_convolutions(hlo)
    assert not transposed_chains(hlo)
    assert not given_to_ynnpack(hlo)


NUMBERS = ("NHWC", "HWIO", "NHWC")
# Which convolutions of a forward pass, its images' gradient and its kernel's XLA:CPU computes itself, where it may give
# them to oneDNN. Where the processor does not multiply bfloat16, all are computed in float32.
OWN = {("float32", True): 1, ("float32", False): 1, ("bfloat16", False): 1, ("bfloat16", True): 0}


@cpu_only
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("dtype, multiplies", OWN)
def test_onednn_computes_what_xla_does(dtype, multiplies, strides, monkeypatch):
    """Forward and both gradients, up to rounding; and what it computes once it computes again, bit for bit."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: multiplies)
    jax.clear_caches()  # of traces for another processor
    keys = jax.random.split(jax.random.key(0), 3)
    images, kernel = jax.random.normal(keys[0], (8, 16, 16, 16)), 0.1 * jax.random.normal(keys[1], (3, 3, 16, 24))
    cotangent = jax.random.normal(keys[2], (8, 16 // strides[0], 16 // strides[1], 24))
    args = [x.astype(dtype) for x in (images, kernel, cotangent)]

    @jax.jit
    def passes(images, kernel, cotangent):
        convolve = lambda x, w: conv.convolution_for("cpu")(x, w, strides, ((1, 1), (1, 1)), dimension_numbers=NUMBERS)  # noqa: E731
        result, pull = jax.vjp(convolve, images, kernel)
        return result, *pull(cotangent)

    lowered = passes.lower(*args)
    program = parallel.compiled(lowered, "cpu", long=True)
    found, again, expected = program(*args), program(*args), lowered.compile()(*args)
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    for one, two, other in zip(found, again, expected, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=0, atol=tolerance * float(abs(other).max()))
    hlo = program.as_text()
    if parallel.ONEDNN not in hlo:
        pytest.skip("this version of XLA has no oneDNN, or not for this processor")
    assert hlo.count(" convolution(") == OWN[dtype, multiplies]
    assert (
        hlo.count(f'custom_call_target="{parallel.ONEDNN}"') == 1 + strides[0] * strides[1] + 1 - OWN[dtype, multiplies]
    )


@cpu_only
def test_the_checks_would_notice(monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(parallel, "COMPILER_OPTIONS", {})
        assert given_to_ynnpack(compiled_program(method="independent"))
    monkeypatch.setitem(conv.WAYS, "cpu", conv.WAYS["tpu"])
    hlo = compiled_program(method="independent")
    assert slow_convolutions(hlo)
    assert transposed_chains(hlo)

    @jax.jit
    def looped(x, w):
        conv = lambda x: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda _, x: conv(x), x)

    assert slow_convolutions(looped.lower(jnp.ones((2, 4, 8, 8)), jnp.ones((4, 4, 3, 3))).compile().as_text())
