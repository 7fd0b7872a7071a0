"""What offline methods make of logits and embeddings, beside the golden values of the reference codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.losses import cross_entropy, distillation, norm, standardized, unit
from orc_jax.methods.cc import congruence
from orc_jax.methods.crd import contrast, draw, draw_anew, embeddings, remembered, similarities
from orc_jax.methods.dist import inter, intra
from orc_jax.methods.dkd import parts
from orc_jax.methods.mlkd import levels
from orc_jax.methods.offline import Seen, linear
from orc_jax.methods.pkt import divergence
from orc_jax.methods.rkd import of_angles, of_distances
from tests.methods.golden import assert_golden, assert_loss, cases
from tests.methods.test_verbs import normal


@pytest.mark.parametrize("case", cases("kd"))
def test_kd(case):
    of = case["in"]
    assert_loss(lambda z: distillation(z, of["logits_t"], case["opt"]["T"]).mean(), case, ["logits_s"])


@pytest.mark.parametrize("case", cases("kd_logit_standardisation"))
def test_kd_on_standardized_logits(case):
    teacher = standardized(case["in"]["logits_t"])
    assert_golden(standardized(case["in"]["logits_s"]), case["out"]["standardised_s"])
    assert_loss(lambda z: distillation(standardized(z), teacher, case["opt"]["T"]).mean(), case, ["logits_s"])


@pytest.mark.parametrize("case", cases("dkd"))
def test_dkd(case):
    of, opt = case["in"], case["opt"]

    def loss(z):
        binary, others = parts(z, of["logits_t"], of["labels"], opt["T"])
        return (opt["alpha"] * binary + opt["beta"] * others).mean()

    binary, others = jax.jit(parts)(of["logits_s"], of["logits_t"], of["labels"], opt["T"])
    assert_golden(binary.mean(), case["out"]["tckd"])
    assert_golden(others.mean(), case["out"]["nckd"])
    assert_loss(loss, case, ["logits_s"])


@pytest.mark.parametrize("case", cases("dkd_logit_standardisation"))
def test_dkd_on_standardized_logits(case):
    of, opt = case["in"], case["opt"]

    def loss(z):
        binary, others = parts(standardized(z), standardized(of["logits_t"]), of["labels"], opt["T"])
        return (opt["alpha"] * binary + opt["beta"] * others).mean()

    assert_loss(loss, case, ["logits_s"])


@pytest.mark.parametrize("case", cases("dist"))
def test_dist(case):
    opt, given = case["opt"], (case["in"]["logits_t"], case["opt"]["tau"])
    for name, of in {"inter": inter, "intra": intra}.items():
        assert_golden(jax.jit(of)(case["in"]["logits_s"], *given).mean(), case["out"][name])

    def loss(z):
        return opt["beta"] * inter(z, *given).mean() + opt["gamma"] * intra(z, *given).mean()

    assert_loss(loss, case, ["logits_s"])


@pytest.mark.parametrize("case", cases("mlkd"))
def test_mlkd(case):
    of, opt = case["in"], case["opt"]

    def terms(weak, strong):
        of_labels = sum(cross_entropy(z, of["labels"]).mean() for z in (weak, strong))
        given = (weak, strong, of["logits_t_weak"], of["logits_t_strong"], opt["T"], opt["logit_standardisation"])
        return opt["ce_weight"] * of_labels, *(opt["kd_weight"] * level for level in levels(*given))

    students = [of["logits_s_weak"], of["logits_s_strong"]]
    for term, name in zip(jax.jit(terms)(*students), ("ce", "kd", "cc", "bc"), strict=True):
        assert_golden(term, case["out"][f"loss_{name}"])
    assert_loss(lambda *z: sum(terms(*z)), case, ["logits_s_weak", "logits_s_strong"])


@pytest.mark.parametrize("case", cases("rkd"))
def test_rkd(case):
    opt, teacher = case["opt"], case["in"]["f_t"]
    assert_golden(jax.jit(of_distances)(case["in"]["f_s"], teacher), case["out"]["loss_distance"])
    assert_golden(jax.jit(of_angles)(case["in"]["f_s"], teacher), case["out"]["loss_angle"])

    def loss(h):
        return opt["w_d"] * of_distances(h, teacher) + opt["w_a"] * of_angles(h, teacher)

    assert_loss(loss, case, ["f_s"])


@pytest.mark.parametrize("case", cases("pkt"))
def test_pkt(case):
    assert_loss(lambda h: divergence(h, case["in"]["f_t"]), case, ["f_s"])


def embedded(case):
    """The linear embeddings of a case, as an adapter has them."""
    names = {"student": "embed_s", "teacher": "embed_t"}
    kernels = {f"{ours}.kernel": case["param"][f"{theirs}.linear.weight"].T for ours, theirs in names.items()}
    return kernels | {f"{ours}.bias": case["param"][f"{theirs}.linear.bias"] for ours, theirs in names.items()}


def assert_gradients(grads, expected):
    """Those of the embeddings."""
    for ours, theirs in {"student": "embed_s", "teacher": "embed_t"}.items():
        assert_golden(grads[f"{ours}.kernel"].T, expected[f"{theirs}.linear.weight"])
        assert_golden(grads[f"{ours}.bias"], expected[f"{theirs}.linear.bias"])


@pytest.mark.parametrize("case", cases("cc"))
def test_cc(case):
    def loss(h, params):
        return congruence(linear(params, "student", h), linear(params, "teacher", case["in"]["f_t"]))

    params = embedded(case)
    assert_loss(lambda h: loss(h, params), case, ["f_s"])
    assert_gradients(jax.jit(jax.grad(loss, 1))(case["in"]["f_s"], params), case["grad_param"])


@pytest.mark.parametrize("case", cases("crd"))
def test_crd(case):
    """Two iterations, one after the other: banks and constants go from the first to the second."""
    opt, params, size = case["opt"], embedded(case), case["opt"]["n_data"]
    banks = {name: jnp.asarray(case["buffer"][f"memory_{name[0]}"]) for name in ("student", "teacher")}
    log_z = None
    for step in ("step1", "step2"):
        of, out = (
            {k.removesuffix(f"_{step}"): x for k, x in case[g].items() if k.endswith(step)} for g in ("in", "out")
        )

        def scored(h, params, of=of, banks=banks):
            e = embeddings(params, Seen(None, h), Seen(None, of["f_t"]))
            against = (banks["teacher"], banks["student"])
            found = [similarities(x, bank, of["contrast_index"]) for x, bank in zip(e, against, strict=True)]
            return jnp.stack(found) / opt["nce_t"], e

        if log_z is None:
            found, _ = jax.jit(scored)(of["f_s"], params)
            log_z = np.log(np.exp(found).mean((1, 2)) * size)

        def loss(h, params, log_z=log_z, scored=scored):
            return contrast(scored(h, params)[0] - log_z[:, None, None], size).sum(0).mean()

        assert_golden(np.exp(log_z), np.array([out["Z_s"], out["Z_t"]]))
        value, (grad, grads) = jax.jit(jax.value_and_grad(loss, (0, 1)))(of["f_s"], params)
        assert_golden(value, out["loss"])
        assert_golden(grad, case[f"grad_{step}"][f"f_s_{step}"])
        assert_gradients(grads, case[f"grad_param_{step}"])
        _, e = jax.jit(scored)(of["f_s"], params)
        for name, seen in zip(banks, e, strict=True):
            banks[name] = jax.jit(remembered)(banks[name], of["index"], seen, opt["nce_m"])
            assert_golden(banks[name], case["after"][f"memory_{name[0]}_{step}"])


@pytest.mark.parametrize("drawn", [draw, draw_anew])
def test_negatives_are_of_other_classes(drawn):
    labels = jnp.array([2, 0, 1, 0, 2, 2, 0, 1, 1, 3])
    of_class = jax.jit(jax.vmap(lambda key, own: drawn(key, labels, own, 5), (0, None)))
    for own in range(4):
        rows = np.asarray(of_class(jax.random.split(jax.random.key(own), 300), own))
        assert set(rows.ravel()) == set(np.flatnonzero(labels != own))
        counts = np.bincount(rows.ravel(), minlength=10)[labels != own]
        assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean()
        assert all(len(set(row)) == 5 for row in rows) == (drawn is draw)
    more = np.asarray(drawn(jax.random.key(0), labels, 0, 16))  # of seven
    assert more.shape == (16,) and set(more) <= set(np.flatnonzero(labels))
    if drawn is draw:
        assert sorted(np.bincount(more, minlength=10)[labels != 0]) == [2] * 5 + [3] * 2


def test_a_bank_keeps_the_last_of_an_example():
    """And rows of examples that are not in the batch stay, bit for bit."""
    bank, seen = normal(0, 5, 3), normal(1, 4, 3)
    after = remembered(bank, jnp.array([2, 4, 2, 0]), seen, 0.25)
    expected = np.array(bank)
    for row, e in ((2, 2), (4, 1), (0, 3)):
        mixed = 0.25 * bank[row] + 0.75 * seen[e]
        expected[row] = mixed / np.linalg.norm(mixed)
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    np.testing.assert_array_equal(after[jnp.array([1, 3])], bank[jnp.array([1, 3])])


ZEROS = np.zeros((4, 6), np.float32)
FEATURES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
LABELS = np.array([0, 1, 5, 1], np.int32)
EXTREME = 1e4 * np.sign(FEATURES)
OF_LOGITS = {
    "kd": lambda s, t: distillation(s, t, 4.0).mean(),
    "standardized": lambda s, t: distillation(standardized(s), standardized(t), 2.0).mean(),
    "binary": lambda s, t: parts(s, t, LABELS[: len(s)], 1.0)[0].mean(),
    "others": lambda s, t: parts(s, t, LABELS[: len(s)], 1.0)[1].mean(),
    "inter": lambda s, t: inter(s, t, 1.0).mean(),
    "mlkd": lambda s, t: sum(levels(s, -s, t, s + t, 1.0, True)),
    "intra": lambda s, t: intra(s, t, 1.0).mean(),
}
OF_FEATURES = {
    "crd": lambda s, t: contrast(s - t, 8).sum(),
    "distances": of_distances,
    "angles": of_angles,
    "pkt": divergence,
    "cc": congruence,
}
HARD = {
    "zeros": ZEROS,
    "one dead": FEATURES * np.array([1, 0, 1, 1], np.float32)[:, None],
    "equal": np.broadcast_to(FEATURES[:1], FEATURES.shape),
    "constant": np.full_like(FEATURES, 3.3),
    "extreme": EXTREME,
    "one sample": FEATURES[:1],
}


@pytest.mark.parametrize("name", [*OF_LOGITS, *OF_FEATURES])
def test_losses_and_gradients_stay_finite(name):
    """Where norms are zero, samples equal, logits far apart, or there is one sample alone."""
    loss = (OF_LOGITS | OF_FEATURES)[name]
    step = jax.jit(jax.value_and_grad(loss))
    for case, given in HARD.items():
        for other in (FEATURES[: len(given)], -given):
            for student, teacher in ((given, other), (other, given)):
                value, grad = step(student, teacher)
                assert np.isfinite(value) and np.isfinite(grad).all(), case
                assert np.abs(grad).max() < 1e6, case


def test_norms_at_zero():
    for x in (ZEROS, 1e-30 + ZEROS):
        for function in (norm, unit, standardized):
            grad = jax.grad(lambda x, f=function: f(x).sum())(jnp.asarray(x))
            np.testing.assert_array_equal(grad, ZEROS)
    np.testing.assert_allclose(norm(FEATURES)[:, 0], np.linalg.norm(FEATURES, axis=1), rtol=1e-6)
    np.testing.assert_allclose(unit(FEATURES), FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True), rtol=1e-6)
