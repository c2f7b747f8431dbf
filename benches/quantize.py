#!/usr/bin/env python3
"""YOLO12n quantised to INT8, and how its boxes differ from the f32 model's; benches/int8.sh calls it.

    quantize.py make MODEL PICTURES FOLDER      writes FOLDER/<kind>.onnx, for each kind below
    quantize.py boxes MODEL PICTURES FILE...    prints, for each model file, a line: recall, IoU, difference of confidence, others

Static quantisation as ONNX Runtime's documentation has it for convolutional networks: QDQ, per channel, calibrated by the
minima and maxima on the pictures and their mirror images. Pictures are letterboxed to 640x640.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

SIZE = 640
CONFIDENCE, IOU = 0.25, 0.7
# Activations; then whether weights have 7 bits (without VNNI the processor adds pairs of products of 8 bits in 16, which may
# overflow), operators (None: all that can be quantised), and whether the detection head's last part, which turns features into
# boxes and scores of very different ranges, stays f32. Weights are signed.
KINDS = {
    "s8s8": (QuantType.QInt8, False, None, True),
    "u8s8": (QuantType.QUInt8, False, None, True),
    "u8s8-7bit": (QuantType.QUInt8, True, None, True),
    "u8s8-conv": (QuantType.QUInt8, False, ["Conv"], True),
    "u8s8-whole": (QuantType.QUInt8, False, None, False),
}


def letterboxed(picture):
    image = Image.open(picture).convert("RGB")
    scale = min(SIZE / image.width, SIZE / image.height)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (SIZE - width) // 2, (SIZE - height) // 2
    canvas = Image.new("RGB", (SIZE, SIZE), (114, 114, 114))
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    pixels = np.asarray(canvas, np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def inputs(pictures):
    files = sorted(Path(pictures).glob("*.png"))
    assert files, f"no pictures in {pictures}"
    return [letterboxed(file) for file in files]


class Calibration(CalibrationDataReader):
    def __init__(self, name, tensors):
        mirrored = [np.ascontiguousarray(tensor[..., ::-1]) for tensor in tensors]
        self.feeds = iter({name: tensor} for tensor in tensors + mirrored)

    def get_next(self):
        return next(self.feeds, None)


def head_tail(model):
    """The nodes from the last convolutions of each scale on: the last concatenations, softmax, boxes."""
    nodes = model.graph.node
    prefix = nodes[-1].name.rsplit("/", 1)[0] + "/"
    return [n.name for n in nodes if n.name.startswith(prefix) and (n.op_type != "Conv" or "dfl" in n.name)
            and "/act/" not in n.name]


def make(model, pictures, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prepared = folder / "prepared.onnx"
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared)
    name = graph.graph.input[0].name
    tensors = inputs(pictures)
    for kind, (activations, reduced, operators, keep_tail) in KINDS.items():
        quantize_static(
            prepared,
            folder / f"{kind}.onnx",
            Calibration(name, tensors),
            quant_format=QuantFormat.QDQ,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            reduce_range=reduced,
            op_types_to_quantize=operators,
            per_channel=True,
            nodes_to_exclude=head_tail(graph) if keep_tail else [],
        )
    prepared.unlink()


def overlap(box, others):
    left, top = np.maximum(box[0], others[:, 0]), np.maximum(box[1], others[:, 1])
    right, bottom = np.minimum(box[2], others[:, 2]), np.minimum(box[3], others[:, 3])
    common = np.clip(right - left, 0, None) * np.clip(bottom - top, 0, None)
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return common / (area(box) + area(others) - common + 1e-9)


def detect(session, tensor):
    """Rows of box, confidence, class, after suppression within each class."""
    (output,) = session.run(None, {session.get_inputs()[0].name: tensor})
    rows = output[0].T
    classes = rows[:, 4:].argmax(1)
    scores = rows[np.arange(len(rows)), 4 + classes]
    keep = scores > CONFIDENCE
    centre, size = rows[keep, :2], rows[keep, 2:4]
    found = np.column_stack([centre - size / 2, centre + size / 2, scores[keep], classes[keep]])
    found = found[np.argsort(-found[:, 4], kind="stable")]
    kept = []
    for row in found:
        same = np.array([k for k in kept if k[5] == row[5]]).reshape(-1, 6)
        if not (overlap(row, same) > IOU).any():
            kept.append(row)
    return np.array(kept).reshape(-1, 6)


def session(file):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def boxes(model, pictures, files):
    tensors = inputs(pictures)
    reference = session(model)
    expected = [detect(reference, tensor) for tensor in tensors]
    for file in files:
        candidate = session(file)
        ious, differences, total, extra = [], [], 0, 0
        for tensor, wanted in zip(tensors, expected):
            found, used = detect(candidate, tensor), set()
            total += len(wanted)
            for row in wanted:
                fits = overlap(row, found) * (found[:, 5] == row[5]) if len(found) else np.zeros(0)
                fits = [0 if index in used else fit for index, fit in enumerate(fits)]
                best = int(np.argmax(fits)) if fits else -1
                if fits and fits[best] >= 0.5:
                    used.add(best)
                    ious.append(fits[best])
                    differences.append(abs(found[best, 4] - row[4]))
            extra += len(found) - len(used)
        mean = lambda values: sum(values) / len(values) if values else float("nan")
        print(f"{len(ious)} of {total}\t{mean(ious):.3f}\t{mean(differences):.3f}\t{extra}")


def main():
    match sys.argv[1:]:
        case ["make", model, pictures, folder]:
            make(model, pictures, folder)
        case ["boxes", model, pictures, *files] if files:
            boxes(model, pictures, files)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
