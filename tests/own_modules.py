"""Modules of a person's own, as they lie in a working directory."""

import contextlib
import sys

NETWORKS = """
from flax import nnx
from orc_jax.models.layers import global_average_pool, make_layers


class Net(nnx.Module):
    width = 5

    def __init__(self, num_classes, *, image_shape, dtype, axis_name, rngs):
        make = make_layers(dtype, axis_name, rngs)
        self.conv, self.bn = make.conv(image_shape[-1], self.width, 3, strides=2), make.norm(self.width)
        self.fc = make.linear(self.width, num_classes)

    def __call__(self, images):
        features = global_average_pool(nnx.relu(self.bn(self.conv(images))))
        return self.fc(features), features


class Big(Net):
    width = 7
"""


@contextlib.contextmanager
def lying_in(folder, monkeypatch, keep=(), **sources):
    """Writes modules to `folder`, the working directory from then on; but for those to `keep` they are forgotten."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    forget(*(name for name in sources if name not in keep))


def forget(*names):
    """As in another process: the modules are not imported any more."""
    for name in names:
        sys.modules.pop(name, None)
