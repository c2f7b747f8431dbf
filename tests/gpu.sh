#!/usr/bin/env bash
# Measures the plugin on an NVIDIA GPU and prints one table: what, figure, goal, verdict. Exits with 1 where a goal is missed. Without a GPU it
# says so and exits with 0.
#
# Usage: tests/gpu.sh [--device DEVICE] [--frames N] [--seconds S]
#        tests/gpu.sh --pack FOLDER
#        tests/gpu.sh --rehearse
#   --device DEVICE  cuda:0 unless told; cuda:1, tensorrt:0
#   --frames N       of the long run, through 8 streams together; 20000 unless told
#   --seconds S      of each side in each of three pairs of runs beside the bare loop; 2 unless told
#   --pack FOLDER    measures nothing, but puts what this script needs into FOLDER (release plugin, measuring program, models,
#                    frames; 31 MB), for a machine that cannot build or has no network: FOLDER/tests/gpu.sh runs there. ONNX
#                    Runtime, CUDA and cuDNN (target/assets/cuda or cuda12) stay behind, and so does GStreamer: copy that folder
#                    too and name its libonnxruntime.so.* in ORT_DYLIB_PATH
#   --rehearse       on the CPU, with its ONNX Runtime and few frames: what only a GPU can reach is not judged
#
# ONNX Runtime is the one that ORT_DYLIB_PATH names, else the one that `pipelines/setup.sh --cuda` has fetched. Of GStreamer
# only the core is needed and the plugins of its base package. Takes about five minutes on a large card, most of them the long run.
# In the repository it builds the plugin and the measuring program, and has tests/setup.sh --gpu make models and frames where they are
# missing; a checkout that cannot be written must have these, and is built in TMPDIR.
#
# benches/gpu.rs says what is done for each row. The bare loop beside which the pipeline is measured neither converts frames nor
# decodes boxes: its input lies ready in pinned memory.
set -euo pipefail
# Figures have points.
export LC_ALL=C
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"

# Where a kit has them; in the repository cargo builds them.
PLUGIN=$ROOT/target/release/libgstyolodetect.so
PROGRAM=$ROOT/target/release/yolodetect-gpu-measures
MODEL=$ASSETS/models/variants/dynamic_batch.onnx
F16=$ASSETS/models/variants/f16_dynamic_batch.onnx
SIZE=640x480
FRAMES=$ASSETS/gpu/pictures-$SIZE.i420

DEVICE=cuda:0 LONG=20000 SECONDS_EACH=2 PAIRS=3 BATCHES=(1 2 4 8 16 32) EACH=16 REHEARSAL=0
CARD='' ROWS=() RATES=() NEED=() WITHOUT_ARENA=() FEWER=() STATUS=0

usage() { awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "${BASH_SOURCE[0]}"; }

has_gpu() {
    nvidia-smi -L 2>/dev/null | grep -q '^GPU' || compgen -G '/dev/nvidia[0-9]*' >/dev/null ||
        # What guests of Windows have for a GPU of any make.
        { [ -e /dev/dxg ] && has_driver; }
}
has_driver() {
    [ -e /usr/lib/wsl/lib/libcuda.so.1 ] || [[ $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null) == *libcuda.so.1* ]]
}
in_repository() { [ -f "$ROOT/Cargo.toml" ]; }
is_writable() { mkdir -p "$1" 2>/dev/null && [ -w "$1" ]; }

# --- what is needed ------------------------------------------------------------------------------

build() {
    if [ -z "${CARGO_TARGET_DIR:-}" ] && ! is_writable "$ROOT/target"; then
        export CARGO_TARGET_DIR=$SCRATCH/target
    fi
    say "building the plugin and the measuring program: some minutes, where they are not built" >&2
    # shellcheck source=benches/lib.sh
    . "$ROOT/benches/lib.sh"
    build_bench gpu
    PROGRAM=$BENCH
    cargo build --release --quiet --manifest-path "$ROOT/Cargo.toml"
    PLUGIN=${CARGO_TARGET_DIR:-$ROOT/target}/release/libgstyolodetect.so
}

# What is there is not looked at again: the checkout may be one that cannot be written.
make_assets() {
    if [ -f "$MODEL" ] && [ -f "$F16" ] && [ -f "$FRAMES" ]; then
        return 0
    fi
    is_writable "$ASSETS" ||
        die "models or frames are missing, and $ASSETS cannot be written: run tests/setup.sh --gpu in a checkout that can, or take a kit of it (--pack)"
    "$ROOT/tests/setup.sh" --no-apt --gpu >&2 ||
        die "models or frames are missing and cannot be made (message above): with that mended, run tests/setup.sh --gpu, or take a kit of another machine (--pack)"
}

