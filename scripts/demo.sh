#!/usr/bin/env bash
# ORC on a fresh machine: installs, trains three networks on the embedded handwritten digits, trains the smallest of them
# alone with the same budget, and writes a report on what the pool was good for.
# The results go to runs/demo and runs/demo_alone, or to the folder given as the first argument and the one beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
bin=$(cd "${VENV:-.venv}/bin" && pwd)
workdir=${1:-runs/demo}
workdir=${workdir%/}
# 50 images of each class and 16 epochs: what takes a minute, not what makes the best networks.
budget=(--config=configs/digits.py --config.examples_per_class=50 --config.num_epochs=16 --config.pretrain_epochs=8)
budget+=(--config.teacher=resnet14 --config.eval_every_epochs=2)

# The student alone is trained beside the three, on what processors they leave idle, mostly while compiling.
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # on a GPU each would take most of its memory
alone=$(mktemp)
nice "$bin/orc-jax" "${budget[@]}" --config.num_networks=1 --config.method=independent --workdir="${workdir}_alone" \
  >"$alone" 2>&1 &
trap 'kill $! 2>/dev/null || true; rm -f "$alone"' EXIT

echo "1 of 3: a pivot teacher, and then three networks that teach each other"
"$bin/orc-jax" "${budget[@]}" --config.num_networks=3 --workdir="$workdir"
echo
echo "2 of 3: the target student alone, with the same budget, trained meanwhile"
status=0
wait $! || status=$?
cat "$alone"
[ $status = 0 ] || exit $status
echo
echo "3 of 3: what came of it"
"$bin/orc-jax-report" --workdir "$workdir"

where=$(cd "$workdir" && pwd)
cat <<END

The report is one file, for a browser. What else is in $where:
config.json, metrics.jsonl, checkpoints/, tensorboard/, and pivot/, the pivot teacher's own run. From here on, in any folder:

  source $bin/activate
  orc-jax-export --workdir $where --format safetensors --out student.safetensors   # the student as a file
  orc-jax --config=cifar100 --mode=describe                    # what a run on CIFAR-100 would be, and how long it takes
  orc-jax --help
END
