"""FitNets: Hints for Thin Deep Nets (Romero, Ballas, Kahou, Chassang, Gatta, Bengio; ICLR 2015; arXiv 1412.6550).

A map in the middle of the student, through a *regressor* R, becomes the one in the middle of the teacher, the hint:

    CE + w mean (R(f_s) - f_t)^2        R: convolution, batch normalisation, ReLU

NOTE(paper): the paper trains in two stages, up to the hint first, and then by KD. This is what the field's tables have
(RepDistiller, mdistiller): everything together, from the labels and the hint.
"""

from collections.abc import Sequence

import jax
from flax import nnx

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.methods.base import Method
from orc_jax.methods.maps import beside, moved, per_sample, shape_of, starting, weighed
from orc_jax.methods.offline import Adapter, Seen, Unfit, offline
from orc_jax.models import FEATURE_POINTS
from orc_jax.models.layers import Layers, torch_uniform
from orc_jax.models.network import Network, Params
from orc_jax.verbs import Context, Setup

Shape = tuple[int, int, int]  # height, width, channels


class Regressor(nnx.Module):
    """A student's map at the sides and with the channels of a teacher's.

    `activated` by ReLU at the end, which a map of both signs, such as a WRN's, is out of reach for.

    Raises:
        Unfit: where no such convolution has the sides of the teacher's map.
    """

    def __init__(self, layers: Layers, *, student: Shape, teacher: Shape, activated: bool = True):
        self.conv = convolution(layers, student, teacher)
        self.bn = layers.norm(teacher[-1])
        self.activated = activated

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.bn(self.conv(x))
        return nnx.relu(x) if self.activated else x


def convolution(layers: Layers, student: Shape, teacher: Shape) -> nnx.Conv:
    """That of RepDistiller's regressors, with PyTorch's initial weights: it halves, doubles or cuts the sides."""
    (side, width, channels), (side_t, width_t, channels_t) = student, teacher
    if (side, width) == (2 * side_t, 2 * width_t):
        kernel_size, options = 3, {"strides": 2}
    elif (2 * side, 2 * width) == (side_t, width_t):
        fan_in = channels_t * 4 * 4  # PyTorch's, of a transposed convolution
        init = torch_uniform(fan_in)
        return layers.conv(channels, channels_t, 4, padding=2, input_dilation=2, kernel_init=init, bias_init=init)
    elif side >= side_t and side - side_t == width - width_t:
        kernel_size, options = side - side_t + 1, {"padding": 0}
    else:
        raise Unfit(
            f"its map of {side}x{width} cannot be brought to {side_t}x{width_t}; accepted are sides that are equal, "
            "larger, or half of the teacher's"
        )
    bias_init = torch_uniform(channels * kernel_size**2)
    return layers.conv(channels, channels_t, kernel_size, bias_init=bias_init, **options)


def fitnets(architectures: Sequence[str], *, weight: float = 100.0, layer: int = 2) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        weight: w; 100 in the field's tables.
        layer: which of the feature points is hint and guided, counted from the stem as 0. 2 in the field's tables.
    """
    weighed("fitnets", weight)
    most = min(FEATURE_POINTS.get(name, layer + 1) for name in architectures) - 1
    require("config.fitnets.layer", layer, 0 <= layer <= most, f"from 0 to {most}, the feature points of this pool")

    def of(seen: Seen) -> jax.Array:
        if len(seen.maps["post"]) <= layer:
            raise Unfit(f"a network of {len(seen.maps['post'])} feature points has none of number {layer}")
        return seen.maps["post"][layer]

    def network(setup: Setup, student: Seen, teacher: Seen) -> Network:
        return beside(setup, Regressor, student=shape_of(of(student)), teacher=shape_of(of(teacher)))

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        regressed, _ = moved(network(context.setup, student, teacher), adapter, of(student))
        hint = per_sample((regressed - of(teacher)) ** 2)
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * hint

    def keep(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> Params:
        return moved(network(context.setup, student, teacher), adapter, of(student))[1]

    return offline(
        "fitnets", architectures, loss, adapter=starting(network), keep=keep, maps=("post",), values=("weight",)
    )
