"""PCL: peers with a shared trunk, their ensemble teacher and their mean teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from orc_jax.config import default, resolve
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluator
from orc_jax.methods.branches import tie
from orc_jax.methods.pcl import ENSEMBLE, MEAN_TEACHERS, one_after_the_other
from orc_jax.testing import assert_close, assert_identical, assert_same_network
from tests.helpers import stepper_of
from tests.methods import torch_methods
from tests.methods.comparison import compared, use

OPTIONS = {"temperature": 2.0, "rampup_fraction": 0.5, "ema_decay": 0.4}  # a decay that the third step reaches


def peers(config):
    """Three peers, each with its own crops."""
    use(config, "pcl", "tiny_b", "tiny_b", "tiny_b", **OPTIONS)
    config.crop_padding = 2


def torch_classifier(head):
    classifier = torch.nn.Linear(head["kernel"].shape[1], head["kernel"].shape[2])
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor(np.asarray(head["kernel"][0])).T)
        classifier.bias.copy_(torch.tensor(np.asarray(head["bias"][0])))
    return classifier


def test_against_pytorch(config, toy):
    """Against one network with a single trunk: equal copies that share their gradients are the same thing."""
    peers(config)
    both = compared(config, toy)
    classifier = torch_classifier(both.start.stacks[ENSEMBLE].params)
    loop = torch_methods.PCL(both.nets, classifier, both.optimizer)
    for step, views, y in both:
        assert not torch.equal(views[0], views[1])
        weight = torch_methods.ramp(step / both.stepper.run.num_steps, 0.5)
        loop.iteration(views, y, 2.0, weight, 0.4)
    for i, mean in enumerate(loop.mean_branches):
        mean.conv1, mean.bn1 = loop.mean_trunk.conv1, loop.mean_trunk.bn1
        teacher = jax.tree.map(lambda x, i=i: x[i], both.state.stacks[MEAN_TEACHERS])
        assert_same_network(teacher, mean)
    both.check()
    head = both.state.stacks[ENSEMBLE].params
    np.testing.assert_allclose(head["kernel"][0].T, classifier.weight.detach(), rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(head["bias"][0], classifier.bias.detach(), rtol=1e-4, atol=2e-6)
    # What is shared is the same bit for bit, what is not differs.
    params = both.state.stacks["tiny_b"].params
    for i in (1, 2):
        np.testing.assert_array_equal(params["conv1.kernel"][i], params["conv1.kernel"][0])
        assert not np.array_equal(params["conv2.kernel"][i], params["conv2.kernel"][0])


def test_where_it_starts(config, toy):
    """The trunk is the target student's, branches are the members' own; the mean teachers are the peers."""
    peers(config)
    stepper = stepper_of(config, toy)
    start = stepper.init()
    stack, means, ensemble = (start.stacks[name] for name in ("tiny_b", MEAN_TEACHERS, ENSEMBLE))
    assert_identical((means.params, means.batch_stats), (stack.params, stack.batch_stats))
    assert not jax.tree.leaves(means.opt_state) and not ensemble.batch_stats
    config.method, config.num_networks, config.assistants = "independent", 1, ""
    alone = stepper_of(config, toy)
    assert_close(stepper.member(start, 2).params, alone.member(alone.init(), 0).params, rtol=1e-6, atol=1e-7)
    # The classifier as PyTorch's: U(-1/sqrt(n), 1/sqrt(n)) of all n features of the three peers.
    kernel, bias = np.asarray(ensemble.params["kernel"]), np.asarray(ensemble.params["bias"])
    assert kernel.shape == (1, 3 * 8, 3) and bias.shape == (1, 3)
    assert 0.9 * 24**-0.5 < np.abs(kernel).max() <= 24**-0.5 and 0 < np.abs(bias).max() <= 24**-0.5
    assert not np.isin(bias, kernel).any()
    assert not np.array_equal(stepper.init(1).stacks[ENSEMBLE].params["kernel"], kernel)


def test_ties():
    """One value for all peers of what is shared; the rest, and the ensemble's classifier, stay as they are."""
    x = jnp.arange(6.0).reshape(3, 2)
    trees = {"net": {"conv1.kernel": x, "fc.kernel": x}, ENSEMBLE: {"conv1.kernel": x}}
    tied = tie(trees, ["net"], lambda name: name == "conv1.kernel", lambda x: x.sum(0, keepdims=True))
    np.testing.assert_array_equal(tied["net"]["conv1.kernel"], [[6.0, 9.0]] * 3)
    np.testing.assert_array_equal(tied["net"]["fc.kernel"], x)
    np.testing.assert_array_equal(tied[ENSEMBLE]["conv1.kernel"], x)


