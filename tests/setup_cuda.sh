#!/usr/bin/env bash
# What pipelines/setup.sh does with --cuda, as far as that needs neither a network nor a GPU: which CUDA it takes, what it
# prints, what it refuses. On a copy of pipelines/ with nothing fetched, beside stand-ins for the machine's commands.
#
# Prints `ok: …` or `FAILED: …` for each check.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"

STATUS=0
make_scratch
COPY=$SCRATCH/copy BIN=$SCRATCH/bin
FETCHED=$COPY/target/assets
mkdir -p "$COPY" "$BIN"
cp -r "$ROOT/pipelines" "$COPY/"

# Has a command of that name print lines; without lines, fail.
stand_in() { # COMMAND [LINE]...
    local name=$1
    shift
    if [ $# = 0 ]; then
        printf '#!/bin/sh\nexit 9\n'
    else
        printf '#!/bin/sh\ncat <<"TEXT"\n%s\nTEXT\n' "$(printf '%s\n' "$@")"
    fi >"$BIN/$name"
    chmod 755 "$BIN/$name"
}

driver_of() { # CUDA_VERSION, as nvidia-smi's heading has it
    stand_in nvidia-smi "| NVIDIA-SMI 580.65.06   Driver Version: 580.65.06   CUDA Version: $1     |"
}

# A nvidia-smi that also tells what its GPUs can do, as far as it is asked for that.
cards_of() { # CUDA_VERSION CAPABILITY...
    driver_of "$1"
    shift
    mv "$BIN/nvidia-smi" "$BIN/heading"
    printf '#!/bin/sh\ncase "$*" in\n*compute_cap*) printf "%%s\\n"%s ;;\n*) exec "%s" ;;\nesac\n' "$(printf ' "%s"' "$@")" "$BIN/heading" \
        >"$BIN/nvidia-smi"
    chmod 755 "$BIN/nvidia-smi"
}

# Runs the copy with these arguments and compares the exit status, then every piece with all that is printed; `!PIECE` must
# not be there.
expect() { # NAME STATUS PIECE... -- ARGUMENT...
    local name=$1 wanted=$2 pieces=() piece status=0 text
    shift 2
    while [ "$1" != -- ]; do
        pieces+=("$1")
        shift
    done
    shift
    text=$(cd "$SCRATCH" && env -u LD_LIBRARY_PATH -u CARGO_TARGET_DIR PATH="$BIN:$PATH" \
        "$COPY/pipelines/setup.sh" --no-apt "$@" </dev/null 2>&1) || status=$?
    if [ "$status" != "$wanted" ]; then
        failed "$name: status $status: $text"
        return
    fi
    for piece in "${pieces[@]}"; do
        if [[ $piece == !* && $text == *"${piece#!}"* ]] || [[ $piece != !* && $text != *"$piece"* ]]; then
            failed "$name: $piece: $text"
            return
        fi
    done
    say "ok: setup.sh $name"
}

failed() {
    say "FAILED: setup.sh $*"
    STATUS=1
}

# One that knows no library of CUDA, whatever this machine has.
stand_in ldconfig "libc.so.6 (libc6,x86-64) => /lib/libc.so.6"
stand_in uname x86_64

# --- which CUDA ----------------------------------------------------------------------------------

lines=("ORT_DYLIB_PATH=$FETCHED/cuda/libonnxruntime.so.1.31.1" CUDA_MODULE_LOADING=LAZY "run pipelines/setup.sh --cuda=13")
expect "prints lines for CUDA 13" 0 "${lines[@]}" -- --print-env --cuda=13
expect "prints lines for CUDA 12" 0 "ORT_DYLIB_PATH=$FETCHED/cuda12/libonnxruntime.so.1.24.4" -- --print-env --cuda=12
expect "prints no variable of CUDA without --cuda" 0 "!CUDA_" "ORT_DYLIB_PATH=$FETCHED/lib/" -- --print-env
driver_of 13.0
expect "takes CUDA 13 for its driver" 0 "${lines[@]}" -- --print-env --cuda
driver_of 12.4
expect "takes CUDA 12 for its driver" 0 /cuda12/ -- --print-env --cuda
driver_of 14.2
expect "takes CUDA 13 for a later driver" 0 /cuda/ -- --print-env --cuda
for cards in 7.5 8.0 8.6 8.7 8.9 9.0 12.0 12.1; do
    cards_of 13.0 $cards
    expect "takes CUDA 13 for a GPU of $cards" 0 /cuda/ "!compute capability" -- --print-env --cuda
done
for cards in 6.0 6.1 7.0 7.2 10.0 10.3 11.0 13.0; do
    cards_of 13.0 $cards
    expect "takes CUDA 12 for a GPU of $cards, and says so" 0 /cuda12/ "a GPU of compute capability $cards is here" -- --print-env --cuda
done
cards_of 13.0 8.6 7.0 12.0 7.0
expect "takes CUDA 12 where one of several GPUs wants it" 0 /cuda12/ "of compute capability 7.0 is" -- --print-env --cuda
expect "takes CUDA 13 where it is asked for" 0 /cuda/ "!compute capability" -- --print-env --cuda=13
cards_of 12.4 10.0
expect "takes CUDA 12 for its driver whatever the GPU" 0 /cuda12/ "!compute capability" -- --print-env --cuda
for cards in "[N/A]" 5.2 "Field compute_cap is not a valid field to query."; do
    cards_of 13.0 "$cards"
    expect "goes by the driver where GPUs tell nothing that it knows ($cards)" 0 /cuda/ "!compute capability" -- --print-env --cuda
done
stand_in nvidia-smi "DRIVER version        : 590.48" "CUDA UMD Version      : 13.1"
expect "reads nvidia-smi in other words" 0 /cuda/ -- --print-env --cuda
driver_of 11.8
expect "refuses an older driver" 1 "the driver is for CUDA 11.8" "driver 525 or later" -- --cuda

# A driver that nvidia-smi does not tell of is asked itself, so there must be none for this.
stand_in nvidia-smi
if python3 -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null; then
    say "SKIPPED: setup_cuda: a driver is here: what is said without one"
else
    expect "asks which CUDA without a driver" 1 "no NVIDIA driver is here" "--cuda=13 or --cuda=12" -- --cuda
    expect "asks for the system's CUDA where there is neither" 1 "the loader finds no CUDA here" -- --cuda=system
    mkdir -p "$FETCHED/cuda12"
    touch "$FETCHED/cuda12/libonnxruntime.so.1.24.4"
    expect "prints lines for what is there without a driver" 0 "/cuda12/lib" "!run pipelines/setup.sh --cuda" -- --print-env --cuda
    rm -r "$FETCHED"
fi

# --- the system's own ----------------------------------------------------------------------------

driver_of 13.0
stand_in ldconfig "	libcublasLt.so.12 (libc6,x86-64) => /usr/local/cuda/lib64/libcublasLt.so.12"
expect "takes what the system's CUDA needs" 0 "$FETCHED/cuda12-system/libonnxruntime.so.1.24.4" "!=12" -- --print-env --cuda=system
stand_in ldconfig
expect "takes what the driver needs where no CUDA is found" 0 "$FETCHED/cuda-system/" -- --print-env --cuda=system

# --- what cannot be ------------------------------------------------------------------------------

expect "refuses other versions" 1 "--cuda=14: there are --cuda=12, --cuda=13 and --cuda=system" -- --cuda=14
expect "prints no lines for two libraries" 1 "a process can load one only" -- --print-env --cuda=13 --openvino
stand_in uname aarch64
expect "knows no wheel for other processors" 1 "no wheel of onnxruntime-gpu is known for aarch64" -- --cuda=13
expect "prints no lines for other processors" 1 "no wheel of onnxruntime-gpu is known for aarch64" -- --print-env --cuda=13
stand_in uname x86_64
stand_in df "    Avail" "   100000"
expect "says sizes, and that the disk is full, before it fetches" 1 "8 packages, 1571 MB to fetch" "no room for 3509 MB" "only 102 MB are free" \
    "!fetching" -- --cuda=13
expect "wants one package for the system's own" 1 "onnxruntime-gpu alone, 256 MB to fetch" "!fetching" -- --cuda=system
exit $STATUS
