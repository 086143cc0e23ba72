#!/usr/bin/env bash
# What can be measured on a GPU, in at most eight minutes: benchmarks/on_gpu.sh [--device cuda] [--json FILE]
#
# Runs from a checkout. Without an environment in .venv it makes one, from the folder WHEELS where nothing can be
# downloaded: `pip download -d wheels -r requirements/tested.txt` fills it on another machine of the same kind.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv/bin/python ]; then
    python3 -m venv .venv
    if [ -n "${WHEELS:-}" ]; then
        .venv/bin/pip install --quiet --no-index --find-links "$WHEELS" -r requirements/tested.txt
    else
        .venv/bin/pip install --quiet -r requirements/tested.txt
    fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
exec timeout --signal=INT 480 .venv/bin/python -m benchmarks.on_gpu "$@"
