#!/usr/bin/env bash
# Peak memory of whole processes, by model, picture size and number of streams: the README's table.
#
# Usage: benches/ceilings.sh [STREAMS]...      (1 2 4 8 16 unless told)
#
# Each row is one gst-launch-1.0 with that many times `filesrc ! decodebin ! yolodetect ! fakesink`, two frames of each second
# of video inferred, on two threads. Resident is the kernel's own peak (VmHWM); anonymous, without the pages of files, is
# sampled every 20 ms. Both in MB (10^6 bytes). The row of YOLO11l needs the folder that YOLODETECT_SHARED names (../shared).
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 99 "$@"

SHARED=${YOLODETECT_SHARED:-$ROOT/../shared}
COUNTS=("$@")
[ $# -gt 0 ] || COUNTS=(1 2 4 8 16)

# Runs a command to its end and sets RESIDENT and ANONYMOUS to its peaks in kB.
peaks_of() { # COMMAND...
    local name value
    RESIDENT=0 ANONYMOUS=0
    "$@" </dev/null >/dev/null &
    local process=$!
    while kill -0 "$process" 2>/dev/null; do
        while read -r name value _; do
            case $name in
            VmHWM:) RESIDENT=$value ;;
            RssAnon:) [ "$value" -le "$ANONYMOUS" ] || ANONYMOUS=$value ;;
            esac
        done <"/proc/$process/status" || true
        sleep 0.02
    done 2>/dev/null
    wait "$process" || die "this failed: $*"
}

megabytes() { echo $(((${1} * 1024 + 500000) / 1000000)); }

row() { # NAME MODEL CLIP SIZE STREAMS
    local stream=(filesrc "location=$ASSETS/clips/$3" ! decodebin
        ! yolodetect "model-file=$2" max-fps=2 threads=2 ! fakesink) pipeline=() i
    for ((i = 0; i < $5; i++)); do pipeline+=("${stream[@]}"); done
    peaks_of gst-launch-1.0 -q "${pipeline[@]}"
    printf '| %s | %s | %s | %s | %s |\n' "$1" "$4" "$5" "$(megabytes "$RESIDENT")" "$(megabytes "$ANONYMOUS")"
}

cargo build --release --quiet --manifest-path "$ROOT/Cargo.toml"
eval "$("$ROOT/pipelines/setup.sh" --print-env)"
# As a first start is.
export YOLODETECT_MODEL_CACHE=off

say '| model | pictures | streams | peak resident, MB | of which anonymous |'
say '| --- | --- | --- | --- | --- |'
for count in "${COUNTS[@]}"; do
    row YOLO12n "$ASSETS/models/yolo12n.onnx" bikes.mp4 640x272 "$count"
    row YOLO12n "$ASSETS/models/yolo12n.onnx" bigbuckbunny.mp4 1280x720 "$count"
    row YOLO12n "$ASSETS/models/yolo12n.onnx" bigbuckbunny-1080p.mp4 1920x1080 "$count"
done
if [ -e "$SHARED/models/yolo11l_shape.onnx" ]; then
    for count in 1 8; do
        row YOLO11l "$SHARED/models/yolo11l_shape.onnx" bigbuckbunny-1080p.mp4 1920x1080 "$count"
    done
else
    say "(no $SHARED/models/yolo11l_shape.onnx: no row of YOLO11l)"
fi
