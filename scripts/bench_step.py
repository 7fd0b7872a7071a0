"""A whole ORC iteration on random images: seconds and compile time, by when the temporary teacher's logits are taken.

python -m scripts.bench_step                      # the default pool of configs/cifar100.py
python -m scripts.bench_step --batch 128 --networks resnet20 resnet20 resnet20 resnet20 resnet20
"""

import argparse
import time

import jax
import numpy as np

from orc_jax import config, parallel
from orc_jax.data.sets import Dataset, Images
from orc_jax.models import MODELS
from orc_jax.run import build
from orc_jax.step import init_state, make_train_step
from scripts.bench_conv import measure


def prepare(variant: str, networks: list[str], batch: int):
    """A compiled training step with its arguments, and the seconds of its compilation."""
    fields = config.default()
    fields.orc.temporary_teacher_logits, fields.batch_size = variant, batch
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (batch, 32, 32, 3), np.uint8), rng.integers(0, 100, batch, np.int32))
    dataset = Dataset("random", images, images, tuple(map(str, range(100))), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    run = build(fields, dataset, jax.local_devices()[:1], networks)
    state = jax.device_put(init_state(run.setup, run.method, 0), run.sharding)
    data = jax.device_put(images, run.sharding)
    indices = parallel.shard(np.arange(batch, dtype=np.int32), 1)
    step = parallel.data_parallel(make_train_step(run.setup, run.method.iterate), run.devices, donate=False)
    lowered = step.lower(state, data, indices)
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    jax.block_until_ready(compiled(state, data, indices))
    return lambda: compiled(state, data, indices), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(config.members(config.default())), choices=MODELS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    programs, compile_seconds = {}, {}
    for variant in ("after", "before"):
        programs[variant], compile_seconds[variant] = prepare(variant, args.networks, args.batch)
    seconds = measure(programs, args.repeats)
    device = jax.devices()[0].device_kind
    print(f"{', '.join(args.networks)}; batch {args.batch}, {device}, jax {jax.__version__}")
    print("| temporary_teacher_logits | seconds | of `after` | compile, s |\n|---|---|---|---|")
    for name, value in seconds.items():
        print(f"| `{name}` | {value:.2f} | {value / seconds['after']:.2f} | {compile_seconds[name]:.0f} |")


if __name__ == "__main__":
    main()
