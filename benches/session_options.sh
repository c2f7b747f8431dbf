#!/usr/bin/env bash
# What ONNX Runtime's session options cost: the tables of docs/runtime-options.md.
#
# Usage: benches/session_options.sh [ROUNDS]      (5 unless told: under 6 minutes on two cores)
#
# Each case is a process of its own (benches/session_options.rs says what it does and prints), all cases are run in turn,
# ROUNDS times, and the table has the medians. What is not named is as the plugin has it. The table of the YOLO11l-size
# model needs the folder that YOLODETECT_SHARED names (../shared).
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 1 "$@"

ROUNDS=${1:-5}
NANO=$ASSETS/models/yolo12n.onnx
LARGE=${YOLODETECT_SHARED:-$ROOT/../shared}/models/yolo11l_shape.onnx
SPIN=session.intra_op.allow_spinning
SPIN_TIME=session.intra_op.spin_duration_us

find_runtime
build_bench session_options
make_scratch

# Optimised models, written by processes apart.
"$BENCH" "$NANO" "write=$SCRATCH/optimised.onnx"
"$BENCH" "$NANO" "write=$SCRATCH/optimised.ort"

heading() { printf '\n%s\n\n' "$1"; }

# --- time and memory -----------------------------------------------------------------------------

alone_table() {
    local number
    say "| options | load, ms | a run, ms | frames/s | processor, ms a frame | resident, MB | peak, MB |"
    say "| --- | --- | --- | --- | --- | --- | --- |"
    for ((number = 1; number <= ${#CASES[@]}; number++)); do
        say "| ${CASES[number - 1]} | $(median $number 1 0) | $(median $number 2 1) | $(median $number 3 2) |" \
            "$(median $number 4 0) | $(median $number 5 0) | $(median $number 6 0) |"
    done
}

print_machine
measure "**the plugin's**: 1 caller, 2 threads" "$NANO"
measure "2 callers, 1 thread" "$NANO" callers=2 threads=1
measure "1 caller, 1 thread" "$NANO" threads=1
measure "1 caller, 4 threads" "$NANO" threads=4
measure "memory pattern on" "$NANO" pattern=1
measure "memory pattern on, 2 callers, 1 thread" "$NANO" pattern=1 callers=2 threads=1
measure "arena off" "$NANO" arena=0
measure "arena off, 2 callers, 1 thread" "$NANO" arena=0 callers=2 threads=1
measure "arena grows by what is asked for" "$NANO" growth=requested
measure "spinning as long as ONNX Runtime does by itself" "$NANO" $SPIN_TIME=
measure "spinning off" "$NANO" $SPIN=0
measure "spinning for 10 µs" "$NANO" $SPIN_TIME=10
measure "spinning for 200 µs" "$NANO" $SPIN_TIME=200
measure "spinning stopped at the end of a run" "$NANO" $SPIN_TIME= session.force_spinning_stop=1
measure "two nodes at a time (parallel execution)" "$NANO" parallel=2
measure "optimisation: none" "$NANO" level=disable
measure "optimisation: basic" "$NANO" level=basic
measure "optimisation: extended" "$NANO" level=extended
measure "optimised \`.onnx\`, loaded without optimisation" "$SCRATCH/optimised.onnx" level=disable
measure "optimised \`.ort\`, loaded without optimisation" "$SCRATCH/optimised.ort" level=disable
measure "denormals as zero" "$NANO" session.set_denormal_as_zero=1
measure "prepacking off" "$NANO" session.disable_prepacking=1
measure "prepacking on several threads" "$NANO" session.prepack.enable_parallel=1
measure "initializers outside of the arena" "$NANO" session.use_device_allocator_for_initializers=1
measure "512 channels a kernel call" "$NANO" mlas.nchwc_pointwise_conv_max_input_channel_batch=512
run_cases "$ROUNDS"
heading "YOLO12n, nothing else running:"
alone_table
forget_cases

# --- beside a decoder, and with pauses -------------------------------------------------------------

BESIDE=(beside=1 runs=8)
PAUSED=(pause=100 runs=6)
NAMES=()
beside() { # NAME ARGUMENT...
    NAMES+=("$1")
    measure "$1" "$NANO" "${BESIDE[@]}" "${@:2}"
    measure "$1" "$NANO" "${PAUSED[@]}" "${@:2}"
}
beside "**the plugin's**: 1 caller, 2 threads"
beside "spinning as long as ONNX Runtime does by itself" $SPIN_TIME=
beside "spinning off" $SPIN=0
beside "spinning for 10 µs" $SPIN_TIME=10
beside "spinning for 200 µs" $SPIN_TIME=200
beside "spinning stopped at the end of a run" $SPIN_TIME= session.force_spinning_stop=1
beside "spinning with longer and longer pauses" $SPIN_TIME= session.intra_op.spin_backoff_max=8
beside "work handed out in smaller parts" $SPIN_TIME= session.dynamic_block_base=4
beside "1 caller, 1 thread" threads=1
beside "2 callers, 1 thread" threads=1 callers=2
run_cases "$ROUNDS"
heading "YOLO12n beside a thread that does to memory what a decoder does, as fast as it can; and, with nothing beside, 100 ms of
pause before each run:"
say "| options | beside: frames/s | processor, ms a frame | speed that the decoder keeps, % |" \
    "with pauses: a run, ms | processor, ms a frame |"
say "| --- | --- | --- | --- | --- | --- |"
for ((index = 0; index < ${#NAMES[@]}; index++)); do
    at=$((2 * index + 1)) paused=$((2 * index + 2))
    say "| ${NAMES[index]} | $(median $at 3 2) | $(median $at 4 0) | $(median $at 7 0) |" \
        "$(median $paused 2 1) | $(median $paused 4 0) |"
done
forget_cases

# --- a large model ----------------------------------------------------------------------------------

if [ -e "$LARGE" ]; then
    "$BENCH" "$LARGE" "write=$SCRATCH/large.ort"
    FEW=(runs=3 warm=1)
    measure "**the plugin's**: 1 caller, 2 threads" "$LARGE" "${FEW[@]}"
    measure "memory pattern on" "$LARGE" "${FEW[@]}" pattern=1
    measure "arena off" "$LARGE" "${FEW[@]}" arena=0
    measure "spinning as long as ONNX Runtime does by itself" "$LARGE" "${FEW[@]}" $SPIN_TIME=
    measure "prepacking off" "$LARGE" "${FEW[@]}" session.disable_prepacking=1
    measure "optimised \`.ort\`, loaded without optimisation" "$SCRATCH/large.ort" "${FEW[@]}" level=disable
    run_cases $(((ROUNDS + 2) / 3))
    heading "A network of YOLO11l's size, nothing else running:"
    alone_table
else
    warn "no YOLO11l-size model in $LARGE: its table is left out"
fi
