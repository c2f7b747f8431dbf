#!/usr/bin/env bash
# Every check of this repository, by one command; what CI runs.
#
# Usage: tests/run.sh [--fast] [STEP]...
#   --fast  without the slow steps: build, recipes, embedding, gpu, trixie
#   STEP    only these, in the order given:
#     setup    tests/setup.sh: packages, ONNX Runtime, models, clips, pictures
#     fmt      cargo fmt --check
#     clippy   cargo clippy, warnings are errors
#     test     cargo test (debug build)
#     doc      cargo doc, warnings are errors
#     build    cargo build --release
#     recipes  tests/recipes.sh: every recipe of pipelines/, as the README quotes it
#     embedding  tests/embedding.sh: the programs of examples/embedding, as the README quotes them
#     inspect  gst-inspect-1.0 of every element where no ONNX Runtime can be found, and that looking at the plugin
#              opens none of the libraries that it loads at run time
#     deny     cargo deny: licences, bans, sources (where cargo-deny is installed)
#     setup_cuda  tests/setup_cuda.sh: what pipelines/setup.sh does with --cuda, without network and GPU
#     gpu      tests/gpu.sh --rehearse: the measurement on GPUs, tried on the CPU
#     trixie   tests/trixie.sh: the same under GStreamer 1.26
#
# A failing step does not stop those after it. The last line is exactly `N passed, N failed, N skipped`, the exit
# status 1 if anything failed. Counted are cargo's `test result:` lines, and each other check as one.
#
# A test that cannot run here, or not all of it, appends a line `NAME: reason` to the file that the environment
# variable YOLODETECT_SKIP_LOG names (tests/common has a function for it); cargo counts it as passed, this script as
# skipped.
# YOLODETECT_SHARED is set to a folder with more models and reference results where there is one (../shared).
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"

BUILD=${CARGO_TARGET_DIR:-$ROOT/target}
ELEMENTS=(yolodetect yolooverlay yolojson pressurevalve)
# Loaded at run time, if at all.
RUNTIME_LIBRARIES='libonnxruntime|libgstanalytics|libnvidia-ml|libcuda'
ALL_STEPS=(setup setup_cuda fmt clippy test doc build recipes embedding gpu inspect deny trixie)
FAST_STEPS=(setup setup_cuda fmt clippy test doc inspect deny)
PASSED=0 FAILED=0 SKIPPED=0
FAILURES=()
SKIPS=()

# --- counting ------------------------------------------------------------------------------------

pass() { PASSED=$((PASSED + 1)); }
fail() {
    FAILED=$((FAILED + 1))
    FAILURES+=("$*")
    say "FAILED: $*"
}
skip() {
    SKIPPED=$((SKIPPED + 1))
    SKIPS+=("$*")
}

# Runs a command; its success is one check. The rest of the arguments is the command.
check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" </dev/null; then
        pass
    else
        fail "$name"
    fi
}

# Runs a command that runs tests and counts what it printed: cargo's result lines, a script's `ok: …`, `FAILED: …`
# and `SKIPPED: NAME: …` (NAME is the step's; tests may print such lines too), and what tests wrote to the skip log.
check_counted() { # NAME COMMAND...
    local name=$1 log=$LOGS/$1.log skip_log=$LOGS/$1.skipped failed_before=$FAILED status=0 line
    shift
    : >"$skip_log"
    YOLODETECT_SKIP_LOG=$skip_log "$@" </dev/null 2>&1 | tee "$log" || status=$?
    while read -r line; do
        if [[ $line =~ ^test\ result:.*\ ([0-9]+)\ passed\;\ ([0-9]+)\ failed\;\ ([0-9]+)\ ignored ]]; then
            PASSED=$((PASSED + BASH_REMATCH[1]))
            FAILED=$((FAILED + BASH_REMATCH[2]))
            SKIPPED=$((SKIPPED + BASH_REMATCH[3]))
            [ "${BASH_REMATCH[3]}" = 0 ] || SKIPS+=("$name: ${BASH_REMATCH[3]} tests marked #[ignore]")
            [ "${BASH_REMATCH[2]}" = 0 ] || FAILURES+=("$name: ${BASH_REMATCH[2]} tests of one executable, above")
        elif [[ $line == "ok: "* ]]; then
            pass
        elif [[ $line == "FAILED: "* ]]; then
            FAILED=$((FAILED + 1))
            FAILURES+=("${line#FAILED: }")
        elif [[ $line == "SKIPPED: $name: "* ]]; then
            skip "${line#SKIPPED: }"
        fi
    done <"$log"
    # A test that skips two parts of itself is still one.
    while read -r line; do
        skip "$name: $line"
        PASSED=$((PASSED - 1))
    done < <(awk -F': ' '!seen[$1]++' "$skip_log")
    # Such as code that does not compile: no test failed, and none ran.
    if [ $status != 0 ] && [ "$FAILED" = "$failed_before" ]; then
        fail "$name (exit status $status)"
    fi
}

# --- the steps -------------------------------------------------------------------------------------

