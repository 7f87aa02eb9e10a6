#!/usr/bin/env bash
# Measure one GPU in under ten minutes: benchmarks/gpu.sh [--out FOLDER] [--job FOLDER] [--only PART...] [--dry-run]
# Uses $PYTHON, else .venv, else python3; where w2vtool cannot be imported, .venv is made first.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

ready() { "$1" -c 'import w2vtool.cli, w2vtool.trainer' 2>/dev/null; }

python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
if ! ready "$python"; then
    echo "w2vtool cannot be imported by $python: installing it into .venv" >&2
    "$python" -m venv --system-site-packages .venv  # a torch that is there is kept
    python=.venv/bin/python
    "$python" -m pip install --quiet -e ".[fast]" transformers
fi
exec timeout 600 "$python" benchmarks/gpu.py "$@"
