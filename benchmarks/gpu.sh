#!/usr/bin/env bash
# Everything that docs/performance.md wants of a GPU, in ten minutes on one card: speed, memory, and whether a cached run ends
# with the weights of the run without the cache. Uses the Python environment that is active. Writes benchmarks/results/gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/gpu.py --save "$@"
