#!/usr/bin/env bash
# Gated blocks before every layer, every 4th and every 7th: the same data, steps and seed.
#   bash recipes/every/run.sh DATA RUNS [--set section.key=value ...]
# DATA is what recipes/tiny/prepare.py wrote. A run that was stopped goes on. On a quiet machine:
# the table's samples a second are measured.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 runs=$2
shift 2
folders=()
for every in 1 4 7; do
  isthmus train "$here/run.toml" --data "$data" --out "$runs/every-$every" --quiet \
    --set "fusion.every=$every" "$@"
  folders+=("$runs/every-$every")
done
python "$here/table.py" "${folders[@]}" > "$runs/every.md"
cat "$runs/every.md"
