"""One side of against_opencv.sh: OpenCV's preprocessing, in turns with a process that answers one line with one line.

Usage: against_opencv.py ROUNDS COMMAND...

What OpenCV is asked to do, with every buffer reused and one thread: convert the colours of the whole frame, resize
straight into the middle of a grey picture of 640x640, and make a planar f32 tensor of 0..1 of that. The last step in
each of the usual ways; the fastest counts.
"""

import statistics
import subprocess
import sys
import time

import cv2
import numpy as np

REPEATS = 12
FRAMES = 4
WIDTH, HEIGHT, MODEL = 1920, 1080, 640
PICTURE = MODEL * HEIGHT // WIDTH
TOP = (MODEL - PICTURE) // 2

random = np.random.default_rng(1)
frames = {
    "NV12": [random.integers(0, 256, (HEIGHT * 3 // 2, WIDTH), np.uint8) for _ in range(FRAMES)],
    "BGR": [random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(FRAMES)],
}
rgb = np.empty((HEIGHT, WIDTH, 3), np.uint8)
canvas = np.full((MODEL, MODEL, 3), 114, np.uint8)
picture = canvas[TOP : TOP + PICTURE]
channels = [np.empty((PICTURE, MODEL), np.uint8) for _ in range(3)]
tensor = np.full((1, 3, MODEL, MODEL), 114 / 255, np.float32)
luma = np.empty((PICTURE, MODEL), np.uint8)
chroma = np.empty((PICTURE // 2, MODEL // 2, 2), np.uint8)
size = (MODEL, PICTURE)


def resized(kind, frame):
    """The frame in the middle of `canvas`, in its own order of channels; whether that is BGR."""
    if kind == "NV12":
        cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12, dst=rgb)
        cv2.resize(rgb, size, dst=picture, interpolation=cv2.INTER_LINEAR)
        return False
    cv2.resize(frame, size, dst=picture, interpolation=cv2.INTER_LINEAR)
    return True


def spread(bgr):
    """The picture's channels into the tensor, whose margins keep their grey."""
    cv2.split(picture, channels)
    for channel, values in enumerate(reversed(channels) if bgr else channels):
        np.multiply(values, np.float32(1 / 255), out=tensor[0, channel, TOP : TOP + PICTURE])


def blob(kind, frame):
    bgr = resized(kind, frame)
    np.copyto(tensor, cv2.dnn.blobFromImage(canvas, 1 / 255, swapRB=bgr))


def new_blob(kind, frame):
    """Without the copy, so into a tensor that is not reused."""
    bgr = resized(kind, frame)
    return cv2.dnn.blobFromImage(canvas, 1 / 255, swapRB=bgr)


def split(kind, frame):
    spread(resized(kind, frame))


def planes_first(kind, frame):
    """Shrinks the planes before the colours are converted, which few do."""
    cv2.resize(frame[:HEIGHT], size, dst=luma, interpolation=cv2.INTER_LINEAR)
    cv2.resize(
        frame[HEIGHT:].reshape(HEIGHT // 2, WIDTH // 2, 2),
        (MODEL // 2, PICTURE // 2),
        dst=chroma,
        interpolation=cv2.INTER_LINEAR,
    )
    cv2.cvtColorTwoPlane(luma, chroma, cv2.COLOR_YUV2RGB_NV12, dst=picture)
    spread(False)


WAYS = {
    "NV12": {"blobFromImage, copied": blob, "blobFromImage, new": new_blob, "split and multiply": split},
    "BGR": {"blobFromImage, copied": blob, "blobFromImage, new": new_blob, "split and multiply": split},
}


def measure(way, kind):
    times = []
    for i in range(REPEATS):
        frame = frames[kind][i % FRAMES]
        start = time.perf_counter()
        way(kind, frame)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main():
    rounds, command = int(sys.argv[1]), sys.argv[2:]
    cv2.setNumThreads(1)
    ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print(f"OpenCV {cv2.__version__}, NumPy {np.__version__}, medians of {rounds} rounds, ms\n")
    for kind, ways in WAYS.items():
        ways = dict(ways)
        if kind == "NV12":
            ways["planes shrunk first"] = planes_first
        theirs = {name: [] for name in ways}
        converted, copied = [], []
        for _ in range(rounds):
            for name, way in ways.items():
                theirs[name].append(measure(way, kind))
            ours.stdin.write(f"{kind}\n")
            ours.stdin.flush()
            answer = ours.stdout.readline().split()
            if len(answer) != 4:
                sys.exit(f"error: {' '.join(command)} gave no figures")
            converted.append(float(answer[0]))
            copied.append(float(answer[1]))
        medians = {name: statistics.median(times) for name, times in theirs.items()}
        usual = {name: times for name, times in theirs.items() if name != "planes shrunk first"}
        best = min(usual, key=medians.get)
        ratio = statistics.median(a / b for a, b in zip(theirs[best], converted))
        share = statistics.median(a / b for a, b in zip(copied, converted))
        read, written = int(answer[2]), int(answer[3])
        rate = (read + written) / statistics.median(converted) / 1e6
        print(f"1920x1080 {kind} to 640x640 f32")
        for name, median in medians.items():
            note = "   <- counts" if name == best else ""
            print(f"  OpenCV, {name:24} {median:7.3f}{note}")
        print(f"  ours                             {statistics.median(converted):7.3f}")
        print(f"  ratio                            {ratio:7.1f}")
        print(f"  ours reads {read} and writes {written} bytes: {rate:.1f} GB/s,")
        print(f"  {100 * share:.0f} % of the rate of a memory copy of as many ({statistics.median(copied):.3f} ms)\n")
    ours.stdin.close()
    if ours.wait() != 0:
        sys.exit("error: the other side failed")


main()
