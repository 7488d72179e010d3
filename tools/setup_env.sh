#!/usr/bin/env bash
# Make or reuse a virtual environment with the tested versions; run it again to go on where it
# was cut off.
#
#   bash tools/setup_env.sh             set up: about 3 minutes, 8 more where mmcv must be compiled
#   bash tools/setup_env.sh --python    print the environment's python, install nothing
#   GHOST_VENV=current bash tools/setup_env.sh    check the active python, install nothing
#
# GHOST_VENV  folder of the environment, from the repository's root (.venv), or current
# PYTHON      python that makes it, or that is checked; 3.10 or newer (python3)
set -euo pipefail

# The tested versions.
TORCH=(torch==2.11.0 torchvision==0.26.0)
BUILD=('setuptools>=77,<82' wheel ninja psutil)
MMCV=onedl-mmcv==2.3.6
OPENMMLAB=(onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1 onedl-mmpretrain==1.3.6)
TIMM=timm==1.0.31
OTHERS=(scipy scikit-learn matplotlib rich fvcore pytest hypothesis ruff onnx onnxruntime
    onnxscript openvino torch-pruning)

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
    --python) echo "$PY"; exit ;;
    --help | -h) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    '') ;;
    *) fail "unknown argument $1; see --help" ;;
esac

is_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# ---- GHOST_VENV=current ------------------------------------------------------------------------

check_current() {
    is_python "$PY" || fail "$PY is not a python of 3.10 or newer; set PYTHON to one"
    "$PY" -W ignore - "$PY" "$ROOT" "$MMCV" "${TORCH[@]}" "${OPENMMLAB[@]}" "$TIMM" -- "${BUILD[@]}" <<'END'
import importlib
import shlex
import sys

python, root, mmcv, *pins = sys.argv[1:]
end = pins.index('--')
pins, build = pins[:end], pins[end + 1 :]
pins = {pin.split('==')[0]: pin for pin in pins}
sys.path[:] = [path for path in sys.path if path]  # not what lies in the working directory
names = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'mmengine': 'onedl-mmengine',
    'mmcv': '',
    'mmcv.ops': '',
    'mmdet': 'onedl-mmdetection',
    'mmpretrain': 'onedl-mmpretrain',
    'timm': 'timm',
    'scipy': 'scipy',
    'sklearn': 'scikit-learn',
    'matplotlib': 'matplotlib',
    'pytest': 'pytest',
    'ghost_plugin': '',
}
missing, packages = [], []
for name, package in names.items():
    try:
        importlib.import_module(name)
    except Exception as error:  # broken binaries raise whatever they like
        missing.append(name)
        reason = (str(error).splitlines() or [''])[0]
        print(f'  {name}: {type(error).__name__}: {reason}', file=sys.stderr)
        if package:
            packages.append(pins.get(package, package))
if not missing:
    print(f'environment ready: {python} has all that is needed')
    sys.exit()

# In the order that works: mmcv compiles against torch, the rest would bring an mmcv without ops.
pip = f'{shlex.quote(python)} -m pip install'
lines = []
torch = [package for package in packages if package.startswith('torch')]
if torch:
    lines.append(f'{pip} {shlex.join(torch)}')
if {'mmcv', 'mmcv.ops'} & set(missing):
    again = '' if 'mmcv' in missing else ' --force-reinstall --no-deps'
    lines.append(f'{pip} {shlex.join(build)}')
    lines.append(
        f'CFLAGS="-O1 -g0" MMCV_WITH_OPS=1 {pip}{again} --no-build-isolation {mmcv}'
        '   # compiles: about 8 minutes on 2 cores'
    )
packages = [package for package in packages if package not in torch]
if packages:
    lines.append(f'{pip} {shlex.join(packages)}')
if 'ghost_plugin' in missing:
    lines.append(f'{pip} --no-deps -e {shlex.quote(root)}')
print('to install, for example:', *lines, sep='\n  ', file=sys.stderr)
print(f'error: {python} lacks {", ".join(missing)}', file=sys.stderr)
sys.exit(2)
END
}

if [ "$VENV" = current ]; then
    check_current
    exit
fi

# ---- Jobs and stamps ---------------------------------------------------------------------------

LOG=$VENV/setup.log
STAMPS=$VENV/stamps
JOB=  # process group of what runs
ALSO= # what else a step depends on

