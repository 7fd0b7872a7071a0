"""Weights of transformers for images of another size: position embeddings as timm resizes them."""

import functools

import numpy as np
import pytest
import safetensors.numpy
import torch

from orc_jax.deploy import positions
from orc_jax.deploy.import_torch import convert, import_checkpoint
from orc_jax.deploy.torch_layout import state_dict
from orc_jax.errors import UserError
from orc_jax.models import MODELS
from orc_jax.models.network import make_network, weight_shapes
from orc_jax.models.vit import Mixer, VisionTransformer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A transformer and a mixer for images of 32x32 pixels, of one block."""
    vit = functools.partial(VisionTransformer, features=8, heads=2, blocks=1, patch=4, image_shape=(32, 32, 3))
    monkeypatch.setitem(MODELS, "small_vit", vit)
    monkeypatch.setitem(MODELS, "small_mixer", functools.partial(Mixer, features=8, blocks=1, patch=4))


def arrays_of(name, size, classes=7):
    """A state dict with random weights."""
    rng, shapes = np.random.default_rng(0), weight_shapes(make_network(MODELS[name], classes, (size, size, 3)))
    params = {key: rng.normal(size=x.shape).astype(np.float32) for key, x in shapes[0].items()}
    return state_dict(params, {})


def by_pytorch(embeddings, grid):
    """What timm's `resample_abs_pos_embed` computes."""
    side = int((embeddings.shape[1] - 1) ** 0.5)
    image = torch.tensor(embeddings[:, 1:]).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = torch.nn.functional.interpolate(image, grid, mode="bicubic", antialias=True)
    changed = image.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).numpy()
    return np.concatenate([embeddings[:, :1], changed], axis=1)


@pytest.mark.parametrize("grid", [(14, 14), (24, 24), (5, 5), (3, 9), (7, 7)])
def test_resized_as_timm_does_it(grid):
    embeddings = np.random.default_rng(1).normal(size=(1, 50, 6)).astype(np.float32)
    np.testing.assert_allclose(positions.resized(embeddings, grid), by_pytorch(embeddings, grid), atol=2e-5)


def test_images_of_another_size():
    """Without a size it is that of the file; only the embeddings of patches change with it."""
    arrays = arrays_of("small_vit", 24)
    params, _, classes, shape = convert(arrays, "small_vit")
    assert (classes, shape) == (7, (24, 24, 3))
    np.testing.assert_array_equal(params["pos_embed"], arrays["pos_embed"])
    for size, grid in ((32, (8, 8)), ((16, 40), (4, 10))):
        changed, _, _, shape = convert(arrays, "small_vit", size)
        assert shape == (size if isinstance(size, tuple) else (size, size)) + (3,)
        np.testing.assert_allclose(changed.pop("pos_embed"), by_pytorch(arrays["pos_embed"], grid), atol=2e-5)
        for name, value in changed.items():
            np.testing.assert_array_equal(value, params[name])


def test_what_cannot_be_resized():
    """MLPs over tokens, and embeddings of another width."""
    with pytest.raises(
        UserError, match=r"of another shape: blocks\.0\.mlp_tokens\.fc1\.weight.*\n(.*\n)*.*--image_size"
    ):
        convert(arrays_of("small_mixer", 32), "small_mixer", 24)
    arrays = arrays_of("small_vit", 24)
    with pytest.raises(UserError, match=r"of another shape: pos_embed \(1, 37, 4\), needed is \(1, 65, 8\)"):
        convert(arrays | {"pos_embed": arrays["pos_embed"][..., :4]}, "small_vit", 32)


def test_the_command_takes_a_size(tmp_path):
    arrays = arrays_of("small_vit", 32, classes=10)
    safetensors.numpy.save_file({f"module.{name}": value for name, value in arrays.items()}, tmp_path / "a.safetensors")
    torch.save({"model": {name: torch.tensor(value) for name, value in arrays.items()}}, tmp_path / "a.pth")
    for file in ("a.safetensors", "a.pth"):
        for size in (None, 48):
            there = import_checkpoint(
                tmp_path / file, "small_vit", tmp_path / f"{file}{size}", mean=[], std=[], image_size=size
            )
            assert there.image_shape == (size or 32, size or 32, 3) and there.num_classes == 10
