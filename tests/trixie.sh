#!/usr/bin/env bash
# The plugin under GStreamer 1.26 (Debian trixie), beside whatever GStreamer this machine has.
#
# Usage: tests/trixie.sh [make] [inspect] [tests] [overlay] [embedding]     (all five when none is named)
#        tests/trixie.sh run COMMAND...     (any command in there, at the repository's root)
#   make     the userland in target/trixie (about a minute, 0.8 GB), kept for the next run
#   inspect  gst-inspect-1.0 of every element
#   tests    the test executables that `cargo test` built on this machine
#   overlay  a picture through yolodetect and GStreamer's own objectdetectionoverlay: it must draw our boxes
#   embedding  the programs of examples/embedding, built on this machine
#
# The plugin is this machine's release build, or its debug build where there is none or YOLODETECT_PROFILE=debug.
# Prints `ok: …` or `FAILED: …` for each check and the tests' own `test result:` lines; where it cannot run at all
# (not root, no mmdebstrap, no network on the first run) one line `SKIPPED: reason`, and exits 0.
#
# Each command runs in a mount namespace of its own: its mounts are gone when it ends, however it ends, and nobody
# outside can delete through them.
set -euo pipefail
# shellcheck source=pipelines/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../pipelines/lib.sh"

SELF=$ROOT/tests/trixie.sh
TRIXIE=$ROOT/target/trixie
BUILD=${CARGO_TARGET_DIR:-$ROOT/target}
ELEMENTS=(yolodetect yolooverlay yolojson pressurevalve)
# gcc: some tests make a library of their own. python3-gi and the gir1.2 ones: the embedding example in Python, and the
# RTSP server of the tests.
PACKAGES=gcc,libc6-dev,gstreamer1.0-tools,gstreamer1.0-plugins-base,gstreamer1.0-plugins-good,gstreamer1.0-plugins-bad,gstreamer1.0-plugins-ugly,gstreamer1.0-libav
PACKAGES+=,python3-gi,gir1.2-gst-plugins-base-1.0,gir1.2-gst-rtsp-server-1.0
# Test targets that need this machine's own tools (cargo, python), which the userland has not.
HOST_ONLY=()
FAILED=0

ok() { say "ok: $*"; }
failed() {
    say "FAILED: $*"
    FAILED=1
}
skip() {
    say "SKIPPED: trixie: $*"
    exit 0
}

# --- the userland --------------------------------------------------------------------------------

# Prints the Debian archive that this machine's apt uses, from either form of its sources.
debian_mirror() {
    local uris
    uris=$({
        cat /etc/apt/sources.list.d/*.sources | sed -n 's/^URIs:[[:space:]]*//p'
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list |
            sed -nE 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+).*/\2/p'
    } 2>/dev/null | tr ' ' '\n' | grep -E '/debian/?$')
    head -n 1 <<<"$uris"
}

require_means() {
    [ "$(id -u)" = 0 ] || skip "needs root (chroot and mounts)"
    unshare --mount true 2>/dev/null || skip "this machine allows no mount namespaces"
}

make_userland() {
    # One that was made for other packages is made anew.
    if [ "$(cat "$TRIXIE/.complete" 2>/dev/null)" = "$PACKAGES" ]; then
        return 0
    fi
    command -v mmdebstrap >/dev/null || skip "mmdebstrap is not installed (tests/setup.sh installs it)"
    local mirror part=$TRIXIE.part log=$ROOT/target/trixie.log
    mirror=$(debian_mirror || true)
    [ -n "$mirror" ] || skip "this machine's apt sources name no Debian archive"
    say "making target/trixie (about a minute)"
    mkdir -p "$ROOT/target"
    rm -rf "$part" "$TRIXIE"
    if ! mmdebstrap --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --include="$PACKAGES" \
        trixie "$part" "$mirror" </dev/null >"$log" 2>&1; then
        tail -n 5 "$log"
        rm -rf "$part"
        skip "mmdebstrap could not make the userland (output above; all of it in target/trixie.log)"
    fi
    # Last: without it, or with other packages, the next run makes a new one.
    printf '%s\n' "$PACKAGES" >"$part/.complete"
    mv "$part" "$TRIXIE"
}

# Runs a command in the userland, at the repository's root.
in_trixie() { # COMMAND...
    unshare --mount --propagation private "$SELF" --inside "$@"
}

# The same, where GStreamer finds the plugin and the plugin ONNX Runtime. Tests find both by themselves.
with_plugin() { # COMMAND...
    GST_PLUGIN_PATH=$PLUGINS ORT_DYLIB_PATH=$ASSETS/lib/libonnxruntime.so.1 in_trixie "$@"
}

# The part that runs in the mount namespace. The repository and shared data have their own paths in the userland,
# since test executables have them built in; /tmp is fresh; nothing of this machine's environment comes along, its
# paths mean nothing there.
enter_userland() { # COMMAND...
    local path
    mount --bind "$TRIXIE" "$TRIXIE"
    mount -t proc proc "$TRIXIE/proc"
    mount --rbind /dev "$TRIXIE/dev"
    mount -t tmpfs tmpfs "$TRIXIE/tmp"
    for path in "$ROOT" "$BUILD" "$SHARED"; do
        if [ -d "$path" ] && ! [ "$TRIXIE$path" -ef "$path" ]; then
            mkdir -p "$TRIXIE$path"
            mount --bind "$path" "$TRIXIE$path"
        fi
    done
    # shellcheck disable=SC2016  # the inner shell's own arguments
    exec env -i HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 RUST_BACKTRACE=1 \
        GST_REGISTRY="$BUILD/trixie-registry.bin" GST_PLUGIN_PATH="${GST_PLUGIN_PATH:-}" \
        ${ORT_DYLIB_PATH:+ORT_DYLIB_PATH="$ORT_DYLIB_PATH"} \
        YOLODETECT_SHARED="$SHARED" YOLODETECT_SKIP_LOG="${YOLODETECT_SKIP_LOG:-/dev/null}" \
        chroot "$TRIXIE" /bin/sh -c 'cd "$0" && exec "$@"' "$ROOT" "$@"
}

