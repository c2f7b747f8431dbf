#!/usr/bin/env bash
# YOLO12n quantised to INT8 beside the f32 model: time, memory and boxes. The table of docs/runtime-options.md.
#
# Usage: benches/int8.sh [ROUNDS]      (5 unless told)
#
# Needs the pictures and the Python environment that tests/setup.sh makes. The quantised models are made once
# (benches/quantize.py says how, a minute) and kept in target/assets/models/int8; remove them to make them anew.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 1 "$@"

ROUNDS=${1:-5}
PYTHON=$ROOT/target/venv/bin/python
QUANTIZE=("$PYTHON" "$ROOT/benches/quantize.py")
NANO=$ASSETS/models/yolo12n.onnx
FOLDER=$ASSETS/models/int8
PICTURES=$ASSETS/pictures
KINDS=(s8s8 u8s8 u8s8-7bit u8s8-conv u8s8-whole)

if [ ! -x "$PYTHON" ] || [ ! -d "$PICTURES" ]; then
    die "pictures or target/venv are missing: run tests/setup.sh"
fi
find_runtime
build_bench session_options
make_scratch
if [ ! -e "$FOLDER/${KINDS[-1]}.onnx" ]; then
    "${QUANTIZE[@]}" make "$NANO" "$PICTURES" "$FOLDER" 2>"$SCRATCH/log" || {
        cat "$SCRATCH/log" >&2
        die "the model could not be quantised"
    }
fi
NAMES=(f32 "${KINDS[@]}")
FILES=("$NANO" "${KINDS[@]/#/$FOLDER/}")
for ((index = 0; index < ${#NAMES[@]}; index++)); do
    [ "$index" = 0 ] || FILES[index]+=.onnx
    measure "${NAMES[index]}" "${FILES[index]}" threads=1
    measure "${NAMES[index]}" "${FILES[index]}" threads=2
done
run_cases "$ROUNDS"
mapfile -t BOXES < <("${QUANTIZE[@]}" boxes "$NANO" "$PICTURES" "${FILES[@]}")

print_machine
say ""
say "| model | file, MB | load, ms | a run on one thread, ms | processor, ms | on two threads, ms | resident, MB | peak, MB |" \
    "boxes found | their IoU | confidence differs by | other boxes |"
say "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
for ((index = 0; index < ${#NAMES[@]}; index++)); do
    one=$((2 * index + 1)) two=$((2 * index + 2))
    size=$(stat -L -c %s "${FILES[index]}" | awk '{ printf "%.1f", $1 / 1e6 }')
    IFS=$'\t' read -r found iou difference others <<<"${BOXES[index]}"
    say "| ${NAMES[index]} | $size | $(median $one 1 0) | $(median $one 2 1) | $(median $one 4 0) | $(median $two 2 1) |" \
        "$(median $two 5 0) | $(median $two 6 0) | $found | $iou | $difference | $others |"
done
