"""What methods with a stage of their own learn there, and after, beside the golden values of the reference codes."""

import jax
import numpy as np
import pytest

from orc_jax.methods.ab import Connectors, boundary_loss
from orc_jax.methods.fsp import flow_loss, products
from orc_jax.methods.ft import Convolutions, Paraphraser, factor_loss
from orc_jax.methods.maps import per_sample
from tests.methods.golden import assert_golden, cases
from tests.methods.golden_maps import Beside, assert_loss, listed, nchw, nhwc


@pytest.mark.parametrize("case", cases("fsp"))
def test_fsp(case):
    student, teacher = listed(case, "s"), listed(case, "t")
    for i in range(len(student) - 1):
        of_pair = flow_loss(student[i : i + 2], teacher[i : i + 2])
        assert_golden(of_pair.mean(), case["out"][f"loss_pair{i}"])
    assert_loss(lambda maps: flow_loss(maps, teacher), case, student)


def test_products_of_channels():
    """Two pixels; the larger map is averaged down."""
    below = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).reshape(1, 1, 2, 2)  # two channels of two pixels
    above = np.array([5.0, 7.0], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(products(below, above), [[[(5 + 21) / 2, (10 + 28) / 2]]])
    np.testing.assert_allclose(products(below, above[:, :, :1]), [[[10.0, 15.0]]])


@pytest.mark.parametrize("case", cases("ab"))
def test_ab(case):
    student, teacher = listed(case, "s"), listed(case, "t")
    shapes = tuple((s.shape[1:], t.shape[1:]) for s, t in zip(student, teacher, strict=True))
    connectors = Beside(case, Connectors, [("^", "connector.")], shapes=shapes)
    made, stats = jax.jit(connectors.network.train)(connectors.params, connectors.stats, student)
    connectors.assert_moved(stats)
    for i, (s, t) in enumerate(zip(made, teacher, strict=True)):
        of_stage = 2.0 ** (i - len(made) + 1) * 3 / 1000 * boundary_loss([s], [t])
        assert_golden(of_stage.mean(), case["out"][f"loss_stage{i}"])

    def loss(params, maps):
        return 3 / 1000 * boundary_loss(connectors.network.train(params, connectors.stats, maps)[0], teacher)

    connectors.assert_all(loss, student)


def test_units_on_the_right_side_have_no_loss():
    teacher = np.array([-1.0, 0.0, 1.0, 1.0, 1.0], np.float32).reshape(1, 1, 1, 5)
    student = np.array([-1.5, 0.0, 2.0, 0.5, -1.0], np.float32).reshape(1, 1, 1, 5)
    np.testing.assert_allclose(boundary_loss([student], [teacher]), [0 + 1 + 0 + 0.25 + 4])


UNITS = r"units\.(\d)\.(\d)"


@pytest.mark.parametrize("case", cases("ft"))
def test_ft_paraphraser(case):
    """It has no batch normalisation; a transposed convolution is one with its kernel flipped."""
    f_t = nhwc(case["in"]["f_t"])
    widths = {"channels": f_t.shape[-1], "factors": case["out"]["factor_t"].shape[1]}
    of_stage = {
        "out": {"loss": case["out"]["loss_pretraining"]},
        "grad": {},
        "grad_param": case["grad_param_pretraining"],
    }
    renamed = [(UNITS, lambda m: str(3 * int(m[1]))), ("^", "paraphraser.")]
    transposed = [f"decoder.units.{i}.0.kernel" for i in range(3)]
    network = Beside(case | of_stage, Paraphraser, renamed, transposed, **widths)
    network.assert_all(lambda params, _: per_sample((network.network.predict(params, {}, f_t)[1] - f_t) ** 2), ())
    factors, _ = jax.jit(network.network.predict)(network.params, {}, f_t)
    assert_golden(nchw(factors), case["out"]["factor_t"])


@pytest.mark.parametrize("case", cases("ft"))
def test_ft_translator(case):
    f_s, factors = nhwc(case["in"]["f_s"]), nhwc(case["out"]["factor_t"])
    widths = (f_s.shape[-1], f_s.shape[-1], factors.shape[-1], factors.shape[-1])
    renamed = [(UNITS, lambda m: f"translator.encoder.{3 * int(m[1]) + int(m[2])}")]
    translator = Beside(case, Convolutions, renamed, widths=widths, normalised=True)
    made, stats = jax.jit(translator.network.train)(translator.params, translator.stats, f_s)
    assert_golden(nchw(made), case["out"]["factor_s"])
    translator.assert_moved(stats)
    translator.assert_all(
        lambda params, f: factor_loss(translator.network.train(params, translator.stats, f)[0], factors), f_s
    )


DEAD = np.zeros((2, 4, 4, 3), np.float32)
ALIVE = np.random.default_rng(0).normal(size=DEAD.shape).astype(np.float32)


@pytest.mark.parametrize("loss", [factor_loss, lambda s, t: flow_loss([s, s], [t, t])])
def test_losses_and_gradients_stay_finite_where_maps_are_dead(loss):
    step = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).mean()))
    for pair in ((DEAD, ALIVE), (ALIVE, DEAD), (DEAD, DEAD), (1e4 * ALIVE, ALIVE)):
        assert all(np.isfinite(x).all() for x in step(*pair))
