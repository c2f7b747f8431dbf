#!/usr/bin/env bash
# Detects objects on a video, a picture or a camera: the first thing to run.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
Usage: pipelines/demo.sh [FILE | URI | rtsp://…] [--model M.onnx] [--out DIR] [--seconds N] [-h]

Sets this machine up (pipelines/setup.sh), builds the plugin, and detects objects on the video or picture; without
one, on 10 seconds of a street. Leaves in DIR (default: target/demo):

  annotated.mp4      the video with boxes, labels and confidences
  contact-sheet.png  some of its frames
  detections.jsonl   one line of JSON for each frame

and says how fast that was and how much memory it took: with the overlay and the encoder, then (for files) decoding
and detection alone.

  --model M.onnx  another YOLO model (default: YOLO12n, 80 COCO classes)
  --seconds N     stop after N seconds; Ctrl-C does the same at any time
TEXT
}

# Of the second run: memory has long reached its height.
DETECT_ONLY_SECONDS=30

SOURCE='' MODEL=$ASSETS/models/yolo12n.onnx OUT=$ROOT/target/demo OPTIONS=()

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help) usage && exit ;;
        --model | --out | --seconds)
            [ $# -gt 1 ] || die "$1 needs a value"
            case $1 in
            --model) MODEL=$2 ;;
            --out) OUT=$2 ;;
            --seconds)
                [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--seconds takes a whole number above 0, not $2"
                OPTIONS+=("$1" "$2")
                [ "$2" -ge "$DETECT_ONLY_SECONDS" ] || DETECT_ONLY_SECONDS=$2
                ;;
            esac
            shift
            ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        *)
            [ -z "$SOURCE" ] || die "more than one source: $1"
            SOURCE=$1
            ;;
        esac
        shift
    done
    # Told now, not after minutes of building. The defaults are fetched by the set-up.
    [ -z "$SOURCE" ] || [[ $SOURCE == *://* ]] || [ -f "$SOURCE" ] || die "there is no file $SOURCE"
    [ "$MODEL" = "$ASSETS/models/yolo12n.onnx" ] || [ -f "$MODEL" ] || die "there is no model $MODEL"
    SOURCE=${SOURCE:-$ASSETS/clips/bikes.mp4}
}

main() {
    local build=${CARGO_TARGET_DIR:-$ROOT/target}/release demo interrupted=0 name
    read_arguments "$@"
    "$ROOT/pipelines/setup.sh"
    # With the manifest named, the caller's folder stays: FILE and DIR may be relative.
    cargo build --release --lib --example demo --manifest-path "$ROOT/Cargo.toml"
    eval "$("$ROOT/pipelines/setup.sh" --print-env)"
    demo=$build/examples/demo

    say
    say "detecting on ${SOURCE#"$ROOT"/} (Ctrl-C ends it early)"
    # The demo itself takes Ctrl-C, ends its files, and leaves normally; then this goes on.
    trap 'interrupted=1' INT
    "$demo" --model "$MODEL" --out "$OUT" "${OPTIONS[@]}" "$SOURCE"
    "$demo" contact-sheet "$OUT/annotated.mp4" "$OUT/contact-sheet.png"
    # A camera is not to be watched for as long again.
    if [ $interrupted = 0 ] && { [ -f "$SOURCE" ] || [[ $SOURCE == file://* ]]; }; then
        say
        say "measuring decoding and detection alone (${DETECT_ONLY_SECONDS} s at most)"
        "$demo" --detect-only --threads 2 --seconds $DETECT_ONLY_SECONDS --model "$MODEL" "$SOURCE"
    fi
    trap - INT

    say
    say "in ${OUT#"$ROOT"/}:"
    for name in annotated.mp4 contact-sheet.png detections.jsonl; do
        say "  $name"
    done
}

main "$@"
