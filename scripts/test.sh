#!/usr/bin/env bash
# Installs what the tests need, and runs them. Arguments go to pytest: scripts/test.sh -k conv
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh requirements-prepare.txt requirements-dev.txt
"${VENV:-.venv}/bin/python" -m pytest "$@"
