#!/usr/bin/env bash
# The same model through each device: frames a second, time to start, peak memory.
#
# Usage: benches/devices.sh [ROUNDS [FRAMES]]      (5 rounds of 100 frames unless told)
#
# Each run is one gst-launch-1.0 of one or four streams, `filesrc ! decodebin ! yolodetect ! fakesink`, YOLO12n on bikes.mp4,
# FRAMES in all. The three take turns, so that what else the machine does falls on all of them; printed are medians.
#   frames/s  of all streams together, from the first frame on (gst-launch-1.0's own clock)
#   start     all the rest of the process's time, in seconds: libraries, the model's load, its first frame, the end
#   peak      resident set (VmHWM), MB (10^6 bytes)
# Needs what `pipelines/setup.sh --openvino` fetches.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 2 "$@"

ROUNDS=${1:-5}
FRAMES=${2:-100}
ORDINARY=$ASSETS/lib/libonnxruntime.so.1
OPENVINO=$ASSETS/openvino/libonnxruntime.so.1.24.1
# Library and device of each.
NAMES=("cpu" "cpu, OpenVINO's library" "openvino")
LIBRARIES=("$ORDINARY" "$OPENVINO" "$OPENVINO")
DEVICES=(cpu cpu openvino)
STREAMS=(1 4)

# One run; appends its three figures to the lists of that device and number of streams.
measure() { # WHICH STREAMS
    local log=$SCRATCH/log pipeline=() i process whole peak=0 name value
    for ((i = 0; i < $2; i++)); do
        pipeline+=(filesrc "location=$ASSETS/clips/bikes.mp4" ! decodebin ! identity "eos-after=$((FRAMES / $2 + 1))"
            ! yolodetect "model-file=$ASSETS/models/yolo12n.onnx" "device=${DEVICES[$1]}" ! fakesink sync=false)
    done
    whole=$(date +%s%N)
    ORT_DYLIB_PATH=${LIBRARIES[$1]} gst-launch-1.0 "${pipeline[@]}" </dev/null >"$log" 2>&1 &
    process=$!
    while kill -0 "$process" 2>/dev/null; do
        while read -r name value _; do
            [ "$name" != VmHWM: ] || peak=$value
        done <"/proc/$process/status" || true
        sleep 0.05
    done 2>/dev/null
    wait "$process" || die "this failed: $(tail -n 5 "$log")"
    whole=$(($(date +%s%N) - whole))
    sed -n 's/^Execution ended after //p' "$log" |
        awk -F: -v whole="$whole" -v peak="$peak" -v frames="$((FRAMES / $2 * $2))" \
            '{ ran = $1 * 3600 + $2 * 60 + $3; print frames / ran, whole / 1e9 - ran, peak * 1024 / 1e6 }' \
            >>"$SCRATCH/$1-$2"
}

# The middle one of a column's values.
median() { # FILE COLUMN
    cut -d' ' -f"$2" "$1" | sort -g | sed -n "$((ROUNDS / 2 + 1))p"
}

cargo build --release --quiet --manifest-path "$ROOT/Cargo.toml"
[ -f "$OPENVINO" ] || die "run pipelines/setup.sh --openvino first"
eval "$("$ROOT/pipelines/setup.sh" --print-env)"
make_scratch
for ((round = 0; round < ROUNDS; round++)); do
    for streams in "${STREAMS[@]}"; do
        for which in "${!NAMES[@]}"; do
            measure $(((which + round) % ${#NAMES[@]})) "$streams"
        done
    done
done
say '| device | streams | frames/s | start, s | peak, MB |'
say '| --- | --- | --- | --- | --- |'
for streams in "${STREAMS[@]}"; do
    for which in "${!NAMES[@]}"; do
        figures=$SCRATCH/$which-$streams
        printf '| %s | %s | %.1f | %.2f | %.0f |\n' "${NAMES[$which]}" "$streams" \
            "$(median "$figures" 1)" "$(median "$figures" 2)" "$(median "$figures" 3)"
    done
done
