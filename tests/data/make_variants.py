#!/usr/bin/env python3
"""Rewrites YOLO12n into the layouts that other YOLO exports have, so that they can be tested on real weights.

    make_variants.py MODEL FOLDER           writes FOLDER/*.onnx
    make_variants.py MODEL FOLDER --check PICTURE...
                                            also runs each against MODEL with ONNX Runtime

MODEL is [1,3,640,640] -> [1,84,8400]: rows are cx, cy, w, h in input pixels, then 80 class scores.

file                input                             output                  what differs
------------------  --------------------------------  ----------------------  ------------------------------------
v5.onnx             [1,3,640,640]                     [1,8400,85]             transposed, objectness 1 in column 4
end2end.onnx        [1,3,640,640]                     [1,300,6]               NMS in the graph (IoU 0.7, confidence
                                                                              0.25, class-aware, best class of each
                                                                              candidate); x1 y1 x2 y2 score class,
                                                                              best first, padded with zero rows;
                                                                              metadata end2end=True
dynamic_batch.onnx  ['batch',3,640,640]               ['batch',84,8400]       -
batch4.onnx         [4,3,640,640]                     [4,84,8400]             -
dynamic.onnx        ['batch',3,'height','width']      ['batch',84,'anchors']  any multiples of 32; metadata as
                                                                              an Ultralytics export with dynamic=True
f16.onnx            [1,3,640,640] f16                 [1,84,8400] f16         weights and arithmetic f16 too
f16_dynamic_batch.onnx
                    ['batch',3,640,640] f16           ['batch',84,8400] f16   both of these

names, stride and task stay in the metadata of all of them.
"""

import argparse
import copy
import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONFIDENCE = 0.25
IOU = 0.7
MAX_DETECTIONS = 300
CANDIDATES = 8400


# --- graph helpers -----------------------------------------------------------------------------


