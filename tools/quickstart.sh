#!/usr/bin/env bash
# Set-up, then the main job on embedded data: swap a backbone, train, evaluate, show.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_env.sh
exec "$(bash tools/setup_env.sh --python)" tools/studies/quickstart.py "$@"
