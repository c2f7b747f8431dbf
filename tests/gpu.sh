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
#   --pack FOLDER    measures nothing, but puts all that this script needs into FOLDER (release plugin, measuring program, models,
#                    frames; 27 MB), for a machine that cannot build or has no network: FOLDER/tests/gpu.sh runs there
#   --rehearse       on the CPU and with few frames: what only a GPU can reach is not judged
#
# ONNX Runtime is the one that ORT_DYLIB_PATH names, else the one that `pipelines/setup.sh --cuda` has fetched. Of GStreamer
# only the core is needed and the plugins app, coreelements and rawparse. Takes about four minutes on a large card, most of them the
# long run. On a machine with the repository it builds what is missing; frames and models are those of tests/setup.sh.
#
# benches/gpu.rs says what is done for each row. The bare loop beside which the pipeline is measured neither converts frames nor
# decodes boxes: its input lies ready in pinned memory.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"

RELEASE=${CARGO_TARGET_DIR:-$ROOT/target}/release
PLUGIN=$RELEASE/libgstyolodetect.so
# Where a kit has it; in the repository cargo says where it is.
PROGRAM=$ROOT/target/release/yolodetect-gpu-measures
MODEL=$ASSETS/models/variants/dynamic_batch.onnx
F16=$ASSETS/models/variants/f16_dynamic_batch.onnx
SIZE=640x272
FRAMES=$ASSETS/gpu/street-$SIZE.i420

DEVICE=cuda:0 LONG=20000 SECONDS_EACH=2 PAIRS=3 BATCHES=(1 2 4 8 16 32) EACH=16 REHEARSAL=0
CARD='' ROWS=() RATES=() NEED=() WITHOUT_ARENA=() FEWER=() STATUS=0

usage() { sed -n '/^# /,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU' || [ -e /dev/nvidia0 ] || [ -e /dev/dxg ]; }
in_repository() { [ -f "$ROOT/Cargo.toml" ]; }

# --- what is needed ------------------------------------------------------------------------------

# Sixteen frames of the street, half a second apart, as they are in memory.
make_frames() {
    local bytes=$((640 * 272 * 3 / 2)) number
    if [ -s "$FRAMES" ]; then
        return 0
    fi
    say "making ${FRAMES#"$ROOT"/}"
    mkdir -p "${FRAMES%/*}"
    make_scratch
    gst-launch-1.0 -q filesrc "location=$ASSETS/clips/bikes.mp4" ! decodebin ! video/x-raw,format=I420 \
        ! filesink "location=$SCRATCH/all" </dev/null || die "the clip cannot be decoded (message above): run pipelines/setup.sh"
    for number in {0..15}; do
        dd "if=$SCRATCH/all" bs=$bytes skip=$((number * 15)) count=1 status=none
    done >"$SCRATCH/frames"
    mv "$SCRATCH/frames" "$FRAMES"
}

prepare() {
    local file
    if in_repository; then
        # shellcheck source=benches/lib.sh
        . "$ROOT/benches/lib.sh"
        build_bench gpu
        PROGRAM=$BENCH
        make_frames
    fi
    for file in "$PROGRAM" "$FRAMES" "$MODEL" "$F16"; do
        [ -f "$file" ] || die "$file is missing: run tests/setup.sh, or pack again"
    done
}

pack() { # FOLDER
    local folder=$1 file
    in_repository || die "a kit is packed in the repository"
    prepare
    cargo build --release --quiet --manifest-path "$ROOT/Cargo.toml"
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
    say "$(du -sh "$folder" | cut -f1) in $folder: take it to the machine with the GPU, set ORT_DYLIB_PATH and what GStreamer needs there, and run tests/gpu.sh in it"
}

find_runtime_for_gpu() {
    if [ -z "${ORT_DYLIB_PATH:-}" ]; then
        if [ $REHEARSAL = 1 ]; then
            ORT_DYLIB_PATH=$ASSETS/lib/libonnxruntime.so.1
        elif in_repository; then
            eval "$("$ROOT/pipelines/setup.sh" --print-env --cuda)"
        else
            die "ORT_DYLIB_PATH is not set: name the libonnxruntime.so that has CUDA"
        fi
    fi
    [ -f "$ORT_DYLIB_PATH" ] || die "$ORT_DYLIB_PATH is missing"
    export ORT_DYLIB_PATH CUDA_MODULE_LOADING=${CUDA_MODULE_LOADING:-LAZY} ORT_DISABLE_TELEMETRY=1 YOLODETECT_MODEL_CACHE=off
}

# --- measuring -----------------------------------------------------------------------------------

add_row() { # WHAT FIGURE GOAL VERDICT
    ROWS+=("| $1 | ${2:0:200} | $3 | $4 |")
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
        IFS=$'\t' read -ra fields <<<"$line"
        case ${fields[0]:-} in
        row) add_row "${fields[@]:1}" ;;
        rate) RATES[fields[1]]=${fields[2]} ;;
        need) NEED[fields[1]]=${fields[2]} ;;
        card) CARD=${fields[1]} ;;
        without-arena) WITHOUT_ARENA[fields[1]]=${fields[2]} ;;
        end) ended=1 ;;
        esac
    done <"$log"
    if [ $status != 0 ] || [ $ended = 0 ]; then
        tail -n 5 "$log.err" >&2
        add_row "$*" "it ended with status $status: $(tail -n 1 "$log.err" | tr '|' '/')" "to the end" FAILED
    fi
}

# The plugin as others load it.
plugin_row() {
    local what="libgstyolodetect.so by gst-launch-1.0" goal="plays to the end"
    if ! command -v gst-launch-1.0 >/dev/null || [ ! -f "$PLUGIN" ]; then
        add_row "$what" "no gst-launch-1.0 or no plugin" "$goal" "not measured"
    elif GST_PLUGIN_PATH=${PLUGIN%/*} timeout 300 gst-launch-1.0 -q filesrc "location=$FRAMES" \
        ! rawvideoparse format=i420 "width=${SIZE%x*}" "height=${SIZE#*x}" \
        ! yolodetect "model-file=$MODEL" "device=$DEVICE" ! identity ! fakesink </dev/null >"$SCRATCH/log" 2>&1; then
        add_row "$what" "$(stat -c %s "$FRAMES" | awk '{ print $1 / (640 * 272 * 1.5) }') frames" "$goal" ok
    else
        add_row "$what" "$(head -n 1 "$SCRATCH/log" | tr '|' '/')" "$goal" FAILED
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
    [ -n "${SCRATCH:-}" ] || make_scratch
    part card
    part parity "f16=$F16"
    part steady "frames-in-all=$LONG"
    for batch in "${BATCHES[@]}"; do
        part throughput "batch=$batch" "seconds=$SECONDS_EACH" "pairs=$PAIRS"
    done
    batching_row
    budget_rows
    part errors
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
    prepare
    find_runtime_for_gpu
    measure_all
    exit $STATUS
}

main "$@"
