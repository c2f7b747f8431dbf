# shellcheck shell=bash
# Cases that are measured in turn, each by a process of its own, round after round, so that a drift of the machine's speed
# meets all alike; sourced, never run.

# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"
export LC_ALL=C
# Every load is a whole one, and nobody writes a cache beside the measurement.
export YOLODETECT_MODEL_CACHE=off

# Reads the arguments before anything is built: --help prints the comment at the head of the script; all others are whole numbers
# from 1 on, so many at most.
read_counts() { # MOST ARGUMENT...
    local most=$1 argument
    shift
    for argument; do
        case $argument in
        -h | --help) head_comment && exit ;;
        esac
    done
    [ $# -le "$most" ] || wrong_arguments "too many arguments: $*"
    for argument; do
        [[ $argument =~ ^[1-9][0-9]{0,6}$ ]] || wrong_arguments "$argument is no number from 1 on"
    done
}

head_comment() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }

wrong_arguments() { # REASON
    head_comment | sed -n '/^Usage:/p' >&2
    die "$1"
}

# Which ONNX Runtime the benches load: the one that ORT_DYLIB_PATH names, else the fetched one.
find_runtime() {
    export ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$ASSETS/lib/libonnxruntime.so.1}
    [ -e "$ORT_DYLIB_PATH" ] || die "$ORT_DYLIB_PATH is missing: run pipelines/setup.sh"
}

# Builds a bench and sets BENCH to its executable.
build_bench() { # NAME
    BENCH=$(cargo bench --quiet --no-run --bench "$1" --manifest-path "$ROOT/Cargo.toml" --message-format=json |
        sed -n "s/.*\"executable\":\"\([^\"]*\/$1-[^\"]*\)\".*/\1/p" | tail -n 1)
    [ -x "$BENCH" ] || die "cargo built no bench $1"
}

# Adds a case: what it is called in the table, and BENCH's arguments.
CASES=()
measure() { # NAME ARGUMENT...
    CASES+=("$1")
    shift
    printf '%s\0' "$@" >"$SCRATCH/${#CASES[@]}.arguments"
}

# Runs all cases of the list so often.
run_cases() { # ROUNDS
    local round number arguments
    for ((round = 1; round <= $1; round++)); do
        for ((number = 1; number <= ${#CASES[@]}; number++)); do
            mapfile -d '' arguments <"$SCRATCH/$number.arguments"
            "$BENCH" "${arguments[@]}" >>"$SCRATCH/$number.results" || die "this failed: ${CASES[number - 1]}"
        done
    done
}

# The median of a column of a case's results, with so many decimals.
median() { # CASE COLUMN DECIMALS
    cut -f "$2" "$SCRATCH/$1.results" | sort -n |
        awk -v decimals="$3" '{ v[NR] = $1 } END { printf "%.*f", decimals, (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

forget_cases() {
    CASES=()
    rm -f "$SCRATCH"/*.arguments "$SCRATCH"/*.results
}

# What the figures depend on.
print_machine() {
    say "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores," \
        "$(grep -o -w -E 'avx2|avx512f|avx512_vnni|avx_vnni|amx_int8|asimd|asimddp|i8mm' /proc/cpuinfo | sort -u | paste -s -d ' ');" \
        "ONNX Runtime $(basename "$(readlink -f "$ORT_DYLIB_PATH")" | sed 's/.*\.so\.//')"
}
