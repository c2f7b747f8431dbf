#!/usr/bin/env bash
# How long a start takes, and what it peaks at, without and with the cache of optimised models.
#
# Usage: benches/startup.sh [RUNS]      (9 of each unless told; an odd number has a median of its own)
#
# Each run is one gst-launch-1.0 with `filesrc ! decodebin ! yolodetect ! yolojson ! fdsink` of a street scene, on two threads;
# cold and warm ones take turns. The time is from the process's start to the first line with a detection, in seconds; the
# memory is the process's greatest resident set until then, in MB (10^6 bytes), and what of it was anonymous at that moment.
# The row of YOLO11l, whose weights find nothing, is to the first line; it needs the folder that YOLODETECT_SHARED names
# (../shared).
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read_counts 1 "$@"

RUNS=${1:-9}
SHARED=${YOLODETECT_SHARED:-$ROOT/../shared}
CACHE=$(mktemp -d)
trap 'rm -rf "$CACHE"' EXIT

cargo build --release --quiet --manifest-path "$ROOT/Cargo.toml"
eval "$("$ROOT/pipelines/setup.sh" --print-env)"

row() { # NAME MODEL WANTED
    "$ROOT/target/release/yolodetect-optimize" --threads 2 --cache "$CACHE" "$2" >/dev/null
    python3 - "$RUNS" "$1" "$2" "$3" "$CACHE" "$ASSETS/clips/bikes.mp4" <<'PYTHON'
import os, re, statistics, subprocess, sys, time

runs, name, model, wanted, cache, clip = sys.argv[1:]
command = ["gst-launch-1.0", "-q", "filesrc", f"location={clip}", "!", "decodebin", "!", "yolodetect",
           f"model-file={model}", "threads=2", "!", "yolojson", "!", "fdsink"]


def start(cache):
    begin = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "YOLODETECT_MODEL_CACHE": cache}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE)
    for line in process.stdout:
        if wanted.encode() in line:
            taken = time.monotonic() - begin
            break
    else:
        sys.exit(f"{name}: no line with {wanted}")
    status = open(f"/proc/{process.pid}/status").read()
    process.kill()
    process.wait()
    megabytes = lambda field: int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024 / 1e6
    return taken, megabytes("VmHWM"), megabytes("RssAnon")


start("off")  # The files are in the page cache, GStreamer's registry is there.
pairs = [(start("off"), start(cache)) for _ in range(int(runs))]
for label, column in ("without", 0), ("with", 1):
    times, peaks, anonymous = zip(*(pair[column] for pair in pairs))
    print(f"| {name} | {label} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} "
          f"| {statistics.median(peaks):.0f} | {statistics.median(anonymous):.0f} |")
PYTHON
}

say '| model | cache | to the first detection, median | least | most | peak resident, MB | anonymous |'
say '| --- | --- | --- | --- | --- | --- | --- |'
row YOLO12n "$ASSETS/models/yolo12n.onnx" '"conf"'
if [ -e "$SHARED/models/yolo11l_shape.onnx" ]; then
    row YOLO11l "$SHARED/models/yolo11l_shape.onnx" '"inferred"'
else
    say "(no $SHARED/models/yolo11l_shape.onnx: no row of YOLO11l)"
fi
