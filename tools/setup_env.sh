#!/usr/bin/env bash
# Make or reuse a virtual environment with the tested versions.
#
#   bash tools/setup_env.sh             set up (GHOST_VENV names the folder, .venv without it)
#   bash tools/setup_env.sh --python    print the environment's python, install nothing
#   GHOST_VENV=current bash tools/setup_env.sh    check the active python, install nothing
#
# PYTHON names the python that makes the environment (3.10 or newer; python3 without it).
set -euo pipefail

# The tested versions, in the order in which they are installed.
TORCH=(torch==2.11.0 torchvision==0.26.0)
BUILD=('setuptools>=77,<82' wheel ninja psutil)
MMCV=onedl-mmcv==2.3.6
OPENMMLAB=(onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1 onedl-mmpretrain==1.3.6)
OTHERS=(timm==1.0.31 scipy scikit-learn matplotlib rich fvcore pytest hypothesis ruff onnx onnxruntime)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${GHOST_VENV:-.venv}
PYTHON=${PYTHON:-python3}

fail() {
    echo "error: $*" >&2
    exit 2
}

if [ "$VENV" = current ]; then
    PY=$(command -v "$PYTHON") || fail "no $PYTHON on PATH; set PYTHON"
else
    case $VENV in /*) ;; *) VENV=$ROOT/$VENV ;; esac
    PY=$VENV/bin/python
fi

case ${1:-} in
    --python) echo "$PY"; exit 0 ;;
    --help | -h) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    '') ;;
    *) fail "unknown argument $1; see --help" ;;
esac

check_current() {
    "$PY" - "$ROOT" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
NEEDED = {
    'torch': 'torch', 'torchvision': 'torchvision', 'scipy': 'scipy', 'timm': 'timm',
    'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmcv.ops': 'onedl-mmcv (with compiled ops)',
    'mmdet': 'onedl-mmdetection', 'mmpretrain': 'onedl-mmpretrain', 'sklearn': 'scikit-learn',
    'matplotlib': 'matplotlib', 'pytest': 'pytest', 'ghost_plugin': '-e .',
}
missing = []
for name, package in NEEDED.items():
    try:
        __import__(name)
    except Exception as error:
        missing.append(f'  {name}: pip install {package}   ({type(error).__name__}: {error})'.splitlines()[0])
if missing:
    print('error: this environment lacks', len(missing), 'of', len(NEEDED), 'packages:', file=sys.stderr)
    print('\n'.join(missing), file=sys.stderr)
    sys.exit(2)
print('this environment has all that is needed')
PY
}

if [ "$VENV" = current ]; then
    check_current
    exit
fi

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$PYTHON is not a python of 3.10 or newer; set PYTHON to one"

LOG=$VENV/setup.log
STAMPS=$VENV/stamps

# A folder that was cut off while it was made has no working pip.
if ! "$PY" -m pip --version >/dev/null 2>&1; then
    echo "making a virtual environment in $VENV: seconds"
    "$PYTHON" -m venv --clear "$VENV" || fail "cannot make a virtual environment; on Debian: apt install python3-venv"
fi
mkdir -p "$STAMPS"

# step NAME WHAT COMMAND...: run once; a stamp holds the command, so that a changed pin runs again.
step() {
    local name=$1 what=$2
    shift 2
    if [ -f "$STAMPS/$name" ] && [ "$(cat "$STAMPS/$name")" = "$*" ]; then
        return
    fi
    echo "$what"
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n 5 "$LOG" >&2
        fail "this step failed, the whole log is $LOG; run the same command again to go on"
    fi
    echo "$*" >"$STAMPS/$name"
}

pip_install() {
    "$PY" -m pip install --disable-pip-version-check "$@"
}

# Objects that were compiled before an interrupt are kept in the build folder and used again.
compile_mmcv() {
    local build=$VENV/build
    mkdir -p "$build"
    if [ ! -f "$build/unpacked" ]; then
        "$PY" -m pip download --no-deps --no-build-isolation --no-binary :all: -d "$build" "$MMCV"
        rm -rf "$build/source"
        mkdir "$build/source"
        tar -xzf "$build"/*.tar.gz -C "$build/source" --strip-components 1
        touch "$build/unpacked"
    fi
    CFLAGS="-O1 -g0" MMCV_WITH_OPS=1 MAX_JOBS=$(nproc) \
        "$PY" -m pip wheel --no-build-isolation --no-deps -w "$build/wheel" "$build/source"
    pip_install "$build"/wheel/*.whl
    rm -rf "$build"
}

# Say how far the compiler is until the process in $1 ends.
watch_compile() {
    local start=$SECONDS objects sources
    while kill -0 "$1" 2>/dev/null; do
        sleep 5
        if [ -t 1 ] || [ $(((SECONDS - start) / 5 % 6)) = 0 ]; then
            sources=$(find "$VENV/build/source/mmcv/ops/csrc/pytorch" -name '*.cpp' 2>/dev/null | wc -l)
            objects=$(find "$VENV/build/source/build" -name '*.o' 2>/dev/null | wc -l)
            printf '%s' "  $objects of about $sources files, $(((SECONDS - start) / 60)) min"
            if [ -t 1 ]; then printf '\r'; else printf '\n'; fi
        fi
    done
    [ ! -t 1 ] || echo
}

install_mmcv() {
    if pip_install --only-binary onedl-mmcv "$MMCV" >>"$LOG" 2>&1; then
        return
    fi
    echo "compiling mmcv's operators, of which there is no wheel: about 8 minutes on 2 cores"
    compile_mmcv >>"$LOG" 2>&1 &
    local job=$!
    trap 'kill $job 2>/dev/null; pkill -P $job 2>/dev/null; exit 130' INT TERM
    watch_compile "$job"
    wait "$job" || {
        tail -n 5 "$LOG" >&2
        fail "mmcv did not compile, the whole log is $LOG; run the same command again to go on"
    }
    trap - INT TERM
}

step torch 'installing torch: 1 to 5 minutes, several GB' pip_install "${TORCH[@]}"
step build 'installing build tools: seconds' pip_install "${BUILD[@]}"
if [ ! -f "$STAMPS/mmcv" ] || [ "$(cat "$STAMPS/mmcv")" != "$MMCV" ]; then
    echo 'installing mmcv: seconds where a wheel is at hand'
    install_mmcv
    echo "$MMCV" >"$STAMPS/mmcv"
fi
step openmmlab 'installing OpenMMLab: 1 minute' pip_install --no-build-isolation "${OPENMMLAB[@]}"
step others 'installing timm and tools: 1 minute' pip_install "${OTHERS[@]}"
step package 'installing ghost_plugin: seconds' pip_install --no-deps --no-build-isolation -e "$ROOT"
echo "environment ready: source $VENV/bin/activate"