def test_statistics_that_follow_each_batch():
    """0.9 old + 0.1 of the batch, three times: `moved` is where each batch alone would have moved them."""
    old, batches = 2.0, np.array([1.0, 5.0, -3.0])
    moved = jnp.array(0.9 * old + 0.1 * batches)
    expected = [old]
    for batch in batches:
        expected.append(0.9 * expected[-1] + 0.1 * batch)
    result = one_after_the_other(jnp.full(3, old), moved)
    np.testing.assert_allclose(result, expected[1:], rtol=1e-6)


def test_as_the_reproduction_has_it(config, toy):
    """Equal classifiers, and statistics that move once for each peer: further than by default."""
    peers(config)
    ends = {}
    for statistics in ("mean", "each"):
        config.pcl.trunk_statistics, config.pcl.classifiers = statistics, "equal"
        stepper = stepper_of(config, toy)
        start = stepper.init()
        fc = start.stacks["tiny_b"].params["fc.kernel"]
        np.testing.assert_array_equal(fc[0], fc[2])
        ends[statistics] = stepper(start, np.arange(16, dtype=np.int32))
    assert not np.array_equal(
        start.stacks["tiny_b"].params["conv2.kernel"][0], start.stacks["tiny_b"].params["conv2.kernel"][2]
    )
    for name in ("tiny_b", MEAN_TEACHERS):
        mean, each = (np.asarray(ends[kind].stacks[name].batch_stats["bn1.var"]) for kind in ("mean", "each"))
        np.testing.assert_array_equal(each, each[:1].repeat(3, 0))
        # towards the same batches, by 1 - 0.9^3 of the way and not by a tenth
        np.testing.assert_allclose((1 - each) / (1 - mean), 2.71, rtol=0.1)


def test_the_ensemble_is_its_classifier_on_the_features_of_all_peers(config, toy):
    peers(config)
    stepper = stepper_of(config, toy)
    state = stepper.init()
    result = evaluator(stepper.run)(state.stacks)
    images = jnp.asarray((toy.test.images / 255.0 - toy.mean[0]) / toy.std[0], jnp.float32)
    (stack,) = stepper.run.spec.stacks
    members = [stepper.member(state, i) for i in range(3)]
    features = [stack.network.predict(member.params, member.batch_stats, images)[1] for member in members]
    classifier = state.stacks[ENSEMBLE].params
    logits = np.float64(np.concatenate(features, axis=1) @ classifier["kernel"][0] + classifier["bias"])
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(30), toy.test.labels]
    np.testing.assert_allclose(result["ensemble"]["loss"], loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(result["ensemble"]["top1"], (logits.argmax(1) == toy.test.labels).mean())


def test_peers_are_of_one_architecture():
    config = default()
    config.method = "pcl"
    with pytest.raises(UserError, match=r"must be of one architecture, but the pool is resnet56.*=resnet20.*=copies"):
        resolve(config, 1)
    config.teacher, config.assistants = "resnet20", "copies"
    assert resolve(config, 1).architectures == ("resnet20",) * 5


def test_networks_without_a_known_last_stage_cannot_be_peers():
    config = default()
    config.method, config.teacher, config.student, config.assistants = "pcl", "plane4", "plane4", "copies"
    with pytest.raises(UserError, match=r"config.student='plane4' is not known.*Accepted: resnet8"):
        resolve(config, 1)
