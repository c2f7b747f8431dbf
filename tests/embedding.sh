#!/usr/bin/env bash
# The programs of examples/embedding: that they build without a warning, print the same lines as each other and
# what yolojson prints, answer messages, name what is wrong, leak nothing (C), and that the README quotes them.
#
# Usage: tests/embedding.sh [build] [run] [quotes]     (all three when none is named)
#
# Needs the release plugin and what tests/setup.sh makes. `run` needs no compiler: tests/trixie.sh runs in its
# userland what `build` left in target/embedding. Prints `ok: …` or `FAILED: …` for each check, and
# `SKIPPED: embedding: …` where Python has no GStreamer.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"

SOURCES=examples/embedding
BUILT=target/embedding
MODEL=$ASSETS/models/yolo12n.onnx
TINY=$ASSETS/models/tiny/v8.onnx
BIKES=$ASSETS/clips/bikes.mp4
BUNNY=$ASSETS/clips/bigbuckbunny.mp4
STATUS=0

ok() { say "ok: $*"; }
failed() {
    say "FAILED: $*"
    STATUS=1
}
# The rest is the command whose success is the check.
check() { # WHAT COMMAND...
    local what=$1
    shift
    if "$@"; then
        ok "$what"
    else
        failed "$what"
    fi
}

# --- build ---------------------------------------------------------------------------------------

compile_c() { # SOURCE PROGRAM
    local flags
    read -ra flags <<<"$(pkg-config --cflags --libs gstreamer-1.0 gstreamer-video-1.0)"
    cc -Wall -Wextra -Werror "$1" -o "$2" "${flags[@]}"
}

# embed.c with a main of its own, which hands it the message that no ordinary run brings about.
compile_message() {
    cat >"$SCRATCH/message.c" <<C
#define main embed_main
#include "$ROOT/$SOURCES/embed.c"
#undef main
int main(int argc, char **argv)
{
    gst_init(&argc, &argv);
    GstStructure *fields = gst_structure_from_string(argv[1], NULL);
    GstMessage *message = gst_message_new_element(NULL, fields);
    report_element(message);
    gst_message_unref(message);
    return 0;
}
C
    compile_c "$SCRATCH/message.c" "$BUILT/message"
}

build_rust() {
    cargo build --quiet --example embedding &&
        cp "${CARGO_TARGET_DIR:-target}/debug/examples/embedding" "$BUILT/rust"
}

step_build() {
    mkdir -p "$BUILT"
    ln -sfn "../../$SOURCES/embed.py" "$BUILT/python"
    check "embedding: embed.c compiles" compile_c "$SOURCES/embed.c" "$BUILT/c"
    check "embedding: embed.c compiles into a test" compile_message
    check "embedding: main.rs compiles" build_rust
}

# --- run -----------------------------------------------------------------------------------------

find_languages() {
    LANGUAGES=(c rust)
    if /usr/bin/python3 -c 'import gi; gi.require_version("GstVideo", "1.0")' 2>/dev/null; then
        LANGUAGES+=(python)
    else
        say "SKIPPED: embedding: Python has no GStreamer (python3-gi, gir1.2-gst-plugins-base-1.0)"
    fi
}

# Runs a program; its output stands in $OUT, its messages in $OUT.err, its exit status in $CODE.
run_program() { # LANGUAGE ARGUMENT...
    local language=$1
    shift
    OUT=$SCRATCH/$language
    CODE=0
    timeout 120 "$BUILT/$language" "$@" </dev/null >"$OUT" 2>"$OUT.err" || CODE=$?
}

