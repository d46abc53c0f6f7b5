#!/usr/bin/env bash
# Make (or reuse) the environment .venv with stence_dist installed from this checkout.
#   bash launch/setup.sh                                       plain pip; on machines without a GPU this may bring CUDA
#   TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu bash launch/setup.sh      torch from another index, e.g. CPU only
#   PYTHON=/opt/python3.12/bin/python bash launch/setup.sh     a particular interpreter (3.11 or newer)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
stamp="$venv/.ready"
wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -d' ' -f1)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

newer() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=""
candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
for candidate in "${candidates[@]}"; do
    if newer "$candidate"; then
        # Not the one inside an environment: that may be the very .venv that is made again below.
        python=$("$candidate" -c 'import sys; print(sys._base_executable)')
        break
    fi
done
if [ -z "$python" ]; then
    found=$(for candidate in "${candidates[@]}"; do "$candidate" --version 2>/dev/null && break; done) || true
    echo "error: Python 3.11 or newer is needed, found: ${found:-none}. Install it, or name one: PYTHON=/path/to/python3.11 bash $0" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $python lacks the venv module. Install it (Debian, Ubuntu: apt-get install python3-venv), or name another interpreter: PYTHON=… bash $0" >&2
    exit 2
fi

if [ -e "$venv" ] && [ ! -e "$stamp" ]; then
    echo "error: $venv is there and was not made by this script. Move it away." >&2
    exit 2
fi
echo "Making $venv with $("$python" --version) (a few minutes, mostly downloads)"
if [ -z "${TORCH_INDEX_URL:-}" ]; then
    echo "torch comes from pip's own index: gigabytes of CUDA, also where there is no GPU. For the CPU build, set"
    echo "TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu"
fi
rm -rf "$venv"
mkdir "$venv"
touch "$stamp"  # empty: begun, and ours
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    pip --no-deps --index-url "$TORCH_INDEX_URL" --constraint "$root/constraints.txt" torch
fi
pip --constraint "$root/constraints.txt" --editable "$root[dev]"
echo "$wanted" >"$stamp"