prepare() {
    local file
    if in_repository; then
        make_assets
        build
    fi
    for file in "$PROGRAM" "$PLUGIN" "$FRAMES" "$MODEL" "$F16"; do
        [ -f "$file" ] || die "$file is missing: pack the kit again"
    done
}

pack() { # FOLDER
    local folder=$1 file
    in_repository || die "a kit is packed in the repository"
    prepare
    mkdir -p "$folder"/{tests,pipelines,target/release,target/assets/gpu,target/assets/models/variants}
    cp "$ROOT/tests/gpu.sh" "$folder/tests/"
    cp "$ROOT/pipelines/lib.sh" "$folder/pipelines/"
    cp "$PLUGIN" "$folder/target/release/"
    cp "$PROGRAM" "$folder/target/release/yolodetect-gpu-measures"
    cp "$FRAMES" "$folder/target/assets/gpu/"
    for file in "$MODEL" "$F16"; do
        cp "$file" "$folder/target/assets/models/variants/"
    done
    strip --strip-debug "$folder"/target/release/* 2>/dev/null || true
    say "$(du -sh "$folder" | cut -f1) in $folder: take it to the machine with the GPU, with the folder of the ONNX Runtime for CUDA (target/assets/cuda or cuda12, which is not in it), name its libonnxruntime.so.* in ORT_DYLIB_PATH there, and run tests/gpu.sh in it"
}

find_runtime_for_gpu() {
    local lines
    if [ $REHEARSAL = 1 ] && in_repository; then
        ORT_DYLIB_PATH=$ASSETS/lib/libonnxruntime.so.1
    elif [ -z "${ORT_DYLIB_PATH:-}" ]; then
        in_repository || die "ORT_DYLIB_PATH is not set: name the libonnxruntime.so.* that has CUDA (any will do to rehearse)"
        lines=$("$ROOT/pipelines/setup.sh" --print-env --cuda) || exit
        eval "$lines"
    fi
    [ -f "$ORT_DYLIB_PATH" ] ||
        die "$ORT_DYLIB_PATH is missing: run pipelines/setup.sh --cuda, or name a libonnxruntime.so.* with CUDA in ORT_DYLIB_PATH"
    export ORT_DYLIB_PATH CUDA_MODULE_LOADING=${CUDA_MODULE_LOADING:-LAZY} ORT_DISABLE_TELEMETRY=1 YOLODETECT_MODEL_CACHE=off
}

# --- measuring -----------------------------------------------------------------------------------

add_row() { # WHAT FIGURE GOAL VERDICT
    # Models by their names, whatever folder they lie in.
    local what=${1//"${MODEL%/*}/"/} figure=${2//"${MODEL%/*}/"/}
    ROWS+=("| $what | $figure | $3 | $4 |")
    if [ "$4" = FAILED ]; then
        STATUS=1
    fi
}

# Calls one part of the program and takes its rows. A part that dies is a row of its own.
part() { # PART KEY=VALUE...
    local log=$SCRATCH/log line fields ended=0 status=0
    say "$*" >&2
    # shellcheck disable=SC2094
    timeout 900 "$PROGRAM" "$1" "device=$DEVICE" "model=$MODEL" "frames=$FRAMES" "size=$SIZE" "${FEWER[@]}" "${@:2}" \
        >"$log" 2>"$log.err" </dev/null || status=$?
    while IFS= read -r line; do
        # A tab counts as white space, of which several are one, and a field may be empty.
        IFS=$'\x1f' read -ra fields <<<"${line//$'\t'/$'\x1f'}"
        case ${fields[0]:-} in
        row) add_row "${fields[@]:1}" ;;
        rate) RATES[fields[1]]=${fields[2]} ;;
        need) NEED[fields[1]]=${fields[2]} ;;
        without-arena) WITHOUT_ARENA[fields[1]]=${fields[2]} ;;
        card) CARD=${fields[1]} ;;
        end) ended=1 ;;
        esac
    done <"$log"
    if [ $status != 0 ] || [ $ended = 0 ]; then
        tail -n 5 "$log.err" >&2
        add_row "$*" "it ended with status $status: $(tail -n 1 "$log.err" | tr '|' '/')" "to the end" FAILED
    fi
}

# The plugin as others load it; it counts its frames itself at the end.
plugin_row() {
    local what="libgstyolodetect.so by gst-launch-1.0" goal inferred all
    all=$(($(stat -c %s "$FRAMES") / (${SIZE%x*} * ${SIZE#*x} * 3 / 2)))
    goal="$all frames inferred"
    if ! command -v gst-launch-1.0 >/dev/null; then
        add_row "$what" "no gst-launch-1.0" "$goal" "not measured"
    elif GST_PLUGIN_PATH=${PLUGIN%/*} timeout 300 gst-launch-1.0 -m filesrc "location=$FRAMES" \
        ! rawvideoparse format=i420 "width=${SIZE%x*}" "height=${SIZE#*x}" \
        ! yolodetect "model-file=$MODEL" "device=$DEVICE" stats-interval=3600000000000 ! identity ! fakesink \
        </dev/null >"$SCRATCH/log" 2>&1; then
        inferred=$(sed -n 's/.*yolodetect-stats.*[ ,]inferred=(guint64)\([0-9]*\).*/\1/p' "$SCRATCH/log" | tail -n 1)
        add_row "$what" "${inferred:-0} frames inferred" "$goal" "$([ "$inferred" = "$all" ] && echo ok || echo FAILED)"
    else
        add_row "$what" "$(grep -m 1 ERROR "$SCRATCH/log" | tr '|' '/' || true)" "$goal" FAILED
    fi
}