# The job has a process group of its own, so that all of it ends with this script.
stop() {
    trap '' INT TERM HUP
    if [ -n "$JOB" ]; then
        kill -TERM -- "-$JOB" 2>/dev/null || true
        wait "$JOB" 2>/dev/null || true
    fi
    [ ! -t 1 ] || echo
    echo "interrupted; what was finished is kept, run the same command again to go on" >&2
    exit 130
}
trap stop INT TERM HUP

# job [--watch COMMAND] COMMAND...: run it, its output into the log; COMMAND of --watch runs
# every second with the seconds that have passed.
job() {
    local watch=: start=$SECONDS status=0
    if [ "$1" = --watch ]; then
        watch=$2
        shift 2
    fi
    printf '\n== %s\n' "$*" >>"$LOG"
    set -m
    "$@" >>"$LOG" 2>&1 </dev/null &
    JOB=$!
    set +m
    if [ "$watch" != : ]; then
        while kill -0 "$JOB" 2>/dev/null; do
            "$watch" $((SECONDS - start))
            sleep 1
        done
    fi
    wait "$JOB" || status=$?
    JOB=
    return $status
}

# Say what went wrong since byte $2 of the log, and leave.
fail_step() {
    local said
    said=$(tail -c "+$(($2 + 1))" "$LOG")
    if grep -qiE 'connection broken|NewConnectionError|MaxRetryError|timed out|resolve host' <<<"$said"; then
        fail "$1: the package index cannot be reached; log: $LOG"
    fi
    grep -v '^[[:space:]]*$' <<<"$said" | tail -n 5 | cut -c1-200 >&2
    fail "$1 failed, log: $LOG; run the same command again to go on"
}

checksum() {
    cksum | tr -d ' '
}