step_setup() { check setup tests/setup.sh; }
step_fmt() { check fmt cargo fmt --check; }
step_clippy() { check clippy cargo clippy --quiet --all-targets -- -D warnings; }
# A test that hangs must not take the report with it.
step_test() { check_counted test timeout 2700 cargo test --no-fail-fast; }
step_doc() { RUSTDOCFLAGS="-D warnings" check doc cargo doc --quiet --no-deps --document-private-items; }
step_build() { check build cargo build --quiet --release; }
step_recipes() { check_counted recipes tests/recipes.sh; }
step_embedding() { check_counted embedding tests/embedding.sh; }
step_setup_cuda() { check_counted setup_cuda tests/setup_cuda.sh; }
# The measurement itself is for machines with a GPU and nothing else to do; here it must only run.
step_gpu() { check gpu timeout 900 tests/gpu.sh --rehearse; }
step_trixie() { check_counted trixie tests/trixie.sh; }

step_deny() {
    if cargo deny --version >/dev/null 2>&1; then
        check deny cargo deny check licenses bans sources
    else
        say "SKIPPED: cargo-deny is not installed (cargo install cargo-deny --locked)"
        skip "deny: cargo-deny is not installed"
    fi
}

step_inspect() {
    local plugins=$BUILD/release element
    if [ "$FAST" = 1 ] || [ ! -f "$plugins/libgstyolodetect.so" ]; then
        plugins=$BUILD/debug
    fi
    say "plugin from ${plugins#"$ROOT"/}"
    for element in "${ELEMENTS[@]}"; do
        inspect_element "$plugins" "$element"
    done
}

# A fresh registry, so that the plugin is scanned again; no system plugins, so that every library that is opened
# is opened for ours. The dynamic linker writes a log for each process, the plugin scanner's included.
inspect_element() { # PLUGIN_FOLDER ELEMENT
    local scratch=$LOGS/inspect-$2 opened
    rm -rf "$scratch"
    mkdir -p "$scratch"
    if ! env -u ORT_DYLIB_PATH -u LD_LIBRARY_PATH LD_DEBUG=libs LD_DEBUG_OUTPUT="$scratch/ld" \
        GST_REGISTRY="$scratch/registry.bin" GST_PLUGIN_SYSTEM_PATH="" GST_PLUGIN_PATH="$1" \
        gst-inspect-1.0 "$2" >"$scratch/out" 2>"$scratch/err" </dev/null; then
        tail -n 5 "$scratch/err" "$scratch/out"
        fail "inspect: gst-inspect-1.0 $2"
        return
    fi
    # A plugin of the same name would do for gst-inspect-1.0; only an element has factory details.
    if ! grep -q '^Factory Details' "$scratch/out"; then
        fail "inspect: there is no element $2"
        return
    fi
    if [ -s "$scratch/err" ]; then
        cat "$scratch/err"
        fail "inspect: gst-inspect-1.0 $2 complains"
        return
    fi
    if opened=$(cat "$scratch"/ld.* | grep -oE "[^ ]*($RUNTIME_LIBRARIES)[^ ]*" | sort -u | paste -sd ' ') && [ -n "$opened" ]; then
        fail "inspect: looking at $2 opens $opened"
        return
    fi
    # Or the check above would find nothing because it saw nothing.
    if ! grep -q libgstyolodetect.so "$scratch"/ld.*; then
        fail "inspect: the dynamic linker's log does not show the plugin"
        return
    fi
    say "ok: $2"
    pass
}

# --- all together ------------------------------------------------------------------------------------

report() {
    local line
    say
    for line in "${SKIPS[@]}"; do
        say "skipped: $line"
    done
    for line in "${FAILURES[@]}"; do
        say "failed: $line"
    done
    say "$PASSED passed, $FAILED failed, $SKIPPED skipped"
    [ $FAILED = 0 ]
}

main() {
    local steps=() step
    FAST=0
    for step; do
        case $step in
        --fast) FAST=1 ;;
        *)
            declare -F "step_$step" >/dev/null || die "unknown step $step; there are: ${ALL_STEPS[*]}"
            steps+=("$step")
            ;;
        esac
    done
    if [ ${#steps[@]} = 0 ]; then
        steps=("${ALL_STEPS[@]}")
        [ $FAST = 0 ] || steps=("${FAST_STEPS[@]}")
    fi
    cd "$ROOT"
    # Tests find the plugin and ONNX Runtime by themselves; the caller's choice must not change the result.
    unset ORT_DYLIB_PATH GST_PLUGIN_PATH
    # What a start takes shall not depend on what ran before; tests/cache.rs names folders of its own.
    export YOLODETECT_MODEL_CACHE=off
    if [ -z "${YOLODETECT_SHARED:-}" ] && [ -d ../shared ]; then
        YOLODETECT_SHARED=$(realpath ../shared)
        export YOLODETECT_SHARED
    fi
    LOGS=$ROOT/target/test-logs
    mkdir -p "$LOGS"
    for step in "${steps[@]}"; do
        say "== $step"
        "step_$step"
    done
    report
}

main "$@"