class Rewriter:
    """A copy of a model with short ways to add constants and nodes to it."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)
        self.graph = self.model.graph
        # The exporter's inferred shapes have batch 1 in them; a stale one makes the runtime complain.
        del self.graph.value_info[:]
        self.count = 0

    def name(self):
        self.count += 1
        return f"variant_{self.count}"

    def constant(self, value, dtype):
        name = self.name()
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, op, inputs, outputs=None, **attributes):
        outputs = outputs or [self.name()]
        self.graph.node.append(helper.make_node(op, inputs, outputs, name=self.name(), **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def ints(self, *values):
        return self.constant(list(values), np.int64)

    def floats(self, values):
        return self.constant(values, np.float32)

    def free_output(self):
        """Gives the tensor behind `output0` another name, so that new nodes can make `output0`."""
        inner = self.name()
        for node in self.graph.node:
            for i, output in enumerate(node.output):
                if output == "output0":
                    node.output[i] = inner
        return inner

    def set_io(self, input_shape, output_shape, dtype=TensorProto.FLOAT):
        del self.graph.input[:], self.graph.output[:]
        self.graph.input.append(helper.make_tensor_value_info("images", dtype, input_shape))
        self.graph.output.append(helper.make_tensor_value_info("output0", dtype, output_shape))

    def node(self, name):
        return next(node for node in self.graph.node if node.name == name)

    def array(self, name):
        return numpy_helper.to_array(next(i for i in self.graph.initializer if i.name == name))

    def finish(self, **metadata):
        values = {entry.key: entry.value for entry in self.model.metadata_props} | metadata
        del self.model.metadata_props[:]
        helper.set_model_props(self.model, values)
        drop_unused(self.graph)
        sort_nodes(self.graph)
        onnx.checker.check_model(self.model)
        return self.model


def drop_unused(graph):
    """Removes constants that no node reads any more: the runtime warns about each."""
    used = {name for node in graph.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def sort_nodes(graph):
    """Puts every node behind those it reads from, as the format asks."""
    known = {i.name for i in graph.initializer} | {i.name for i in graph.input} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        assert ready, f"nodes with inputs from nowhere: {[node.name for node in waiting]}"
        known.update(output for node in ready for output in node.output)
        ordered += ready
        waiting = [node for node in waiting if node.output[0] not in known]
    del graph.node[:]
    graph.node.extend(ordered)


# --- the variants ------------------------------------------------------------------------------


def v5(model):
    out = Rewriter(model)
    rows = out.add("Transpose", [out.free_output()], perm=[0, 2, 1])
    boxes, scores = out.add("Split", [rows, out.ints(4, 80)], [out.name(), out.name()], axis=2)
    objectness = out.floats(np.ones((1, CANDIDATES, 1)))
    out.add("Concat", [boxes, objectness, scores], ["output0"], axis=2)
    out.set_io([1, 3, 640, 640], [1, CANDIDATES, 85])
    return out.finish()


def end2end(model):
    out = Rewriter(model)
    cxcywh, scores = out.add("Split", [out.free_output(), out.ints(4, 80)], [out.name(), out.name()], axis=1)
    centre, size = out.add("Split", [cxcywh, out.ints(2, 2)], [out.name(), out.name()], axis=1)
    half = out.add("Mul", [size, out.floats(0.5)])
    corners = out.add("Concat", [out.add("Sub", [centre, half]), out.add("Add", [centre, half])], axis=1)
    boxes = out.add("Transpose", [corners], perm=[0, 2, 1])
    # Each candidate counts for its best class only, as in Ultralytics' own NMS.
    best = out.add("Equal", [scores, out.add("ReduceMax", [scores, out.ints(1)], keepdims=1)])
    best_scores = out.add("Where", [best, scores, out.floats(0)])
    limits = [out.ints(MAX_DETECTIONS), out.floats(IOU), out.floats(CONFIDENCE)]
    kept = out.add("NonMaxSuppression", [boxes, best_scores, *limits])
    _, class_index, box_index = out.add(
        "Split", [kept, out.ints(1, 1, 1)], [out.name(), out.name(), out.name()], axis=1
    )
    kept_boxes = out.add("GatherND", [out.add("Squeeze", [boxes, out.ints(0)]), box_index])
    # A score is addressed by (class, box) in scores[0].
    address = out.add("Concat", [class_index, box_index], axis=1)
    kept_scores = out.add("GatherND", [out.add("Squeeze", [scores, out.ints(0)]), address])
    columns = [
        kept_boxes,
        out.add("Unsqueeze", [kept_scores, out.ints(1)]),
        out.add("Cast", [class_index], to=TensorProto.FLOAT),
    ]
    found = out.add("Concat", columns, axis=1)
    padded = out.add("Concat", [found, out.floats(np.zeros((MAX_DETECTIONS, 6)))], axis=0)
    column = out.add("Squeeze", [out.add("Slice", [padded, out.ints(4), out.ints(5), out.ints(1)]), out.ints(1)])
    _, order = out.add("TopK", [column, out.ints(MAX_DETECTIONS)], [out.name(), out.name()], axis=0)
    out.add("Unsqueeze", [out.add("Gather", [padded, order], axis=0), out.ints(0)], ["output0"])
    out.set_io([1, 3, 640, 640], [1, MAX_DETECTIONS, 6])
    return out.finish(end2end="True")


def free_batch(out):
    """Frees the batch where the exporter wrote it into Reshape targets: the first number of each.

    It is 1, or 4 where attention works on four areas of a picture as if they were pictures. -1 stands
    for it, or 0 ("as the input has it") where the target has a -1 already.
    """
    for node in list(out.graph.node):
        if node.op_type == "Reshape":
            target = out.array(node.input[1]).tolist()
            node.input[1] = out.ints(0 if -1 in target else -1, *target[1:])


def dynamic_batch(model):
    out = Rewriter(model)
    free_batch(out)
    out.set_io(["batch", 3, 640, 640], ["batch", 84, CANDIDATES])
    return out.finish()


def batch4(model):
    out = Rewriter(model)
    free_batch(out)
    out.set_io([4, 3, 640, 640], [4, 84, CANDIDATES])
    return out.finish(batch="4")


def dynamic(model):
    out = Rewriter(model)
    free_batch(out)
    free_attention(out)
    free_head(out)
    out.set_io(["batch", 3, "height", "width"], ["batch", 84, "anchors"])
    args = "{'batch': 1, 'half': False, 'dynamic': True, 'simplify': True, 'opset': None}"
    return out.finish(args=args)


def free_attention(out):
    """Makes the attention blocks' Reshape targets follow the feature map's size.

    In a block: qkv (a convolution's output [b,C,H,W]) is flattened, cut into areas
    [areas*b, H*W/areas, heads, C/heads], and after attention put together again as [b,H,W,C/3].
    """
    for node in list(out.graph.node):
        if node.op_type != "Reshape" or "/attn/" not in node.name:
            continue
        target = out.array(node.input[1]).tolist()
        if len(target) != 4:
            continue
        prefix = node.name.rsplit("/", 1)[0]
        shape = out.add("Shape", [f"{prefix}/qkv/conv/Conv_output_0"])
        height = out.add("Gather", [shape, out.ints(2)])
        width = out.add("Gather", [shape, out.ints(3)])
        if target[1] == target[2]:  # [b,H,W,C]
            parts = [out.ints(-1), height, width, out.ints(target[3])]
        else:  # [areas*b, H*W/areas, heads, C/heads]: 1600 positions at stride 16 are cut into 4 areas of 400
            areas = 4 if "/model.6/" in node.name else 1
            positions = out.add("Div", [out.add("Mul", [height, width]), out.ints(areas)])
            parts = [out.ints(-1), positions, out.ints(target[2]), out.ints(target[3])]
        node.input[1] = out.add("Concat", parts, axis=0)


def free_head(out):
    """Makes the head's flattened length, its anchors and its strides follow the feature maps' sizes."""
    out.node("/model.21/dfl/Reshape").input[1] = out.ints(0, 4, 16, -1)
    out.node("/model.21/dfl/Reshape_1").input[1] = out.ints(0, 4, -1)
    levels = [("/model.21/Concat_output_0", 8), ("/model.21/Concat_1_output_0", 16), ("/model.21/Concat_2_output_0", 32)]
    points, strides = zip(*(anchor_level(out, feature, stride) for feature, stride in levels))
    anchors = out.add("Concat", list(points), axis=2)
    out.node("/model.21/Sub").input[0] = anchors
    out.node("/model.21/Add_1").input[0] = anchors
    out.node("/model.21/Mul_2").input[1] = out.add("Concat", list(strides), axis=2)


def anchor_level(out, feature, stride):
    """Cell centres [1,2,H*W] in cells, row after row, and the stride [1,1,H*W] for one feature map."""
    shape = out.add("Shape", [feature])
    height, width = (out.add("Gather", [shape, out.constant(axis, np.int64)]) for axis in (2, 3))
    start, step = out.constant(0, np.int64), out.constant(1, np.int64)
    size = out.add("Concat", [out.add("Unsqueeze", [side, out.ints(0)]) for side in (height, width)], axis=0)
    flat = []
    for side, axis in ((width, 0), (height, 1)):
        cells = out.add("Cast", [out.add("Range", [start, side, step])], to=TensorProto.FLOAT)
        centres = out.add("Unsqueeze", [out.add("Add", [cells, out.floats(0.5)]), out.ints(axis)])
        flat.append(out.add("Reshape", [out.add("Expand", [centres, size]), out.ints(1, 1, -1)]))
    points = out.add("Concat", flat, axis=1)
    strides = out.add("Expand", [out.floats([[[stride]]]), out.add("Shape", [flat[0]])])
    return points, strides


def halve(out):
    from onnxconverter_common.float16 import convert_float_to_float16

    out.model = convert_float_to_float16(out.model, keep_io_types=False)
    out.graph = out.model.graph
    del out.graph.value_info[:]


def f16(model):
    out = Rewriter(model)
    halve(out)
    return out.finish(args="{'batch': 1, 'half': True, 'dynamic': False, 'simplify': True, 'opset': None}")


def f16_dynamic_batch(model):
    out = Rewriter(dynamic_batch(model))
    halve(out)
    return out.finish()


VARIANTS = [v5, end2end, dynamic_batch, batch4, dynamic, f16, f16_dynamic_batch]


# --- --check: every variant against the original, by ONNX Runtime ---------------------------------


def load_picture(path, width=640, height=640):
    """Letterboxed to width x height, RGB, [1,3,H,W], 0..1. Exact rounding does not matter: both models see it."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    scale = min(width / picture.width, height / picture.height)
    resized = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.BILINEAR)
    canvas = Image.new("RGB", (width, height), (114, 114, 114))
    canvas.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
    return np.asarray(canvas, np.float32).transpose(2, 0, 1)[None] / 255


