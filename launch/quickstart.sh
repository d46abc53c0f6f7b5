#!/usr/bin/env bash
# The whole way on a synthetic cohort: files -> shards -> pretraining -> comparison at few labels -> report.
#   bash launch/quickstart.sh [out=quickstart] [seed=0]
# A second call reuses what is there. See launch/setup.sh for TORCH_INDEX_URL and PYTHON.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=quickstart
seed=0
for argument in "$@"; do
    case $argument in
        out=?*) out=${argument#out=} ;;
        seed=?*) seed=${argument#seed=} ;;
        -h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "error: $argument is not understood. usage: bash launch/quickstart.sh [out=quickstart] [seed=0]" >&2; exit 2 ;;
    esac
done
bash "$root/launch/setup.sh"
export PATH="$root/.venv/bin:$PATH"
started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=2
if [ "$gpus" -eq 1 ]; then ranks=1; fi
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

say "phantom cohort"
python "$root/launch/phantom.py" out="$out/cohort" seed="$seed" patients=2000 ecg_only=1800 ecg_only_test=1000
say "shards"
python "$root/shards/build.py" cohort="$out/cohort/cohort.csv" out="$out/shards" split_seed="$seed"
say "pretraining on $ranks ranks"
deepspeed --num_accelerators "$ranks" --master_port "$port" "$root/launch/pretrain.py" \
    data.shards="$out/shards" run_dir="$out/run" recipe=phantom seed="$seed"
say "probe, fine-tuning and scratch at few labels"
python "$root/launch/compare.py" data.shards="$out/shards" weights="$out/run/ecg_tower.safetensors" run_dir="$out/run/compare" repeats=1 seed="$seed"
say "report"
python "$root/launch/report.py" run_dir="$out/run"
say "done"
echo "$out/run/report.html"
echo "$out/run/compare/summary.json"
