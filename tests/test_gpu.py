"""What only a GPU can tell: scripts/test.sh -m gpu. The same networks as on CPU, and the whole program.

The tests' own process stays on CPU; each test starts one on the GPU. ORC_JAX_TEST_PLATFORM names another platform.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orc_jax.workdir import metrics

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent
PLATFORM = os.environ.get("ORC_JAX_TEST_PLATFORM", "cuda")

STEPS = """
import functools, json, sys
import jax, numpy as np
from orc_jax import config, parallel
from orc_jax.data import sets
from orc_jax.run import build
from orc_jax.step import init_state, make_train_step
jax.config.update("jax_default_matmul_precision", "highest")
fields = config.default()
fields.method, fields.dtype, network = sys.argv[1:]
fields.update(dataset="digits", teacher=network, student=network, num_networks=4)
dataset = sets.load(fields, print)
run = build(config.resolve(fields, 1), dataset, jax.local_devices()[:1])
init = parallel.once(functools.partial(init_state, run.setup, run.method))
state = jax.device_put(init(0), run.sharding)
data = jax.device_put(dataset.train, run.sharding)
step = parallel.DataParallel(make_train_step(run.setup, run.method.iterate), run.devices, donate=True)
for i in range(3):
    state = step(state, data, parallel.shard(np.arange(64 * i, 64 * (i + 1), dtype=np.int32), 1))
totals = {name: np.asarray(value).tolist() for name, value in state.totals.items()}
print(json.dumps({"platform": jax.devices()[0].platform, "totals": totals}))
"""


def with_cpu(platform):
    """The platforms of a process, as they are where nothing is set."""
    return platform if platform == "cpu" else f"{platform},cpu"


def steps_on(platform, method, dtype, network="resnet8"):
    """The totals of three steps, in a process on `platform`."""
    environment = os.environ | {"JAX_PLATFORMS": with_cpu(platform), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", STEPS, method, dtype, network]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["platform"] == {"cuda": "gpu"}.get(platform, platform)
    return result["totals"]


@pytest.mark.parametrize("method", ["orc", "dml", "pcl"])
def test_three_steps_are_those_of_the_cpu(method):
    here, there = steps_on(PLATFORM, method, "float32"), steps_on("cpu", method, "float32")
    for name, values in there.items():
        np.testing.assert_allclose(here[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


def test_bfloat16():
    here, there = steps_on(PLATFORM, "orc", "bfloat16"), steps_on("cpu", "orc", "float32")
    np.testing.assert_allclose(here["loss"], there["loss"], rtol=0.1)


def test_transformers():
    there = steps_on("cpu", "orc", "float32", "deit_tiny_patch4_32")
    for dtype, rtol in (("float32", 1e-2), ("bfloat16", 0.1)):
        here = steps_on(PLATFORM, "orc", dtype, "deit_tiny_patch4_32")
        np.testing.assert_allclose(here["loss"], there["loss"], rtol=rtol, err_msg=dtype)


@pytest.mark.parametrize("flags", ["", "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"])
def test_a_run_learns_and_repeats_itself(flags, tmp_path):
    """With the flags of docs/reliability.md, bit for bit."""
    logged = []
    for name in ("one", "two") if flags else ("one",):
        fields = "teacher=resnet8 num_networks=3 num_epochs=10 pretrain_epochs=0 warmup_epochs=1 eval_every_epochs=10"
        fields = [f"--config.{field}" for field in [*fields.split(), "orc.pivot_lr_multiplier=1.0"]]
        command = [
            sys.executable,
            "-m",
            "orc_jax.main",
            f"--workdir={tmp_path / name}",
            "--compilation_cache=",
            *fields,
        ]
        environment = os.environ | {
            "JAX_PLATFORMS": with_cpu(PLATFORM),
            "XLA_FLAGS": flags if PLATFORM == "cuda" else "",
        }
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert metrics.read(tmp_path / name)[-1]["eval/top1/2_resnet8"] > 0.9
        logged.append((tmp_path / name / metrics.METRICS).read_bytes())
    assert len(set(logged)) == 1
