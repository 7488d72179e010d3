#!/usr/bin/env bash
# Set-up, then style and tests; arguments go to pytest (bash tools/check.sh -m slow).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
PY=$(bash tools/setup_env.sh --python)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

# All three run, whatever fails; pytest comes last so that its summary is the last line.
status=0
"$PY" -m ruff check . || status=1
"$PY" -m ruff format --check . || status=1
"$PY" -m pytest "$@" || status=1
exit $status
