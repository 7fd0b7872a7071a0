#!/usr/bin/env bash
# Makes .venv in the repository and installs orc_jax's requirements: the CUDA build of JAX where there is an NVIDIA GPU,
# the CPU build elsewhere. Nothing is done again while the requirements stay the same.
#   scripts/setup.sh [further requirements file ...]
# PYTHON chooses the interpreter (3.11 or 3.12), VENV the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

python=${PYTHON:-}
for candidate in python3.12 python3.11 python3; do
  [ -n "$python" ] && break
  "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && python=$candidate
done
if [ -z "$python" ]; then
  echo "setup.sh: needs Python 3.11 or 3.12; set PYTHON to one" >&2
  exit 2
fi

wanted=$(cat requirements.txt "$@" | { if nvidia-smi >/dev/null 2>&1; then cat; else sed 's/jax\[cuda12\]/jax/'; fi; })
if [ "$(cat "$venv/installed.txt" 2>/dev/null)" != "$wanted" ]; then
  "$python" -m venv "$venv"
  printf '%s\n' "$wanted" >"$venv/wanted.txt"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/wanted.txt"
  mv "$venv/wanted.txt" "$venv/installed.txt"
fi
