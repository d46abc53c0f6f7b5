#!/usr/bin/env bash
# Lint, types and the whole test suite in the project's own environment; SLOW=1 adds the slow tests.
#   bash tests/run.sh [pytest arguments]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh"
export PATH="$root/.venv/bin:$PATH" OMP_NUM_THREADS=1
cd "$root"
ruff check .
ruff format --check .
mypy
marks=()
if [ "${SLOW:-0}" = 0 ]; then marks=(-m "not slow"); fi
# In the order of collection: files with few tests, which would come last otherwise, are those that take minutes.
exec python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0 "${marks[@]}" "$@"
