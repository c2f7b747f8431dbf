#!/usr/bin/env bash
# Runs every recipe of pipelines/ as a reader of the README would, and checks that the README quotes it word for word.
#
# Needs the release plugin and what pipelines/setup.sh fetches. Prints `ok: …` or `FAILED: …` for each check.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"
cd "$ROOT"

STATUS=0
ok() { say "ok: $*"; }
failed() {
    say "FAILED: $*"
    STATUS=1
}

# The recipe's command: everything after its comment.
quoted() { # NAME
    local command
    command=$(sed '/^#/d' "pipelines/$1.sh")
    if [[ $(<README.md) == *"$command"* ]]; then
        ok "README quotes $1.sh"
    else
        failed "README does not quote pipelines/$1.sh as it is"
    fi
}

# Runs the recipe; the rest is the command that judges its output, which stands in $OUT.
recipe() { # NAME CHECK...
    local name=$1
    shift
    quoted "$name"
    OUT=$SCRATCH/$name.out
    if ! timeout 300 "pipelines/$name.sh" </dev/null >"$OUT" 2>"$OUT.err"; then
        tail -n 5 "$OUT.err"
        failed "pipelines/$name.sh"
    elif "$@"; then
        ok "pipelines/$name.sh"
    else
        failed "pipelines/$name.sh: unexpected result"
    fi
}

json_lines() { # FILE COUNT: valid JSON, that many records, something found
    python3 -c '
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert len(lines) == int(sys.argv[2]), len(lines)
assert any(line["detections"] for line in lines)' "$1" "$2"
}
is_h264() { [ "$(head -c 8 "$1" | tail -c 4)" = ftyp ] && [ "$(stat -c %s "$1")" -gt 50000 ]; }
is_png() { [ "$(head -c 4 "$1" | tail -c 3)" = PNG ] && [ "$(stat -c %s "$1")" -gt 50000 ]; }
ten_pictures() { local n; for n in {0..9}; do is_png "target/second-$n.png" || return; done; }
both_streams() { json_lines target/street.jsonl 250 && json_lines target/film.jsonl 132; }
both_elements() {
    json_lines "$OUT" 500 && [ "$(grep -c '"element":"people"' "$OUT")" = 250 ] &&
        [ "$(grep -c '"element":"vehicles"' "$OUT")" = 250 ]
}

recorded() { is_h264 target/recording.mp4 && json_lines target/recorded.jsonl 250; }

make_scratch
eval "$(pipelines/setup.sh --print-env)"
rm -f target/annotated.mp4 target/second-*.png target/street.jsonl target/film.jsonl target/recording.mp4 target/recorded.jsonl
recipe json-lines json_lines "$SCRATCH/json-lines.out" 250
recipe annotate is_h264 target/annotated.mp4
recipe snapshots ten_pictures
# Without a display autovideosink falls back to a fakesink, after it tried all others: DirectFB's crashes on that.
GST_PLUGIN_FEATURE_RANK=dfbvideosink:NONE recipe watch true
recipe two-streams both_streams
recipe cascade both_elements
recipe recording-valve recorded

# Benches say what they are, and refuse wrong arguments before they build.
for bench in benches/*.sh; do
    if [ "$bench" = benches/lib.sh ]; then
        continue
    fi
    if [[ $("$bench" --help) == *"Usage: $bench"* ]] && ! text=$(timeout 20 "$bench" x 2>&1 </dev/null) &&
        [[ $text == *"x is no number"* ]]; then
        ok "$bench reads its arguments"
    else
        failed "$bench does not read its arguments"
    fi
done

# What needs a GPU is not run here, but says so. The stand-in is a machine with one GPU.
without_gpus() { # NAME STATUS PIECE COMMAND...
    local name=$1 wanted=$2 piece=$3 text status=0
    shift 3
    text=$("$@" </dev/null 2>&1) || status=$?
    if [ $status = "$wanted" ] && [[ $text == *"$piece"* ]]; then
        ok "$name says what is missing"
    else
        failed "$name: status $status: $text"
    fi
}
mkdir -p "$SCRATCH/one-gpu"
printf '#!/bin/sh\necho "GPU 0: stand-in (UUID: GPU-0)"\n' >"$SCRATCH/one-gpu/nvidia-smi"
chmod 755 "$SCRATCH/one-gpu/nvidia-smi"
without_gpus pipelines/two-gpus.sh 1 "two NVIDIA GPUs are needed" env PATH="$SCRATCH/one-gpu:$PATH" pipelines/two-gpus.sh
if [ -e /dev/nvidia0 ] || [ -e /dev/dxg ] || nvidia-smi -L >/dev/null 2>&1; then
    say "SKIPPED: recipes: a GPU is here: what tests/gpu.sh says without one"
else
    without_gpus pipelines/two-gpus.sh 1 "two NVIDIA GPUs are needed" pipelines/two-gpus.sh
    without_gpus tests/gpu.sh 0 "nothing was measured" tests/gpu.sh
fi
exit $STATUS
