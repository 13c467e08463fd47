#!/usr/bin/env bash
# First look at a GPU: tools/gpu_check.sh [STEP...], all steps in order by default; ends at the first that fails.
# DEVICE=cpu tries the script itself on little, where there is no GPU.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
[ -x "$PYTHON" ] || PYTHON=python3
export DEVICE=${DEVICE:-cuda} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export PYTHONPATH=.:tests${PYTHONPATH:+:$PYTHONPATH}
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/gpu_check.XXXXXX")
export SCRATCH TRITON_CACHE_DIR=$SCRATCH/triton
trap 'rm -rf "$SCRATCH"' EXIT
step=start
trap 'echo "gpu_check: step $step FAILED" >&2' ERR

check() { timeout 600 "$PYTHON" tools/gpu_check.py "$@"; }
gpu_tests() { timeout 600 "$@" -m pytest -m gpu -q -W default -p no:cacheprovider tests/bits tests/collect; }
if [ "$DEVICE" = cpu ]; then
    GPUS=0 SHAPES=(tiny) BIG=tiny LAYERS=2 TOKENS=4096 TEXT=16384 BENCH="bench.short=true bench.shape=tiny bench.rounds=1"
else
    GPUS=1 SHAPES=(opt-125m opt-1.3b opt-6.7b) BIG=opt-66b LAYERS=4 TOKENS=262144 TEXT=800000 BENCH=bench.rounds=3
fi

run() {
    case $1 in
    environment) if [ "$DEVICE" = cuda ]; then nvidia-smi; fi; check environment ;;
    tests) # one that is skipped has shown nothing
        gpu_tests "$PYTHON" | tee "$SCRATCH/tests"
        if [ "$DEVICE" = cuda ]; then ! grep -Eq '[0-9]+ skipped|no tests ran' "$SCRATCH/tests"; fi ;;
    race) check race ;;
    parity)
        for shape in "${SHAPES[@]}" "$BIG"; do
            check parity "$shape" "$LAYERS" $((TOKENS / 8))
        done ;;
    sanitizer)
        if command -v compute-sanitizer >/dev/null && [ "$DEVICE" = cuda ]; then
            # Of the kernels' accesses alone: libraries ask the driver for what it may not have.
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 gpu_tests compute-sanitizer --tool memcheck \
                --report-api-errors no --error-exitcode 9 "$PYTHON"
        else
            echo "compute-sanitizer: NOT RUN, it is not here"
        fi ;;
    job) # the same run twice gives the same bytes; without Ray, in the job's own process
        collect=(jobs/collect.py)
        "$PYTHON" -c "import ray" 2>/dev/null || collect=(-P -W ignore tests/helpers/serial.py collect)
        for run in a b; do
            "$PYTHON" "${collect[@]}" model=opt-mini data.max_tokens="$TEXT" \
                ray.gpus_per_worker=$GPUS run="$SCRATCH/$run"
        done
        diff -r "$SCRATCH/a/activations.zarr" "$SCRATCH/b/activations.zarr" ;;
    sweep) for shape in "${SHAPES[@]}"; do check sweep "$shape" "$LAYERS" "$TOKENS"; done ;;
    big)
        check sweep "$BIG" "$LAYERS" "$TOKENS"
        check sweep "$BIG" "$LAYERS" "$TOKENS" stream
        if [ "$DEVICE" = cuda ]; then check sweep "$BIG" "$LAYERS" "$TOKENS" stream aside; fi ;;
    bench) # shellcheck disable=SC2086 # several words
        "$PYTHON" jobs/bench.py 'bench.parts=[forward,pack,stream]' bench.device="$DEVICE" $BENCH out="$SCRATCH/bench" ;;
    *) echo "gpu_check: no step $1" >&2; return 2 ;;
    esac
}

[ $# -gt 0 ] || set -- environment tests race parity job sweep big bench sanitizer
for step in "$@"; do
    echo "== $step"
    run "$step"
done
echo "gpu_check: all steps passed"
