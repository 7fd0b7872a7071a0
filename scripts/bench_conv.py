"""What a pool costs over one of its members: forward and backward of ResNet-20s, by members and by way of mapping.

python scripts/bench_conv.py                      # 1 and 5 members, batch 128: the ratio is what counts
python scripts/bench_conv.py --plain              # also jax.vmap without orc_jax's convolution; slow
"""

import argparse
import statistics
import time

import jax

from orc_jax import pool
from orc_jax.losses import cross_entropy
from orc_jax.models import MODELS, layers


def prepare(model: str, members: int, batch: int):
    """A compiled forward and backward pass of `members` networks on one batch."""
    networks = pool.make_pool([model] * members, num_classes=100, in_channels=3, dtype="float32", axis_name=None)
    params, batch_stats = jax.jit(lambda: pool.init(networks, 0))()
    images = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, 100)

    def loss(params):
        logits, moved = pool.train_logits(networks, params, batch_stats, images)
        return cross_entropy(logits, labels).mean(1).sum(), moved

    started = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()
    seconds = time.perf_counter() - started
    jax.block_until_ready(compiled(params))
    return lambda: compiled(params), seconds


def measure(programs: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each program, their runs interleaved so that a busy machine is unfair to all alike."""
    times = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", choices=MODELS)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="also measure jax.vmap of jax.lax's convolution")
    args = parser.parse_args()
    pool_name = f"pool of {args.members}"
    programs, compile_seconds = {}, {}
    for name, members in (("one member", 1), (pool_name, args.members)):
        programs[name], compile_seconds[name] = prepare(args.model, members, args.batch)
    seconds = measure(programs, args.repeats)
    if args.plain:
        layers.conv_general_dilated = jax.lax.conv_general_dilated
        plain, compile_seconds["plain vmap"] = prepare(args.model, args.members, args.batch)
        seconds |= measure({"plain vmap": plain}, 1)
    print(
        f"{args.model}, batch {args.batch}, forward and backward, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    print("| | seconds | of one member | compile, s |\n|---|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / seconds['one member']:.2f} | {compile_seconds[name]:.1f} |")


if __name__ == "__main__":
    main()
