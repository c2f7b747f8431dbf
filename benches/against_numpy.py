"""See against_numpy.sh. Usage: against_numpy.py BENCH MODEL ROUNDS PICTURE..."""

import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime
from PIL import Image

SIDE = 640
CLASSES = 80
CELLS = 8400
CONFIDENCE = 0.25
IOU = 0.7
MAX_DETECTIONS = 300
# Beyond every coordinate, so that boxes of two classes never meet.
CLASS_OFFSET = 7680
THREADS = 2


def usual(output, size):
    """From [1,84,8400] to rows x1 y1 x2 y2 score class, as scripts around Ultralytics' models do it."""
    rows = output[0].transpose()
    scores, classes = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    likely = scores > CONFIDENCE
    return suppressed(rows[likely], scores[likely], classes[likely], size)


def lean(output, size):
    """The same with the classes looked for among the likely rows alone, which few scripts do."""
    rows = output[0].transpose()
    scores = rows[:, 4:].max(axis=1)
    likely = scores > CONFIDENCE
    rows = rows[likely]
    return suppressed(rows, scores[likely], rows[:, 4:].argmax(axis=1), size)


def suppressed(rows, scores, classes, size):
    centers, halves = rows[:, :2], rows[:, 2:4] / 2
    boxes = np.concatenate([centers - halves, centers + halves], axis=1)
    kept = nms(boxes + classes[:, None] * CLASS_OFFSET, scores)[:MAX_DETECTIONS]
    boxes = boxes[kept]
    gain = min(SIDE / size[0], SIDE / size[1])
    pad = [(SIDE - round(side * gain)) // 2 for side in size]
    boxes = (boxes - np.array(pad * 2)) / gain
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, size[0])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, size[1])
    return np.column_stack([boxes, scores[kept], classes[kept]])


def nms(boxes, scores):
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    order = scores.argsort()[::-1]
    kept = []
    while order.size:
        first, rest = order[0], order[1:]
        kept.append(first)
        w = np.maximum(0, np.minimum(x2[first], x2[rest]) - np.maximum(x1[first], x1[rest]))
        h = np.maximum(0, np.minimum(y2[first], y2[rest]) - np.maximum(y1[first], y1[rest]))
        shared = w * h
        order = rest[shared / (areas[first] + areas[rest] - shared) <= IOU]
    return np.array(kept, dtype=int)


def letterboxed(path):
    """[1,3,640,640] and the picture's (width, height)."""
    picture = Image.open(path).convert("RGB")
    gain = min(SIDE / picture.width, SIDE / picture.height)
    resized = picture.resize((round(picture.width * gain), round(picture.height * gain)), Image.BILINEAR)
    canvas = Image.new("RGB", (SIDE, SIDE), (114, 114, 114))
    canvas.paste(resized, ((SIDE - resized.width) // 2, (SIDE - resized.height) // 2))
    return np.asarray(canvas, np.float32).transpose(2, 0, 1)[None] / 255, picture.size


def made(count):
    """An output with so many candidates, ten for each object."""
    random = np.random.default_rng(count)
    output = random.uniform(0, 0.05, (1, 4 + CLASSES, CELLS)).astype(np.float32)
    output[0, :4] = random.uniform(20, 40, (4, CELLS))
    cells = random.choice(CELLS, count, replace=False)
    for start in range(0, count, 10):
        objects = cells[start : start + 10]
        box = np.concatenate([random.uniform(60, 580, 2), random.uniform(10, 110, 2)])
        output[0, :4, objects] = box + random.uniform(0, 6, (len(objects), 4))
        output[0, 4 + random.integers(CLASSES), objects] = random.uniform(0.3, 0.95, len(objects))
    return output


def timed(work):
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1000, result


def main():
    bench, model, rounds, *pictures = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    cases = []
    for path in pictures:
        tensor, size = letterboxed(path)
        cases.append((os.path.basename(path), session.run(None, {name: tensor})[0], size))
    cases += [(f"made, {count}", made(count), (SIDE, SIDE)) for count in (20, 200, 1000)]

    inference = []
    times = [([], [], []) for _ in cases]
    found = [None] * len(cases)
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, f"{index}.f32") for index in range(len(cases))]
        for (_, output, _), file in zip(cases, files):
            output.astype(np.float32).tofile(file)
        for _ in range(int(rounds)):
            inference.append(timed(lambda: session.run(None, {name: tensor}))[0])
            for index, (_, output, size) in enumerate(cases):
                command = [bench, "--raw", files[index], "{}x{}".format(*size)]
                ns, ours = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                # As often as ours, within reason: a first call is slower than the next.
                times[index][0].append(int(ns) / 1e6)
                for column, way in ((1, usual), (2, lean)):
                    theirs = [timed(lambda: way(output, size)) for _ in range(10)]
                    times[index][column].append(statistics.median(one for one, _ in theirs))
                found[index] = (int(ours), len(theirs[0][1]))

    run = statistics.median(inference)
    print(f"inference of YOLO12n on {THREADS} threads: {run:.1f} ms; medians of {rounds} rounds")
    print(
        f"{'output':>12} {'candidates':>10} {'detections':>10} {'ours ms':>8} {'of inference':>12}"
        f" {'NumPy ms':>8} {'ratio':>6} {'lean ms':>8} {'ratio':>6}"
    )
    for (what, output, _), columns, counts in zip(cases, times, found):
        candidates = int((output[0, 4:].max(0) > CONFIDENCE).sum())
        ours, theirs, least = map(statistics.median, columns)
        detections = str(counts[0]) if counts[0] == counts[1] else "{}/{}".format(*counts)
        print(
            f"{what:>12} {candidates:>10} {detections:>10} {ours:>8.3f} {ours / run:>12.2%}"
            f" {theirs:>8.2f} {theirs / ours:>6.1f} {least:>8.2f} {least / ours:>6.1f}"
        )


if __name__ == "__main__":
    main()