# A budget between what batches of 1 and of 8 take; one far below both; one for all of a single frame but what is between its layers.
budget_rows() {
    local tried="a budget too small for one frame at the load" goal="an error that names the budget and has the sum, after a load"
    NEED=() WITHOUT_ARENA=()
    part need batch=1
    part need batch=8
    if [ -z "${NEED[1]:-}" ] || [ -z "${NEED[8]:-}" ]; then
        add_row "budgets" "it is not known what the engine takes" "a smaller batch, then an error" "not measured"
        return
    fi
    if [ "${NEED[8]}" -gt "${NEED[1]}" ]; then
        part budget "budget=$(((NEED[1] + NEED[8]) / 2))" "each=$EACH"
    else
        add_row "a budget too small for batch 8" "batch 8 takes ${NEED[8]} bytes and batch 1 ${NEED[1]}" "a smaller batch" "not measured"
    fi
    part too-small "budget=$((NEED[1] / 20))" tried=0
    if [ -n "${WITHOUT_ARENA[1]:-}" ]; then
        part too-small "budget=${WITHOUT_ARENA[1]}" tried=1
    else
        add_row "$tried" "it is not known what the arena takes, or it is very small" "$goal" "not measured"
    fi
}

batching_row() {
    local what="batch 8 beside batch 1" goal="≥ 2.5 times the frames/s" ratio verdict
    if [ -z "${RATES[1]:-}" ] || [ -z "${RATES[8]:-}" ]; then
        add_row "$what" "" "$goal" "not measured"
        return
    fi
    ratio=$(awk -v a="${RATES[8]}" -v b="${RATES[1]}" 'BEGIN { printf "%.2f", a / b }')
    verdict=$(awk -v ratio="$ratio" 'BEGIN { print (ratio >= 2.5) ? "ok" : "FAILED" }')
    [ $REHEARSAL = 0 ] || verdict=rehearsed
    add_row "$what" "$ratio times" "$goal" "$verdict"
}

measure_all() {
    local batch
    part card
    part parity "f16=$F16"
    part steady "frames-in-all=$LONG"
    for batch in "${BATCHES[@]}"; do
        part throughput "batch=$batch" "seconds=$SECONDS_EACH" "pairs=$PAIRS"
    done
    batching_row
    budget_rows
    part errors
    part on-card
    plugin_row
    say "$CARD; $DEVICE," \
        "$(nproc) cores, ONNX Runtime $(basename "$(readlink -f "$ORT_DYLIB_PATH")")"
    say
    say "| what | figure | goal | |"
    say "| --- | --- | --- | --- |"
    printf '%s\n' "${ROWS[@]}"
}

main() {
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help) usage && exit ;;
        --rehearse)
            REHEARSAL=1 DEVICE=cpu LONG=32 SECONDS_EACH=0.3 PAIRS=1 BATCHES=(1 8) EACH=2 FEWER=(take=3)
            shift
            continue
            ;;
        --device | --frames | --seconds | --pack) [ $# -ge 2 ] || die "$1 wants a value" ;;
        *) usage >&2 && die "unknown option: $1" ;;
        esac
        case $1 in
        --device) DEVICE=$2 ;;
        --frames) LONG=$2 ;;
        --seconds) SECONDS_EACH=$2 ;;
        --pack)
            make_scratch "${TMPDIR:-/tmp}"
            pack "$2"
            exit
            ;;
        esac
        shift 2
    done
    if [ $REHEARSAL = 0 ] && ! has_gpu; then
        say "no NVIDIA GPU is here: nothing was measured (tests/gpu.sh --rehearse runs all of it on the CPU)"
        exit 0
    fi
    make_scratch "${TMPDIR:-/tmp}"
    find_runtime_for_gpu
    prepare
    measure_all
    exit $STATUS
}

main "$@"