# --- the checks --------------------------------------------------------------------------------------

check_inspect() {
    local element
    say "$(in_trixie gst-inspect-1.0 --version | sed -n 2p) in the userland, plugin from ${PLUGINS#"$ROOT"/}"
    for element in "${ELEMENTS[@]}"; do
        # A plugin of the same name would do for gst-inspect-1.0; only an element has factory details.
        if GST_PLUGIN_PATH=$PLUGINS in_trixie gst-inspect-1.0 "$element" >"$SCRATCH/log" 2>&1 && grep -q '^Factory Details' "$SCRATCH/log"; then
            ok "trixie: gst-inspect-1.0 $element"
        else
            tail -n 5 "$SCRATCH/log"
            failed "trixie: gst-inspect-1.0 $element"
        fi
    done
}

# Prints `NAME PATH` for every test executable, built on this machine.
test_executables() {
    cargo test --no-run --quiet --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line) if line.startswith("{") else {}
    if message.get("executable") and message.get("profile", {}).get("test"):
        print(message["target"]["name"], message["executable"])'
}

check_tests() {
    local name executable executables
    if ! executables=$(test_executables); then
        failed "trixie: cargo could not build the tests"
        return
    fi
    while read -r name executable; do
        if [[ " ${HOST_ONLY[*]} " == *" $name "* ]]; then
            say "SKIPPED: trixie: tests of $name need tools of the machine that built them"
            continue
        fi
        say "-- $name, in the userland"
        # 15 minutes: a hang must not take the whole run with it.
        if in_trixie timeout 900 "$executable" </dev/null >"$SCRATCH/log" 2>&1; then
            grep '^test result:' "$SCRATCH/log"
        else
            cat "$SCRATCH/log"
            FAILED=1
            # The runner counts failed tests by the result line; a crash or a timeout leaves none.
            grep -q '^test result: FAILED' "$SCRATCH/log" || failed "trixie: $name ended without a result"
        fi
    done <<<"$executables"
}

# One picture through the pipeline with and without GStreamer's overlay element; what differs must be our boxes.
check_overlay() {
    local picture=$ASSETS/pictures/bus.png overlay draw
    for overlay in identity objectdetectionoverlay; do
        draw=("$overlay")
        # Magenta, which the picture has not.
        [ "$overlay" = identity ] || draw+=(object-detection-outline-color=0xffff00ff)
        if ! with_plugin timeout 120 gst-launch-1.0 -q filesrc location="$picture" ! pngdec \
            ! videoconvert ! video/x-raw,format=RGBA \
            ! yolodetect model-file="$ASSETS/models/yolo12n.onnx" ! "${draw[@]}" \
            ! videoconvert ! video/x-raw,format=RGB ! pngenc ! filesink location="$SCRATCH/$overlay.png" \
            </dev/null >"$SCRATCH/log" 2>&1; then
            tail -n 10 "$SCRATCH/log"
            failed "trixie: yolodetect ! $overlay"
            return
        fi
    done
    if "$ROOT/target/venv/bin/python" "$ROOT/tests/data/check_overlay.py" \
        "$SCRATCH/identity.png" "$SCRATCH/objectdetectionoverlay.png"; then
        ok "trixie: objectdetectionoverlay draws yolodetect's boxes"
    else
        failed "trixie: objectdetectionoverlay does not draw yolodetect's boxes"
    fi
}

# The script prints its own results.
check_embedding() {
    if ! "$ROOT/tests/embedding.sh" build >"$SCRATCH/log" 2>&1; then
        tail -n 10 "$SCRATCH/log"
        failed "trixie: examples/embedding does not build"
    elif ! with_plugin tests/embedding.sh run; then
        FAILED=1
    fi
}

main() {
    SHARED=$(realpath -m "${YOLODETECT_SHARED:-$ROOT/../shared}")
    PLUGINS=$BUILD/release
    if [ "${YOLODETECT_PROFILE:-release}" = debug ] || [ ! -f "$PLUGINS/libgstyolodetect.so" ]; then
        PLUGINS=$BUILD/debug
    fi
    if [ "${1:-}" = --inside ]; then
        shift
        enter_userland "$@"
    fi
    cd "$ROOT"
    unset GST_PLUGIN_PATH ORT_DYLIB_PATH
    require_means
    make_userland
    if [ "${1:-}" = run ]; then
        shift
        with_plugin "$@"
        exit
    fi
    make_scratch
    local step
    for step in "${@:-all}"; do
        case $step in
        make) ;;
        inspect | tests | overlay | embedding) "check_$step" ;;
        all) check_inspect && check_tests && check_overlay && check_embedding ;;
        *) die "unknown step $step; see the top of this script" ;;
        esac
    done
    exit $FAILED
}

main "$@"
