#!/usr/bin/env bash
# Gets everything that the tests need: what pipelines/setup.sh fetches, then into target/
#
#   venv/                         Python with onnx, NumPy, Pillow, ONNX Runtime (tests/data/requirements.txt)
#   assets/pictures/NAME.png      bus zidane chelsea coffee astronaut motorcycle_left, RGB; decoded once, so that
#                                 every test sees the same pixels whatever JPEG decoder it has
#   assets/clips/bigbuckbunny-1080p.mp4
#                                 that clip in 1920x1080
#   assets/nvrtc/                 NVIDIA's compiler for kernels, which needs no GPU (x86-64 only)
#   assets/models/variants/*.onnx YOLO12n in other layouts (table in tests/data/make_variants.py)
#   assets/models/tiny/*.onnx     models of a few KB for edge cases (table in tests/data/make_tiny.py)
#   assets/gpu/*.i420             frames of those pictures as they are in memory, for tests/gpu.sh
#
# Usage: tests/setup.sh [--no-apt] [--check] [--gpu]
#   --no-apt  install no packages, only say which are missing
#   --check   also run every generated model with ONNX Runtime and compare (about a minute)
#   --gpu     only what tests/gpu.sh needs, for which GStreamer needs no decoder and no encoder
#
# What is there and intact stays; the second run needs no network.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"
# shellcheck source=pipelines/cuda.sh
. "$ROOT/pipelines/cuda.sh"

DATA=$ROOT/tests/data
VENV=$ROOT/target/venv
MODEL=$ASSETS/models/yolo12n.onnx
VENV_PACKAGES=(python3-venv)
# mmdebstrap makes the userland of tests/trixie.sh; the others are for programs in Python: the embedding example and
# the RTSP server of the tests.
TEST_PACKAGES=(mmdebstrap debian-archive-keyring
    python3-gi gir1.2-gst-plugins-base-1.0 gir1.2-gst-rtsp-server-1.0)
# Opens the dashboard. By itself: not every system that has the others has it as a package.
BROWSER_PACKAGES=(chromium)

# The sha256 of the named files' contents together.
digest() {
    cat "$@" | sha256sum | cut -d' ' -f1
}

