#!/usr/bin/env bash
# What a GPU must show, in one command and within about nine minutes; results/gpu.py says what.
#     bash results/gpu.sh             on a machine with one GPU; needs no network
#     bash results/gpu.sh --quick     the same steps on a CPU, with Triton's interpreter and tiny models
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results}
case " $* " in *" --quick "*) out=${OUT:-$(mktemp -d)} ;; esac  # its times are not for results/
python results/gpu.py --out "$out/gpu.json" "$@" 2>&1 | tee "$out/gpu.log"