# Runs all programs; each must print what the first one printed. Streams run side by side and share one
# count of ids, so lines are sorted, and ids compared where there is one stream only.
same_lines() { # WHAT LINES ARGUMENT...
    local what=$1 lines=$2 language
    shift 2
    for language in "${LANGUAGES[@]}"; do
        run_program "$language" "$@"
        if [ $# = 3 ]; then
            cp "$OUT" "$OUT.lines"
        else
            sed 's/#[0-9]* //g' "$OUT" | sort >"$OUT.lines"
        fi
        if [ "$CODE" != 0 ]; then
            tail -n 5 "$OUT.err"
            failed "embedding: $language, $what: exit status $CODE"
        elif [ "$(wc -l <"$OUT")" != "$lines" ] || ! grep -q ' inferred .*(.*) 0\.[0-9]* \[' "$OUT"; then
            failed "embedding: $language, $what: not $lines lines with detections among them"
        elif ! diff -q "$SCRATCH/c.lines" "$OUT.lines" >/dev/null; then
            diff "$SCRATCH/c.lines" "$OUT.lines" | head -n 5 || true
            failed "embedding: $language, $what: not what c prints"
        else
            ok "embedding: $language, $what"
        fi
    done
}

# What yolojson writes of the same frames, in the programs' form, without confidences: it rounds them differently.
json_as_lines() {
    python3 -c '
import json, sys
for record in map(json.loads, sys.stdin):
    line = "{element} {frame} {status}".format(**record)
    for one in record["detections"]:
        box = ",".join(map(str, one["box"]))
        line += " #{} {}({}) [{}]".format(int(one["id"], 16), one["class"], one["class_id"], box)
    print(line)'
}
like_yolojson() { # FRAMES
    # The pipeline ends by writing into a closed pipe.
    { timeout 120 gst-launch-1.0 -q filesrc location="$BIKES" ! decodebin \
        ! yolodetect name=stream0 model-file="$MODEL" ! yolojson ! fdsink </dev/null 2>/dev/null || true; } |
        head -n "$1" | json_as_lines >"$SCRATCH/json.lines"
    sed -E 's/\) [01]\.[0-9]{2} \[/) [/g' "$SCRATCH/c" >"$SCRATCH/c.boxes"
    diff "$SCRATCH/json.lines" "$SCRATCH/c.boxes"
}

share_one_engine() {
    local language
    for language in "${LANGUAGES[@]}"; do
        check "embedding: $language, two streams on one engine" grep -q \
            '^stats: stream0: 250 of 250 frames inferred, 2 streams on the engine$' "$SCRATCH/$language.err"
    done
}

# Must end with that status and say that text.
refuses() { # CODE TEXT ARGUMENT...
    local code=$1 text=$2 language
    shift 2
    for language in "${LANGUAGES[@]}"; do
        run_program "$language" "$@"
        if [ "$CODE" = "$code" ] && grep -qF -- "$text" "$OUT.err"; then
            ok "embedding: $language says $text"
        else
            tail -n 5 "$OUT.err"
            failed "embedding: $language: exit status $CODE instead of $code with the words $text"
        fi
    done
}

# Must say that text of that element message.
tells() { # WHAT MESSAGE TEXT
    local what=$1 message=$2 text=$3
    check "embedding: c tells of $what" test "$("$BUILT/message" "$message" 2>&1)" = "$text"
    [[ " ${LANGUAGES[*]} " == *" python "* ]] || return 0
    check "embedding: python tells of $what" test "$(PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$SOURCES \
        /usr/bin/python3 -c '
import sys, embed
from gi.repository import Gst
Gst.init(None)
fields = Gst.Structure.new_from_string(sys.argv[1])
embed.Player(None).on_message(None, Gst.Message.new_element(None, fields))' "$message" 2>&1)" = "$text"
}

# The tracer lists each object that is still alive when GStreamer is shut down.
no_leaks() { # ARGUMENT...
    local log=$SCRATCH/leaks
    GST_TRACERS=leaks GST_DEBUG=GST_TRACER:7 GST_DEBUG_NO_COLOR=1 GST_DEBUG_FILE=$log run_program c "$@"
    # Or there would be no leaks because nobody looked.
    grep -q object-alive.class "$log" || return 1
    ! grep -m 5 ' object-alive, type-name=(string)[^%]' "$log"
}

step_run() {
    find_languages
    same_lines "the clip to its end" 250 "$TINY" 0 "$BIKES"
    same_lines "30 frames of YOLO12n" 30 "$MODEL" 30 "$BIKES"
    check "embedding: the lines say what yolojson says" like_yolojson 30
    same_lines "two streams" 382 "$TINY" 0 "$BIKES" "$BUNNY"
    share_one_engine
    refuses 1 'No such file "nowhere.mp4"' "$TINY" 0 nowhere.mp4
    refuses 1 "the model nowhere.onnx cannot be read" nowhere.onnx 0 "$BIKES"
    GST_PLUGIN_PATH='' refuses 1 yolodetect "$TINY" 0 "$BIKES"
    refuses 2 usage: "$TINY" many "$BIKES"
    tells "a reduced batch" 'yolodetect-batch-reduced, model=(string)m.onnx, batch=(uint)8, limit=(uint)4;' \
        'batch reduced: m.onnx had no memory for 8 frames at once, takes 4 from now on'
    tells "memory pressure" "yolodetect-memory-pressure, level=(string)critical, source=(string)cgroup, \
actions=(structure)[actions, evict-models=(guint64)5, return-heap=(guint64)2;], freed-bytes=(guint64)7;" \
        'memory pressure: critical, by the cgroup; 7 bytes given back: evict-models return-heap'
    check "embedding: c leaks nothing to the end" no_leaks "$TINY" 0 "$BIKES" "$BUNNY"
    check "embedding: c leaks nothing after an error" no_leaks "$TINY" 0 "$BIKES" nowhere.mp4
}

# --- quotes --------------------------------------------------------------------------------------

# Every part of the file between `README: begin NAME` and `README: end NAME`.
quoted() { # FILE
    local name part
    while read -r name; do
        part=$(sed -n "/README: begin $name\b/,/README: end $name\b/p" "$1" | sed '1d;$d')
        if [ -n "$part" ] && [[ $(<README.md) == *"$part"$'\n```'* ]]; then
            ok "README quotes $name of $1"
        else
            failed "README does not quote $name of $1 as it is"
        fi
    done < <(sed -nE 's/.*README: begin ([a-z]+).*/\1/p' "$1")
}

step_quotes() {
    local file
    for file in embed.c main.rs embed.py; do
        check "embedding: $file has parts for the README" grep -q "README: begin" "$SOURCES/$file"
        quoted "$SOURCES/$file"
    done
}

main() {
    cd "$ROOT"
    make_scratch
    eval "$(pipelines/setup.sh --print-env)"
    local step steps=("$@")
    [ $# -gt 0 ] || steps=(build run quotes)
    for step in "${steps[@]}"; do
        declare -F "step_$step" >/dev/null || die "unknown step $step; see the top of this script"
        "step_$step"
    done
    return $STATUS
}

main "$@"