def detections(output):
    """Class-aware greedy NMS over [84,N], in NumPy: rows x1 y1 x2 y2 score class, best first."""
    scores, classes = output[4:].max(0), output[4:].argmax(0)
    likely = np.flatnonzero(scores > CONFIDENCE)
    order = likely[np.argsort(-scores[likely], kind="stable")]
    cx, cy, w, h = output[:4, order]
    rows = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, scores[order], classes[order]], 1)
    kept = []
    for row in rows:
        if all(row[5] != other[5] or overlap(row, other) <= IOU for other in kept):
            kept.append(row)
    return np.array(kept[:MAX_DETECTIONS]).reshape(-1, 6)


def overlap(a, b):
    sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(sides, 0))
    return shared / (np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - shared)


def check(original, folder, pictures):
    import onnxruntime

    def run(path, tensor):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {"images": tensor})[0]

    def compare(name, found, expected, pixels, score):
        assert found.shape == expected.shape, f"{name}: shape {found.shape}, expected {expected.shape}"
        np.testing.assert_allclose(found[..., :4], expected[..., :4], rtol=0, atol=pixels, err_msg=name)
        np.testing.assert_allclose(found[..., 4:], expected[..., 4:], rtol=0, atol=score, err_msg=name)

    rows = lambda output: output.transpose(0, 2, 1)
    inputs = [load_picture(picture) for picture in pictures]
    outputs = [run(original, tensor) for tensor in inputs]
    batch = np.concatenate([inputs[i % len(inputs)] for i in range(4)])
    batch_outputs = np.concatenate([outputs[i % len(inputs)] for i in range(4)])
    variant = lambda name: os.path.join(folder, f"{name}.onnx")

    for name in ("dynamic_batch", "batch4", "dynamic"):
        compare(name, rows(run(variant(name), batch)), rows(batch_outputs), 0.05, 1e-3)
    halves = np.concatenate([run(variant("f16"), batch[i : i + 1].astype(np.float16)) for i in range(4)])
    compare("f16_dynamic_batch", rows(run(variant("f16_dynamic_batch"), batch.astype(np.float16))), rows(halves), 0.5, 1e-3)
    for picture, tensor, output in zip(pictures, inputs, outputs):
        expected = detections(output[0])
        assert len(expected), f"nothing found on {picture}"
        print(f"{os.path.basename(picture)}: {len(expected)} detections", end="")
        found = run(variant("v5"), tensor)
        assert (found[..., 4] == 1).all()
        compare("v5", np.delete(found, 4, 2), rows(output), 0, 0)
        found = run(variant("end2end"), tensor)[0]
        compare("end2end", found[: len(expected)], expected, 1e-3, 1e-6)
        assert not found[len(expected) :].any(), "end2end: rows behind the last detection are not zero"
        half = detections(run(variant("f16"), tensor.astype(np.float16))[0].astype(np.float32))
        matched = sum(any(a[5] == b[5] and overlap(a, b) > 0.95 for b in half) for a in expected)
        assert matched == len(expected), f"f16: {matched} of {len(expected)} boxes found again"
        # Another size has no reference; the same objects must be found, in other pixels.
        wide = detections(run(variant("dynamic"), load_picture(picture, 640, 448))[0])
        assert set(expected[expected[:, 4] > 0.7][:, 5]) <= set(wide[:, 5]), f"dynamic at 640x448: {wide}"
        print(", the same from every variant")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--check", nargs="+", metavar="PICTURE")
    arguments = parser.parse_args()
    model = onnx.load(arguments.model)
    os.makedirs(arguments.folder, exist_ok=True)
    for variant in VARIANTS:
        onnx.save(variant(model), os.path.join(arguments.folder, f"{variant.__name__}.onnx"))
    if arguments.check:
        check(arguments.model, arguments.folder, arguments.check)


if __name__ == "__main__":
    main()