make_venv() {
    local wanted
    wanted=$(digest "$DATA/requirements.txt")
    if [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/requirements.sha256" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    say "making target/venv"
    rm -rf "$VENV"
    # Debian's own Python first: one from pyenv or conda may go away or lack venv.
    /usr/bin/python3 -m venv "$VENV" 2>/dev/null || python3 -m venv --clear "$VENV" ||
        die "python3 cannot make a venv: install the package python3-venv"
    if ! "$VENV/bin/pip" install --disable-pip-version-check --no-input --progress-bar off --no-deps \
        --only-binary=:all: --require-hashes -r "$DATA/requirements.txt" </dev/null >"$SCRATCH/pip.log" 2>&1; then
        tail -n 15 "$SCRATCH/pip.log" >&2
        die "pip could not install tests/data/requirements.txt (output above); check the network, then run this again"
    fi
    # Last, so that an interrupted installation counts as none.
    printf '%s\n' "$wanted" >"$VENV/requirements.sha256"
}

# Runs a maker into a scratch folder, then puts the result in place as a whole with a list of hashes.
# It is made again when the list, the inputs or any of the files changed.
generate() { # FOLDER INPUT_FILES... -- COMMAND...   ({} in the command is the folder)
    local folder=$1 inputs=() made=$SCRATCH/made wanted
    shift
    while [ "$1" != -- ]; do
        inputs+=("$1")
        shift
    done
    shift
    wanted=$(digest "${inputs[@]}")
    if [ "$CHECK" = 0 ] && [ "$(cat "$folder/.inputs" 2>/dev/null)" = "$wanted" ] &&
        (cd "$folder" && sha256sum --check --status .files 2>&1) >/dev/null; then
        return 0
    fi
    say "making ${folder#"$ROOT"/}"
    rm -rf "$made"
    mkdir -p "$made" "$(dirname "$folder")"
    "$VENV/bin/python" "${@//\{\}/$made}" || die "could not make ${folder#"$ROOT"/} (message above)"
    (cd "$made" && sha256sum -- * >.files)
    printf '%s\n' "$wanted" >"$made/.inputs"
    rm -rf "$folder"
    mv "$made" "$folder"
}

# The packages' own files are fetched only when the pictures have to be made.
make_pictures() {
    local originals=$SCRATCH/originals
    if (cd "$ASSETS/pictures" 2>/dev/null && sha256sum --check --status .files 2>&1) >/dev/null; then
        return 0
    fi
    mkdir -p "$originals"
    files_from_wheel ultralytics==8.4.190 any \
        bd309728efa168af64d39040136828edd2dbcb4aeceb4510bdff4f3ca0ea01b8 <<LINES
c02019c4979c191eb739ddd944445ef408dad5679acab6fd520ef9d434bfbc63 ultralytics/assets/bus.jpg $originals/bus.jpg
16d73869e3267a7d4ed00de8e860833bd1657c1b252e94c0c348277adc7b6edb ultralytics/assets/zidane.jpg $originals/zidane.jpg
LINES
    # A wheel for one platform, wherever we are: only its pictures are used.
    files_from_wheel scikit-image==0.26.0 manylinux_2_28_x86_64 \
        74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af <<LINES
596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb skimage/data/chelsea.png $originals/chelsea.png
cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7 skimage/data/coffee.png $originals/coffee.png
88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5 skimage/data/astronaut.png $originals/astronaut.png
db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179 skimage/data/motorcycle_left.png $originals/motorcycle_left.png
LINES
    generate "$ASSETS/pictures" "$originals"/* -- "$DATA/make_pictures.py" {} "$originals"/*
}

make_frames() {
    generate "$ASSETS/gpu" "$DATA/make_frames.py" "$DATA/requirements.txt" "$ASSETS"/pictures/*.png -- \
        "$DATA/make_frames.py" {} "$ASSETS"/pictures/*.png
}

# A larger picture than any fetched clip has; what is in it does not matter where memory is measured.
make_clip() {
    local clip=$ASSETS/clips/bigbuckbunny-1080p.mp4
    [ ! -s "$clip" ] || return 0
    say "making ${clip#"$ROOT"/}"
    gst-launch-1.0 -q -e filesrc "location=$ASSETS/clips/bigbuckbunny.mp4" ! decodebin ! videoscale \
        ! video/x-raw,width=1920,height=1080 ! x264enc speed-preset=superfast key-int-max=30 ! h264parse ! mp4mux \
        ! filesink "location=$SCRATCH/clip.mp4" </dev/null ||
        die "could not make $clip (message above)"
    mv "$SCRATCH/clip.mp4" "$clip"
}

make_tiny() {
    local check=()
    [ "$CHECK" = 0 ] || check=(--check)
    generate "$ASSETS/models/tiny" "$DATA/make_tiny.py" "$DATA/requirements.txt" -- \
        "$DATA/make_tiny.py" {} "${check[@]}"
}

make_variants() {
    local check=()
    [ "$CHECK" = 0 ] || check=(--check "$ASSETS"/pictures/{bus,zidane,chelsea,motorcycle_left}.png)
    generate "$ASSETS/models/variants" "$DATA/make_variants.py" "$DATA/requirements.txt" "$MODEL" -- \
        "$DATA/make_variants.py" "$MODEL" {} "${check[@]}"
}

# Of the set that setup.sh fetches for CUDA 13.
fetch_compiler() {
    local lines name platform sha
    lines=$(cuda_files 13 | awk -v folder="$ASSETS/nvrtc" '
        $1 == "wheel" { wanted = ($2 ~ /^nvidia-cuda-nvrtc==/); if (wanted) print $2, $3, $4; next }
        wanted { file = $2; sub(/.*\//, "", file); print $1, $2, folder "/" file }')
    read -r name platform sha <<<"$lines"
    files_from_wheel "$name" "$platform" "$sha" < <(tail -n +2 <<<"$lines")
}

main() {
    local argument setup_arguments=() gpu_only=0
    CHECK=0
    for argument; do
        case $argument in
        --no-apt) NO_APT=1 && setup_arguments=(--no-apt) ;;
        --check) CHECK=1 ;;
        --gpu) gpu_only=1 ;;
        *) die "usage: tests/setup.sh [--no-apt] [--check] [--gpu]" ;;
        esac
    done
    # There is no such wheel for other processors; tests/openvino.rs says so.
    [ $gpu_only = 1 ] || [ "$(uname -m)" != x86_64 ] || setup_arguments+=(--openvino)
    "$ROOT/pipelines/setup.sh" "${setup_arguments[@]}"
    make_scratch
    # What is missing shows in what follows: no venv is an error, no mmdebstrap, RTSP server or browser a test skipped.
    apt_install "${VENV_PACKAGES[@]}" || true
    if [ $gpu_only = 0 ]; then
        apt_install "${TEST_PACKAGES[@]}" || true
        apt_install "${BROWSER_PACKAGES[@]}" || true
    fi
    make_venv
    make_pictures
    make_frames
    make_variants
    if [ $gpu_only = 1 ]; then
        say "ready to measure: target/assets has gpu and models/variants"
        return
    fi
    make_clip
    [ "$(uname -m)" != x86_64 ] || fetch_compiler
    make_tiny
    say "ready to test: target/assets has pictures, one more clip, gpu, models/tiny and models/variants"
}

main "$@"
