#!/usr/bin/env bash
# Installs what the tests need, and runs them. Arguments go to pytest: scripts/test.sh -k conv
# With -m aot also the compiler for TPUs, and with JAX=cuda12 that for NVIDIA GPUs (7 GB), into a folder of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ " $* " == *" aot "* ]]; then
  case ${JAX:=tpu} in cuda12) JAX=cuda12,tpu ;; esac
  export JAX VENV=${VENV:-.venv-aot}
fi
scripts/setup.sh requirements-prepare.txt requirements-dev.txt
"${VENV:-.venv}/bin/python" -m pytest "$@"