# A stamp holds the checksum of what the step asks for, so that a changed pin runs it again.
is_done() {
    [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$(checksum <<<"$2")" ]
}

mark_done() {
    mkdir -p "$STAMPS"
    checksum <<<"$2" >"$STAMPS/$1"
}

# step NAME TIME PIP-ARGUMENTS...
step() {
    local name=$1 time=$2 asks size
    shift 2
    asks="$* $ALSO"
    if is_done "$name" "$asks"; then
        return
    fi
    echo "installing $name: $time"
    size=$(wc -c <"$LOG")
    job pip_install "$@" || fail_step "installing $name" "$size"
    mark_done "$name" "$asks"
}

# No step moves what another one has pinned.
pip_install() {
    "$PY" -m pip install --disable-pip-version-check -c "$VENV/constraints.txt" "$@"
}

# ---- The folder --------------------------------------------------------------------------------

make_venv() {
    is_python "$PYTHON" || fail "$PYTHON is not a python of 3.10 or newer; set PYTHON to one"
    echo "making a virtual environment in $VENV: seconds"
    : >>"$LOG" # says that the folder is ours, from the start
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name setup.log -exec rm -rf {} +
    job "$PYTHON" -m venv "$VENV" ||
        fail "$PYTHON cannot make a virtual environment (Debian and Ubuntu: apt install python3-venv); log: $LOG"
    mark_done venv made
}

has_pip() {
    is_python "$PY" && "$PY" -c 'import pip._internal.cli.main' 2>/dev/null
}

prepare_folder() {
    mkdir -p "$VENV" 2>/dev/null || fail "cannot make the folder $VENV"
    # One set-up at a time; what an ended one has left running holds the lock, too.
    if command -v flock >/dev/null; then
        exec 9<"$VENV"
        if ! flock -n 9; then
            echo "waiting for another set-up in $VENV to end"
            flock 9
        fi
    fi
    if is_done venv made && has_pip; then
        return
    fi
    if [ ! -e "$LOG" ] && [ -n "$(ls -A "$VENV")" ]; then # somebody else's
        [ -f "$VENV/pyvenv.cfg" ] || fail "$VENV is there and is not a virtual environment"
        if is_python "$PY"; then
            : >>"$LOG"
            has_pip || job "$PY" -m ensurepip || fail "$VENV has no pip; log: $LOG"
            mark_done venv made
            return
        fi
    fi
    make_venv
}

# ---- mmcv: a wheel where there is one, else compiled -------------------------------------------

# Compile in a folder that stays: after an interrupt ninja goes on with the objects it finds.
compile_mmcv() {
    local cuda
    if [ ! -d "$WORK/source" ]; then
        rm -rf "$WORK/sdist" "$WORK/unpack"
        "$PY" -m pip download --disable-pip-version-check --no-deps --no-build-isolation \
            --no-binary onedl-mmcv -c "$VENV/constraints.txt" -d "$WORK/sdist" "$MMCV" || return
        mkdir -p "$WORK/unpack"
        tar -xzf "$WORK"/sdist/*.tar.gz -C "$WORK/unpack" --strip-components 1 || return
        mv "$WORK/unpack" "$WORK/source" || return
    fi
    # A CUDA build needs a GPU that works and a compiler for it; nvcc alone is not enough.
    cuda=$("$PY" -W ignore -c 'import torch, torch.utils.cpp_extension as c
print(int(torch.cuda.is_available() and c.CUDA_HOME is not None))') || return
    if [ "$cuda" != 1 ]; then
        export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=
    fi
    echo "cuda=$cuda" >"$WORK/kind"
    # ninja is looked up on PATH.
    PATH=$VENV/bin:$PATH CFLAGS="-O1 -g0" MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        "$PY" -m pip wheel -v --disable-pip-version-check --no-build-isolation --no-deps \
        -w "$WORK/dist" "$WORK/source"
}

show_compile() {
    local every=15 objects sources line ops=$WORK/source/mmcv/ops/csrc/pytorch
    [ ! -t 1 ] || every=5
    if [ $(($1 % every)) != 0 ] || [ "$1" = 0 ] || [ ! -f "$WORK/kind" ]; then
        return 0
    fi
    sources=("$ops"/*.cpp "$ops"/cpu/*.cpp)
    if grep -q 1 "$WORK/kind"; then
        sources+=("$ops"/cuda/*.cu "$ops"/cuda/*.cpp)
    fi
    objects=$(find "$WORK/source/build" -name '*.o' 2>/dev/null | wc -l)
    line="  $((objects)) of ${#sources[@]} files compiled, $(($1 / 60)) min $(($1 % 60)) s"
    if [ -t 1 ]; then printf '\r%s ' "$line"; else echo "$line"; fi
}

has_ops() {
    "$PY" -W ignore -c 'import mmcv.ops'
}

install_mmcv() {
    local asks="$MMCV ${TORCH[*]}" size headers
    if is_done mmcv "$asks"; then
        return
    fi
    WORK=$VENV/build/mmcv-$(checksum <<<"$asks") # of these versions only
    mkdir -p "$WORK/dist"
    find "$VENV/build" -mindepth 1 -maxdepth 1 ! -path "$WORK" -exec rm -rf {} +
    echo 'installing mmcv: 1 minute where there is a wheel of it'
    if job pip_install --only-binary onedl-mmcv --find-links "$WORK/dist" "$MMCV" && job has_ops; then
        mark_done mmcv "$asks"
        return
    fi
    command -v "${CXX:-c++}" >/dev/null ||
        fail "mmcv must be compiled and there is no C++ compiler; install one (g++)"
    headers=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$headers/Python.h" ] ||
        fail "mmcv must be compiled and $PYTHON has no headers (Debian and Ubuntu: apt install python3-dev)"
    echo "compiling mmcv's ops: about 8 minutes on 2 cores"
    size=$(wc -c <"$LOG")
    job --watch show_compile compile_mmcv || fail_step "compiling mmcv" "$size"
    [ ! -t 1 ] || echo
    job pip_install --force-reinstall --no-deps "$WORK"/dist/*.whl && job pip_install "$MMCV" &&
        job has_ops || fail_step "installing mmcv" "$size"
    mark_done mmcv "$asks"
    rm -rf "$WORK/source" "$WORK/sdist" # the wheel stays
}

# ---- All of it ---------------------------------------------------------------------------------

prepare_folder
: >>"$LOG"
printf '%s\n' "${TORCH[@]}" "${BUILD[@]}" "$MMCV" "${OPENMMLAB[@]}" "$TIMM" >"$VENV/constraints.txt"
step torch '2 to 5 minutes, 3 GB to download' "${TORCH[@]}"
step 'build tools' 'seconds' "${BUILD[@]}"
install_mmcv
step OpenMMLab '1 minute' --no-build-isolation "${OPENMMLAB[@]}"
step 'timm and tools' '1 minute' "$TIMM" "${OTHERS[@]}"
ALSO=$(checksum <"$ROOT/pyproject.toml")
step ghost_plugin 'seconds' --no-deps --no-build-isolation -e "$ROOT"
echo "environment ready: source $(printf %q "$VENV/bin/activate")"
