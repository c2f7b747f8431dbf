#!/usr/bin/env bash
# Preprocessing beside OpenCV's, in one run and in turns: 1920x1080 NV12 and BGR to a 640x640 f32 tensor, one thread,
# tensors reused on both sides. benches/against_opencv.py says what OpenCV is asked to do.
#
# Usage: benches/against_opencv.sh [ROUNDS]      (41 unless told)
#
# Prints the median milliseconds of both, their ratio, the bytes that ours reads and writes, and which share of the rate of
# a memory copy that is. For x86-64. Needs what tests/setup.sh makes; OpenCV is fetched with pip into target/opencv at the first run.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 1 "$@"

PYTHON=$ROOT/target/venv/bin/python
OPENCV=$ROOT/target/opencv
REQUIREMENT='opencv-python-headless==5.0.0.93 --hash=sha256:ed709fdf9aa0bd1f2ed8549e71d19449b03a675bb581eb292285f6861953be37'

get_opencv() {
    if [ "$(cat "$OPENCV/requirement.txt" 2>/dev/null)" = "$REQUIREMENT" ]; then
        return 0
    fi
    say "fetching OpenCV with pip into ${OPENCV#"$ROOT"/}"
    make_scratch
    rm -rf "$OPENCV"
    printf '%s\n' "$REQUIREMENT" >"$SCRATCH/requirement.txt"
    if ! "$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off --no-deps \
        --only-binary=:all: --require-hashes --target "$OPENCV" -r "$SCRATCH/requirement.txt" \
        </dev/null >"$SCRATCH/pip.log" 2>&1; then
        tail -n 15 "$SCRATCH/pip.log" >&2
        die "pip could not install OpenCV (output above); check the network, then run this again"
    fi
    # Last, so that an interrupted installation counts as none.
    cp "$SCRATCH/requirement.txt" "$OPENCV/requirement.txt"
}

[ -x "$PYTHON" ] || die "no target/venv: run tests/setup.sh"
get_opencv
cargo bench --quiet --manifest-path "$ROOT/Cargo.toml" --bench preprocess --no-run
PYTHONPATH=$OPENCV exec "$PYTHON" "$ROOT/benches/against_opencv.py" "${1:-41}" \
    cargo bench --quiet --manifest-path "$ROOT/Cargo.toml" --bench preprocess -- --paced
