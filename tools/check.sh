#!/usr/bin/env bash
# Set-up, then style, types and tests; arguments go to pytest (bash tools/check.sh -m slow).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
PY=$(bash tools/setup_env.sh --python)
workers=()
if "$PY" -c 'import xdist' 2>/dev/null; then
    workers=(-n 2)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi

# All run, whatever fails; pytest is last, so that its summary is the last line.
status=0
"$PY" -m ruff check . || status=1
"$PY" -m ruff format --check . || status=1
if grep -q '^\[tool.mypy\]' pyproject.toml; then
    "$PY" -m mypy || status=1
fi
"$PY" -m pytest "${workers[@]}" "$@" || status=1
exit $status
