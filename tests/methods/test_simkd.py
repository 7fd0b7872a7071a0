"""SimKD: a student is used with its projector and its teacher's classifier, wherever a run's members are used."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.data.augment import normalize
from orc_jax.deploy.ensemble import load_ensemble
from orc_jax.deploy.export import export_member
from orc_jax.deploy.import_torch import import_checkpoint
from orc_jax.deploy.member import classifier, load_member
from orc_jax.errors import UserError
from orc_jax.models.network import make_network
from orc_jax.pool import names_of
from orc_jax.verbs import head_of
from orc_jax.workdir import metrics
from tests.conftest import TINY
from tests.helpers import evaluate, final_state, train

load_file = pytest.importorskip("safetensors.numpy").load_file
pytestmark = pytest.mark.usefixtures("toy_set")


def unit_of(x, params, stats, i):
    """A layer of the projector, in evaluation mode."""
    size = params[f"units.{i}.0.kernel"].shape[0] // 2
    sides = [(size, size)] * 2
    y = jax.lax.conv_general_dilated(
        x, params[f"units.{i}.0.kernel"], (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    scaled = (np.asarray(y) - stats[f"units.{i}.1.mean"]) / np.sqrt(stats[f"units.{i}.1.var"] + 1e-5)
    return np.maximum(scaled * params[f"units.{i}.1.scale"] + params[f"units.{i}.1.bias"], 0)


def by_hand(state, toy, number):
    """A student's logits on the test images: its map, through its projector, before the teacher's classifier."""
    name, row, head_row = {1: ("tiny_a", 1, 0), 2: ("tiny_b", 0, 0)}[number]
    network = make_network(TINY[name], toy.num_classes, toy.image_shape, maps=("post",))
    student, head, teacher = (state.stacks[stack] for stack in (name, head_of(name), "tiny_a"))
    weights = jax.tree.map(lambda x: x[row], (student.params, student.batch_stats))
    images = normalize(jnp.asarray(toy.test.images), toy.mean, toy.std)
    x = jax.jit(network.predict)(*weights, images)[2]["maps"]["post"][-1]
    params, stats = jax.tree.map(lambda x: np.asarray(x[head_row]), (head.params, head.batch_stats))
    for i in range(3):
        x = unit_of(x, params, stats, i)
    return x.mean((1, 2)) @ teacher.params["fc.kernel"][0] + teacher.params["fc.bias"][0][None]


def test_members_are_used_with_the_teachers_classifier(config, toy, console, tmp_path):
    """In evaluation during training and after, by themselves and together, and as files."""
    config.method, config.num_networks, config.batch_norm = "simkd", 3, "global"
    config.teacher, config.assistants, config.student = "tiny_a", "tiny_a", "tiny_b"
    run = tmp_path / "run"
    train(config, run, console)
    state, probabilities = final_state(run, toy), []
    evaluate(config, run, "latest", console)
    result, last = json.loads((run / "evaluation_11.json").read_text()), metrics.read(run)[-1]
    for number, name in enumerate(names_of(["tiny_a", "tiny_a", "tiny_b"])):
        member = load_member(run, str(number), "latest")
        logits = jax.jit(classifier(member))(member.weights, toy.test.images)
        if number:
            np.testing.assert_allclose(logits, by_hand(state, toy, number), rtol=1e-4, atol=1e-4)
        top1 = np.mean(np.argmax(logits, 1) == toy.test.labels)
        np.testing.assert_allclose(last[f"eval/top1/{name}"], top1)
        np.testing.assert_allclose(result["members"][number]["top1"], top1)
        np.testing.assert_allclose(result["members"][number]["loss"], last[f"eval/loss/{name}"], rtol=1e-5)
        probabilities.append(jax.nn.softmax(logits))
    together = load_ensemble(run, "latest")(toy.test.images)
    np.testing.assert_allclose(together, np.mean(probabilities, 0), rtol=1e-4, atol=1e-5)

    export_member(run, "target", "latest", "safetensors", tmp_path / "student.safetensors")
    names = set(load_file(tmp_path / "student.safetensors"))
    with pytest.raises(UserError, match=r"holds tiny_b as used by simkd, which is more than that network"):
        import_checkpoint(tmp_path / "student.safetensors", None, tmp_path / "imported", mean=(), std=())
    assert {"classifier.weight", "classifier.bias", "projector.units.1.0.weight", "student.conv1.weight"} <= names
