"""What offline methods make of maps, beside the golden values of the reference codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.methods.at import attention_loss
from orc_jax.methods.fitnets import Regressor
from orc_jax.methods.maps import at_one_side, averaged, beside, nearest, per_sample
from orc_jax.methods.nst import discrepancy
from orc_jax.methods.ofd import Connectors, margins, partial_distance
from orc_jax.methods.offline import Unfit
from orc_jax.methods.reviewkd import Review, context_loss
from orc_jax.methods.simkd import Projector, classified
from orc_jax.methods.sp import similarities, similarity_loss
from orc_jax.methods.vid import Stages, surprise
from tests.methods.golden import assert_golden, cases
from tests.methods.golden_maps import Beside, assert_loss, listed, nchw, nhwc
from tests.methods.test_verbs import setup

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("case", cases("at"))
def test_at(case):
    student, teacher, power = listed(case, "s"), listed(case, "t"), int(case["opt"]["p"])
    for i, pair in enumerate(zip(student, teacher, strict=True)):
        assert_golden(attention_loss(*pair, power).mean(), case["out"][f"loss_stage{i}"])
    assert_loss(
        lambda maps: sum(attention_loss(*pair, power) for pair in zip(maps, teacher, strict=True)), case, student
    )


def flat(f):
    return f.reshape(len(f), -1)


@pytest.mark.parametrize("case", cases("sp"))
def test_sp(case):
    (student,), (teacher,) = listed(case, "s"), listed(case, "t")
    rows_t = similarities(flat(teacher), flat(teacher))
    assert_loss(lambda f: similarity_loss(similarities(flat(f), flat(f)), rows_t), case, student)


@pytest.mark.parametrize("case", cases("nst"))
def test_nst(case):
    student, teacher = listed(case, "s"), listed(case, "t")
    for i, pair in enumerate(zip(student, teacher, strict=True)):
        assert_golden(discrepancy(*pair).mean(), case["out"][f"loss_stage{i}"])
    assert_loss(lambda maps: sum(discrepancy(*pair) for pair in zip(maps, teacher, strict=True)), case, student)


@pytest.mark.parametrize("case", cases("fitnet"))
def test_fitnets(case):
    student, teacher = nhwc(case["in"]["f_s"]), nhwc(case["in"]["f_t"])
    transposed = ["conv.kernel"] if 2 * student.shape[1] == teacher.shape[1] else []
    shapes = {"student": student.shape[1:], "teacher": teacher.shape[1:]}
    regressor = Beside(case, Regressor, transposed=transposed, **shapes)

    def loss(params, f):
        return per_sample((regressor.network.train(params, regressor.stats, f)[0] - teacher) ** 2)

    regressed, stats = regressor.network.train(regressor.params, regressor.stats, student)
    assert_golden(nchw(regressed), case["out"]["regressed"])
    regressor.assert_moved(stats)
    regressor.assert_all(loss, student)


@pytest.mark.parametrize("case", cases("vid"))
def test_vid(case):
    student, teacher = nhwc(case["in"]["f_s"]), nhwc(case["in"]["f_t"])
    renamed = [(r"stages\.0\.conv(\d)", lambda m: f"regressor.{2 * int(m[1])}"), (r"stages\.0\.weight", "log_scale")]
    channels = ((student.shape[-1], teacher.shape[-1]),)
    stages = Beside(case, Stages, renamed, channels=channels, trained_variance=True)

    def loss(params, f):
        f_s, f_t = at_one_side(f, teacher)
        ((mean, variance),) = stages.network.train(params, stages.stats, [f_s])[0]
        return surprise(f_t, mean, variance)

    stages.assert_all(loss, student)


@pytest.mark.parametrize("case", cases("hcl"))
def test_context_loss(case):
    teacher = listed(case, "t")
    assert_loss(lambda maps: sum(map(context_loss, maps, teacher)), case, listed(case, "s"))


@pytest.mark.parametrize("case", cases("reviewkd"))
def test_reviewkd(case):
    student, teacher = listed(case, "s"), listed(case, "t")
    renamed = [("levels", "abfs"), (r"(conv\d)", r"\1.0"), (r"bn(\d)", r"conv\1.1"), ("gate", "att_conv.0")]
    shapes = {"student": tuple(x.shape[1:] for x in student), "teacher": tuple(x.shape[1:] for x in teacher)}
    review = Beside(case, Review, renamed, **shapes)

    def loss(params, maps):
        return sum(map(context_loss, review.network.train(params, review.stats, maps)[0], teacher))

    fused, stats = jax.jit(review.network.train)(review.params, review.stats, student)
    for i, x in enumerate(fused):
        assert_golden(nchw(x), case["out"][f"fused{i}"])
    review.assert_moved(stats)
    review.assert_all(loss, student)


@pytest.mark.parametrize("case", cases("simkd"))
def test_simkd(case):
    f_s, f_t = at_one_side(nhwc(case["in"]["f_s"]), nhwc(case["in"]["f_t"]))
    student, features = nhwc(case["in"]["f_s"]), f_t.shape[-1]
    renamed = [(r"units\.(\d)\.(\d)", lambda m: f"projector.transfer.{3 * int(m[1]) + int(m[2])}")]
    inner = features // int(case["opt"]["factor"])
    projector = Beside(case, Projector, renamed, channels=f_s.shape[-1], inner=inner, features=features)
    given, network = (projector.params, projector.stats), projector.network
    linear = (case["param"]["teacher_classifier.weight"].T, case["param"]["teacher_classifier.bias"])
    made, stats = network.train(*given, f_s)
    assert_golden(nchw(made), case["out"]["projected"])
    assert_golden(classified(made, *linear), case["out"]["logits_train"])
    assert_golden(classified(network.predict(*given, f_s), *linear), case["out"]["logits_eval"])
    projector.assert_moved(stats)

    def loss(params, f):
        f_s, f_t = at_one_side(f, nhwc(case["in"]["f_t"]))
        return per_sample((network.train(params, projector.stats, f_s)[0] - f_t) ** 2)

    projector.assert_all(loss, student)


@pytest.mark.parametrize("case", cases("ofd"))
def test_ofd(case):
    student, teacher, given = listed(case, "s"), listed(case, "t"), case["in"]
    found = [margins(given[f"teacher_bn_weight{i}"], given[f"teacher_bn_bias{i}"]) for i in range(len(teacher))]
    for i, of_stage in enumerate(found):
        assert_golden(of_stage, case["out"][f"margin{i}"])
    channels = tuple((s.shape[-1], t.shape[-1]) for s, t in zip(student, teacher, strict=True))
    connectors = Beside(case, Connectors, channels=channels)
    _, stats = jax.jit(connectors.network.train)(connectors.params, connectors.stats, student)
    connectors.assert_moved(stats)

    def loss(params, maps):
        made = connectors.network.train(params, connectors.stats, maps)[0]
        return partial_distance(made, list(zip(teacher, found, strict=True)))

    connectors.assert_all(loss, student)


def test_margins_of_dead_channels():
    np.testing.assert_allclose(margins(jnp.zeros(3), jnp.array([-1.0, 0.0, 1.0])), [-1.0, 0.0, 0.0], atol=1e-6)


def test_variance_that_is_not_trained_stays_5():
    network = beside(setup(), Stages, channels=((3, 4),), trained_variance=False)
    params, stats = network.init(jax.random.key(0))
    ((_, variance),) = network.train(params, stats, [jnp.ones((1, 2, 2, 3))])[0]
    assert set(params) == {f"stages.0.conv{i}.kernel" for i in range(3)}
    np.testing.assert_allclose(variance, 5.0, rtol=1e-6)


SIDES = [(8, 4), (8, 3), (7, 4), (5, 5)]


@pytest.mark.parametrize("old,new", SIDES)
def test_averages_are_those_of_pytorch(old, new):
    x = np.random.default_rng(0).normal(size=(2, old, old + 1, 3)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(nchw(x)), (new, new)).numpy()
    np.testing.assert_allclose(nchw(averaged(x, (new, new))), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("old,new", [*SIDES, (4, 8), (3, 7)])
def test_nearest_pixels_are_those_of_pytorch(old, new):
    x = np.random.default_rng(0).normal(size=(2, old, old, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(nchw(x)), (new, new), mode="nearest").numpy()
    np.testing.assert_array_equal(nchw(nearest(jnp.asarray(x), (new, new))), expected)


def test_each_side_is_that_of_the_smaller():
    one, other = np.ones((2, 8, 4, 3), np.float32), np.ones((2, 6, 6, 5), np.float32)
    assert [x.shape for x in at_one_side(one, other)] == [(2, 6, 4, 3), (2, 6, 4, 5)]


@pytest.mark.parametrize("student,teacher", [((8, 8, 3), (12, 12, 3)), ((4, 8, 3), (4, 4, 3))])
def test_sides_that_no_regressor_brings_together(student, teacher):
    with pytest.raises(Unfit, match="accepted are sides"):
        Beside({"param": {}}, Regressor, student=student, teacher=teacher)


DEAD = np.zeros((4, 6, 6, 3), np.float32)
ALIVE = np.random.default_rng(0).normal(size=DEAD.shape).astype(np.float32)
LOSSES = {
    "at": lambda s, t: attention_loss(s, t, 2),
    "sp": lambda s, t: similarity_loss(*(similarities(flat(f), flat(f)) for f in (s, t))),
    "nst": discrepancy,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_stay_finite_where_maps_are_dead(name):
    step = jax.jit(jax.value_and_grad(lambda s, t: LOSSES[name](s, t).mean()))
    one_dead = ALIVE * np.array([1, 0, 1, 1], np.float32)[:, None, None, None]
    for student in (DEAD, one_dead, ALIVE * np.array([1, 0, 1], np.float32)[None, None, None], 1e4 * ALIVE):
        for pair in ((student, ALIVE), (ALIVE, student), (student, DEAD)):
            value, grad = step(*pair)
            assert np.isfinite(value) and np.isfinite(grad).all() and np.abs(grad).max() < 1e6
