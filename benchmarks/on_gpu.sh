#!/usr/bin/env bash
# What can be measured on a GPU, in at most eight minutes: benchmarks/on_gpu.sh [--device cuda] [--json FILE]
#
# Runs from a checkout. Without an environment in .venv it makes one: from requirements/tested.txt, or, where nothing can be
# downloaded, from the machine's own torch, torchvision and timm and the wheels of all else in the folder WHEELS. On a
# machine with the same Python, `pip download --no-deps -d wheels PACKAGE==VERSION ...` fills it with what `.venv/bin/pip list`
# shows beside these three.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv/bin/python ]; then
    if [ -n "${WHEELS:-}" ]; then
        python3 -c "import torch, torchvision, timm"
        python3 -m venv --system-site-packages .venv
        .venv/bin/pip install --quiet --no-index --no-deps "$WHEELS"/*.whl
    else
        python3 -m venv .venv
        .venv/bin/pip install --quiet -r requirements/tested.txt
    fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
exec timeout --signal=INT 480 .venv/bin/python -m benchmarks.on_gpu "$@"
