#!/usr/bin/env bash
# Make or update a virtual environment with the versions of tools/constraints.txt. After an
# interruption, run it again: finished steps are kept.
#
#   bash tools/setup_env.sh             about 3 minutes, 8 more if mmcv must be compiled
#   bash tools/setup_env.sh --python    print the environment's python, install nothing
#   GHOST_VENV=current bash tools/setup_env.sh    check the active python, install nothing
#
# GHOST_VENV  folder of the environment, from the repository's root (.venv), or current
# PYTHON      python that makes it, or that is checked; 3.10 or newer (python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STEPS=(
    'torch: 2 to 5 minutes, 3 GB to download|torch torchvision'
    'build tools: seconds|setuptools wheel ninja psutil'
    'mmcv|'
    'OpenMMLab: 1 minute|--no-build-isolation onedl-mmengine onedl-mmdetection onedl-mmpretrain'
    'timm and tools: 1 minute|timm scipy rich onnx onnxruntime onnxscript openvino torch-pruning
        scikit-learn matplotlib fvcore hypothesis pytest pytest-xdist ruff mypy pdoc
        jupytext nbclient ipykernel'
    'other frameworks: half a minute|segmentation-models-pytorch lightning transformers'
    'ghost_plugin: seconds|--no-deps --no-build-isolation -e .'
)
VENV=${GHOST_VENV:-.venv}
PYTHON=${PYTHON:-python3}
[ "${VENV#/}" != "$VENV" ] || [ "$VENV" = current ] || VENV=$PWD/$VENV
PY=$VENV/bin/python

fail() {
    echo "error: $*" >&2
    exit 2
}

if [ "$VENV" = current ]; then
    PY=$(command -v "$PYTHON") || fail "no $PYTHON on PATH; set PYTHON"
fi
case ${1:-} in
    --python) echo "$PY"; exit ;;
    --help | -h) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    '') ;;
    *) fail "unknown argument $1; see --help" ;;
esac
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$PYTHON is not a python of 3.10 or newer; set PYTHON to one"

if [ "$VENV" = current ]; then
    missing=
    for name in torch torchvision mmengine mmcv.ops mmdet mmpretrain timm scipy rich sklearn \
        matplotlib pytest ghost_plugin; do
        # The working directory holds the package, too, and does not count.
        if ! said=$("$PY" -W ignore -c "import sys; sys.path.remove(''); import $name" 2>&1); then
            missing="$missing $name"
            echo "  $name: $(tail -n 1 <<<"$said")" >&2
        fi
    done
    [ -z "$missing" ] || fail "$PY cannot import$missing; $PWD/tools/constraints.txt has the tested" \
        "versions (mmcv with ops: MMCV_WITH_OPS=1 pip install --no-build-isolation onedl-mmcv)"
    echo "environment ready: $PY has all that is needed"
    exit
fi

# The log is made first: it shows that a folder without a whole environment is ours.
LOG=$VENV/setup.log
READY=$VENV/ready # checksum of everything that decides what is installed
if [ -n "$(ls -A "$VENV" 2>/dev/null)" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ ! -e "$LOG" ]; then
    fail "$VENV is not a virtual environment"
fi
mkdir -p "$VENV" 2>/dev/null || fail "cannot make the folder $VENV"
exec 9<"$VENV"
if command -v flock >/dev/null && ! flock -n 9; then
    echo "waiting for another set-up in $VENV"
    flock 9
fi
touch "$LOG"
wanted=$(cat tools/constraints.txt tools/setup_env.sh pyproject.toml | cksum)

# A step runs in a process group of its own, which ends with this script.
JOB=
stop() {
    trap '' INT TERM HUP
    [ -z "$JOB" ] || kill -TERM -- "-$JOB" 2>/dev/null || true
    echo "interrupted; finished steps are kept, run the same command again to continue" >&2
    exit 130
}
trap stop INT TERM HUP

