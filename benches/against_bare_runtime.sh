#!/usr/bin/env bash
# The pipeline beside a bare loop over ONNX Runtime: YOLO12n on two threads, one stream and eight. benches/streams.rs says
# what the two sides are.
#
# Usage: benches/against_bare_runtime.sh [PAIRS]      (7 unless told: about 4 minutes on two cores)
#
# The sides take turns, and so does who begins. What counts is the median of the pairs' ratios; beside it stands whether it
# reaches the goal of 0.97. A ratio below is no failure of this script: timings are no tests.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 1 "$@"

PAIRS=${1:-7}
GOAL=0.97
# Of each side in one run: 7 s, beside which starting threads does not count.
FRAMES=104
THREADS=2

find_runtime
build_bench streams
print_machine
for streams in 1 8; do
    pairs=$("$BENCH" "$streams" "$PAIRS" $((FRAMES / streams)) "$THREADS")
    say "$pairs"
    result=$(awk '/^ratio/ { print $2 }' <<<"$pairs")
    awk -v ratio="$result" -v goal="$GOAL" -v streams="$streams" 'BEGIN {
        printf "%d stream%s: %s of the bare loop, %s (goal: %s)\n\n", streams, (streams == 1) ? "" : "s", ratio,
            (ratio + 0 >= goal + 0) ? "PASS" : "below", goal }'
done
