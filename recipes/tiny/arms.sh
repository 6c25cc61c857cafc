#!/usr/bin/env bash
# The four ways on the same budget: 150 steps of 64 samples each, the same data, seed and draws.
#   bash recipes/tiny/arms.sh DATA RUNS
set -euo pipefail
data=$1 runs=$2
for arm in hybrid inline cross_attention flamingo; do
  init=(--set "train.init=$runs/words")
  [ "$arm" = flamingo ] && init=()  # a resampler has no concepts to start from
  isthmus train "recipes/tiny/$arm.toml" --data "$data" --out "$runs/arm-$arm" --quiet \
    --set train.steps=150 --set train.warmup=30 "${init[@]}"
  python recipes/tiny/measure.py --model "$runs/arm-$arm" --data "$data" --limit 300 \
    --out "$runs/arm-$arm/results.json" --tests dev-emoji dev-grocery dev-easyvqa
done
