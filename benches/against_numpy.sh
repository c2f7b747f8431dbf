#!/usr/bin/env bash
# Decoding beside the usual NumPy code, on the same outputs, in turns: YOLO12n's own on a street, then made ones with 20, 200
# and 1,000 candidates. Prints medians, their ratio, and our time as a share of the inference time measured in the same run.
#
# Usage: benches/against_numpy.sh [ROUNDS]      (9 unless told)
#
# Needs what tests/setup.sh makes.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 1 "$@"

PYTHON=$ROOT/target/venv/bin/python
[ -x "$PYTHON" ] || die "target/venv is missing: run tests/setup.sh"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

cd "$ROOT"
cargo bench --quiet --bench decode --no-run --message-format=json >"$SCRATCH/build.json"
bench=$("$PYTHON" -c '
import json, sys
built = [json.loads(line) for line in open(sys.argv[1])]
print([one["executable"] for one in built if one.get("executable") and one["target"]["name"] == "decode"][-1])' "$SCRATCH/build.json")

# The clip's first frame; the other street is a photograph.
gst-launch-1.0 -q filesrc "location=$ASSETS/clips/bikes.mp4" ! decodebin ! videoconvert ! pngenc snapshot=true \
    ! filesink "location=$SCRATCH/bikes.png" </dev/null

"$PYTHON" benches/against_numpy.py "$bench" "$ASSETS/models/yolo12n.onnx" "${1:-9}" \
    "$SCRATCH/bikes.png" "$ASSETS/pictures/bus.png"
