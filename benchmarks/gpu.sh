#!/usr/bin/env bash
# The trainer's whole GPU set in one go, under ten minutes, on a machine that has PyTorch and needs no internet.
#
#     benchmarks/gpu.sh pack WHEELS            # where there is internet and lumid is installed: what to carry along
#     benchmarks/gpu.sh run --wheels WHEELS    # on the machine with the GPU, in a checkout
#     benchmarks/gpu.sh run --device cpu       # the same in small, to see that it runs
#
# Other options of run: --out FILE (by default gpu.md), --source FOLDER of DICOM, --threads N (by default: the cores).
# PYTHON names the interpreter (by default python3). Same Python and platform for both.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# What pre-training imports, and what that needs, without PyTorch and its CUDA.
packages() {
    "$python" - <<'PY'
import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

wanted = ["duckdb", "pyarrow", "opencv-python-headless", "imagecodecs", "obstore", "pydantic", "timm", "safetensors",
          "tensorboard", "scikit-image", "typer", "rich", "psutil", "webdataset"]
theirs = re.compile(r"torch|triton|nvidia|cuda")
found = {}
while wanted:
    name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
    if name in found or theirs.match(name):
        continue
    try:
        one = distribution(name)
    except PackageNotFoundError:
        raise SystemExit(f"{name} is not installed here: pip install -e '.[train]'")
    found[name] = one.version
    needs = map(Requirement, one.requires or ())
    wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
print("\n".join(f"{name}=={version}" for name, version in sorted(found.items()) if name != "setuptools"))
PY
}

pack() {
    mkdir -p "$1"
    packages > "$1/packages.txt"
    "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$1" --requirement "$1/packages.txt"
    echo "$(ls "$1"/*.whl | wc -l) wheels, $(du -sm "$1" | cut -f1) MB in $1"
}

run() {
    local device=cuda wheels="" out=gpu.md source="" threads
    threads=$(nproc)
    while [ $# -gt 0 ]; do
        [ $# -gt 1 ] || usage
        case $1 in
            --device) device=$2 ;;
            --wheels) wheels=$2 ;;
            --out) out=$2 ;;
            --source) source=$2 ;;
            --threads) threads=$2 ;;
            *) usage ;;
        esac
        shift 2
    done
    work=$(mktemp -d)  # not local: the trap outlives this function
    trap 'rm -rf "$work"' EXIT
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore TMPDIR=$work
    if [ -n "$wheels" ]; then
        # beside the machine's own packages; --no-deps: what is carried is whole, and PyTorch is the machine's
        "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$work/packages" \
            --requirement "$wheels/packages.txt"
        export PYTHONPATH=$PYTHONPATH:$work/packages
    fi
    "$python" -c 'import lumid.model.pretrain' 2> "$work/why" || {
        echo "lumid does not run here ($(tail -1 "$work/why")): pass --wheels" >&2
        exit 1
    }
    local given=(--device "$device" --threads "$threads")
    [ -z "$source" ] || given+=(--source "$source")
    cd "$root"
    {
        echo "# Pre-training on $device, $(date -u +%F)"
        [ "$device" = cpu ] || nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
        "$python" -c 'import platform, timm, torch; print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, timm {timm.__version__}")'
        if [ "$device" = cpu ]; then
            part 120 step --size tiny --image-size 64 --batch 8 --steps 3 --rounds 1
            part 120 loop --size tiny --image-size 64 --batch 8 --steps 12 --rounds 1 --images 300
            stream 120 --images 1500 --rounds 1
        else
            part 110 step --size base --batch 256 --steps 10 --rounds 3
            part 110 step --size large --batch 128 --steps 10 --rounds 3
            part 200 loop --size base --batch 512 --steps 60 --rounds 1 --images 12000
            stream 120 --images 12000 --rounds 1
        fi
    } 2>&1 | tee "$out"
}

# A measurement that fails or takes too long leaves the others alone, and says so.
part() {
    local seconds=$1 which=$2
    shift 2
    timeout "$seconds" "$python" benchmarks/train.py --part "$which" "${given[@]}" "$@" || failed "train.py $which $*" $?
}

stream() {
    local seconds=$1
    shift
    [ -z "$source" ] || set -- "$@" --source "$source"
    timeout "$seconds" "$python" benchmarks/stream.py --workers "$threads" "$@" || failed "stream.py" $?
}

failed() { echo "**$1 ended with exit code $2**"; touch "$work/failed"; }

case ${1:-} in
    pack) [ $# -eq 2 ] || usage; pack "$2" ;;
    run) shift; run "$@"; [ ! -e "$work/failed" ] || exit 1 ;;
    *) usage ;;
esac