# job COMMAND...: run it, output into the log; a terminal shows the seconds, compiling its files.
job() {
    local status=0 start=$SECONDS line every=15
    [ ! -t 1 ] || every=1
    printf '\n== %s\n' "$*" >>"$LOG"
    set -m
    "$@" >>"$LOG" 2>&1 </dev/null &
    JOB=$!
    set +m
    while sleep 1 && kill -0 "$JOB" 2>/dev/null; do
        [ $(((SECONDS - start) % every)) = 0 ] || continue
        line="  $((SECONDS - start)) s"
        [ ! -d "$SOURCE/build" ] || line="$line, $(find "$SOURCE/build" -name '*.o' | wc -l) of about 120 files compiled"
        if [ -t 1 ]; then printf '\r%s ' "$line"; elif [ -d "$SOURCE/build" ]; then echo "$line"; fi
    done
    [ ! -t 1 ] || printf '\r\033[K'
    wait "$JOB" || status=$?
    JOB=
    return $status
}

pip_install() {
    "$PY" -m pip install --disable-pip-version-check -c tools/constraints.txt "$@"
}

fail_step() {
    if tail -n 40 "$LOG" | grep -qiE 'NewConnectionError|MaxRetryError|timed out|resolve host'; then
        fail "$1: the package index cannot be reached; log: $LOG"
    fi
    grep -v '^[[:space:]]*$' "$LOG" | tail -n 5 | cut -c1-200 >&2
    fail "$1 failed, log: $LOG; run the same command again to continue"
}

# Compile in a folder that stays, so that ninja continues with the objects after an interruption.
SOURCE=$VENV/build/mmcv
compile_mmcv() {
    local sdist=$VENV/build/sdist gpu
    if [ ! -e "$SOURCE/setup.py" ]; then
        rm -rf "$sdist" "$SOURCE"
        "$PY" -m pip download --no-deps --no-build-isolation --no-binary onedl-mmcv \
            -c tools/constraints.txt -d "$sdist" onedl-mmcv || return
        mkdir -p "$SOURCE.part"
        tar -xzf "$sdist"/*.tar.gz -C "$SOURCE.part" --strip-components 1 && mv "$SOURCE.part" "$SOURCE" || return
    fi
    # A CUDA build needs a GPU that works and a compiler for it.
    gpu=$("$PY" -W ignore -c 'import torch, torch.utils.cpp_extension as c
print(int(torch.cuda.is_available() and c.CUDA_HOME is not None))') || return
    [ "$gpu" = 1 ] || export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=
    PATH=$VENV/bin:$PATH CFLAGS="-O1 -g0" MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} "$PY" -m pip \
        wheel -v --no-build-isolation --no-deps -w "$VENV/build/wheels" "$SOURCE" &&
        pip_install --force-reinstall --no-deps "$VENV"/build/wheels/*.whl
}

has_ops() {
    "$PY" -W ignore -c 'import mmcv.ops' 2>>"$LOG"
}

install_mmcv() {
    ! has_ops || return 0
    if job pip_install --only-binary onedl-mmcv onedl-mmcv && has_ops; then
        return
    fi
    command -v "${CXX:-c++}" >/dev/null || fail "mmcv must be compiled; install a C++ compiler (g++)"
    echo "compiling mmcv's ops: about 8 minutes on 2 cores"
    job compile_mmcv && job pip_install onedl-mmcv && has_ops || fail_step 'compiling mmcv'
    rm -rf "$SOURCE"
}

has_pip() {
    "$PY" -m pip --version >/dev/null 2>&1
}

if ! has_pip || [ "$(cat "$READY" 2>/dev/null)" != "$wanted" ]; then
    if ! has_pip; then
        echo "making a virtual environment in $VENV: seconds"
        job "$PYTHON" -m venv "$VENV" || fail "$PYTHON cannot make a virtual environment" \
            "(Debian and Ubuntu: apt install python3-venv); log: $LOG"
    fi
    for step in "${STEPS[@]}"; do
        echo "installing ${step%%|*}"
        read -rd '' -a arguments <<<"${step#*|}" || true
        if [ "${step%%|*}" = mmcv ]; then
            install_mmcv
        else
            job pip_install "${arguments[@]}" || fail_step "installing ${step%%|*}"
        fi
    done
    echo "$wanted" >"$READY"
fi
echo "environment ready: source $(printf %q "$VENV/bin/activate")"
