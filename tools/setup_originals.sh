#!/usr/bin/env bash
# Make an environment with OpenMMLab's original packages, all pure Python, and run the tests of
# that integration in it; the tested environment of setup_env.sh stays as it is.
#
#   bash tools/setup_originals.sh            set up and test
#   bash tools/setup_originals.sh --python   print the environment's python, install nothing
#
# ORIGINALS_VENV  folder of the environment, from the repository's root (.venv-originals)
# PYTHON          python that makes it; 3.10 or newer (python3)
# TORCH           versions of torch and torchvision, such as 'torch==2.4.1 torchvision==0.19.1'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

read -ra TORCH <<<"${TORCH:-torch==2.11.0 torchvision==0.26.0}"
ORIGINALS=(mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0)
OTHERS=('setuptools>=77,<82' 'numpy<3' scipy timm==1.0.31 scikit-learn pytest)
TESTS=(tests/integrations/openmmlab/test_backbones.py tests/integrations/openmmlab/test_conversion.py
    tests/integrations/openmmlab/test_distillation.py)

VENV=${ORIGINALS_VENV:-.venv-originals}
PY=$VENV/bin/python

fail() {
    echo "error: $*" >&2
    exit 2
}

case ${1:-} in
    --python) echo "$PY"; exit ;;
    '') ;;
    *) fail "unknown argument $1; there is --python" ;;
esac

if [ ! -x "$PY" ]; then
    "${PYTHON:-python3}" -m venv "$VENV" || fail "no virtual environment at $VENV; set PYTHON"
fi
"$PY" -m pip install --quiet "${TORCH[@]}" "${ORIGINALS[@]}" "${OTHERS[@]}" ||
    fail "pip could not install the originals; run it again to go on"
PYTHONPATH=. "$PY" -m pytest "${TESTS[@]}"
