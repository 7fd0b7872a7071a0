#!/usr/bin/env bash
# ORC on a fresh machine: installs, trains five networks on the embedded handwritten digits, and evaluates the checkpoint.
# The results go to runs/demo, or to the folder given as the first argument.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
python=${VENV:-.venv}/bin/python
workdir=${1:-runs/demo}

"$python" -m orc_jax.main --config configs/digits.py --config.num_networks=5 --workdir="$workdir"
"$python" -m orc_jax.main --config configs/digits.py --config.num_networks=5 --workdir="$workdir" --mode=evaluate

echo
echo "The results are in $workdir:"
echo "  config.json, metrics.jsonl, evaluation_*.json, checkpoints/, tensorboard/, and pivot/ (the pivot teacher's own run)"
echo "Curves:  tensorboard --logdir $workdir"
