"""What a pool costs over one of its members: forward and backward, by backbone. The ratio is what counts.

python -m scripts.bench_conv                                        # a pool of 4 of each family, batch 32
python -m scripts.bench_conv --models resnet20 --members 5 --batch 128 --plain
                                                                    # also jax.vmap of JAX's own convolution; slow
"""

import argparse
import time

import jax
import jax.numpy as jnp

from orc_jax import parallel
from orc_jax.losses import cross_entropy
from orc_jax.models import LARGE, MODELS
from orc_jax.pool import Pool, StackState, init, make_spec
from orc_jax.verbs import forward, gradients
from scripts.bench import measure
from scripts.programs import plain_vmap

FAMILIES = (
    "resnet20",
    "resnet8x4",
    "wrn_16_2",
    "vgg8",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "ResNet18",
    "wrn_20_8",
    "densenet_40_12",
    "plane10",
    "resnet18",
    "mobilenet_v2",
)


def prepare(model: str, members: int, batch: int, image_size: int):
    """A compiled forward and backward pass of `members` networks on one batch, and the seconds it took to compile."""
    shape = (image_size, image_size, 3)
    spec = make_spec([model] * members, num_classes=100, image_shape=shape, platform=jax.default_backend())
    params, batch_stats = jax.jit(lambda: init(spec, 0)[model])()
    images = jax.random.normal(jax.random.key(1), (batch, *shape))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, 100)

    def step(params):
        stack = StackState(params=params, batch_stats=batch_stats, opt_state=())
        passed = forward(Pool(spec=spec, stacks={model: stack}), images)
        loss = lambda logits: cross_entropy(logits, labels).mean(1).sum()  # noqa: E731
        cotangent = jax.tree.map(jnp.zeros_like, passed.outputs)._replace(logits=jax.grad(loss)(passed.logits))
        return gradients(passed, cotangent), passed.batch_stats

    lowered = jax.jit(step).lower(params)
    started = time.perf_counter()
    compiled = parallel.compiled(lowered, jax.default_backend(), long=True)
    seconds = time.perf_counter() - started
    jax.block_until_ready(compiled(params))
    return lambda: compiled(params), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=FAMILIES, choices=MODELS, metavar="MODEL")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--image_size", type=int, help="default: 32, and 64 for the networks of ImageNet")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="also measure jax.vmap of jax.lax's convolution")
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"forward and backward, batch {args.batch}, float32, {device}, jax {jax.__version__}")
    print(f"| | images | one member, s | pool of {args.members}, s | ratio | compile, s |\n|---|---|---|---|---|---|")
    for model in args.models:
        size = args.image_size or (64 if model in LARGE else 32)
        one, _ = prepare(model, 1, args.batch, size)
        many, compile_seconds = prepare(model, args.members, args.batch, size)
        rows = {model: (measure({"one": one, "many": many}, args.repeats), compile_seconds)}
        if args.plain:
            with plain_vmap():
                plain, compile_seconds = prepare(model, args.members, args.batch, size)
            rows[f"{model}, plain `vmap`"] = (measure({"one": one, "many": plain}, 1), compile_seconds)
        for name, (seconds, compile_seconds) in rows.items():
            one_wall, many_wall = seconds["one"].wall, seconds["many"].wall
            times = f"{one_wall:.3f} | {many_wall:.3f} | {many_wall / one_wall:.2f}"
            print(f"| {name} | {size}x{size} | {times} | {compile_seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
