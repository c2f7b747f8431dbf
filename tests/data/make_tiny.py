#!/usr/bin/env python3
"""Makes models of a few KB for edge cases: FOLDER/*.onnx.

    make_tiny.py FOLDER            writes them
    make_tiny.py FOLDER --check    also runs them with ONNX Runtime and compares with what this page says

Most are a MARKER: they find one thing, a box of fixed place, and its confidence tells what the network saw.
With a 64x64 input:

    red    the mean over the input's channel 0 (0..1 for an input normalised to 0..1). Constant grey 114 gives
           0.447; black, or a picture without red, finds nothing.
    box    centre (32,32), size 32x16 input pixels: corners x 16..48, y 24..40
    N      84 candidates: 8*8 + 4*4 + 2*2 cells of strides 8, 16 and 32. The box is candidate 0; all others are
           zero (box and scores).

Give a square picture: letterbox padding (114) would count in the mean. Input name `images` and output name
`output0`, as Ultralytics exports; metadata: names, stride 32, task detect, imgsz, batch, where not said otherwise.
Two classes, named `red` and `other`, where C = 2; the box is of class 0.

model             input               output          what it does
----------------  ------------------  --------------  -------------------------------------------------------------
v8                [1,3,64,64]         [1,6,84]        marker
v8_one_class      [1,3,64,64]         [1,5,84]        marker, C = 1 (name: red)
v8_dynamic_batch  ['batch',3,64,64]   ['batch',6,84]  marker, each picture of a batch with its own confidence
v8_dynamic_size   ['batch',3,         ['batch',6,     marker for any multiples of 32: centre of the input, half its
                  'height','width']   'anchors']      width, a quarter of its height; metadata imgsz [96,128]
                                                      (height, width)
fixed_batch4      [4,3,64,64]         [4,6,84]        marker
f16               [1,3,64,64] f16     [1,6,84] f16    marker
v5                [1,3,64,64]         [1,252,7]       marker: objectness = red, class 1 = 0.9, class 0 = 0.1, so the
                                                      confidence is 0.9 * red, of class 1 (3 * 84 candidates)
yolox             [1,3,64,64]         [1,84,7]        no metadata, output named `output`, undecoded grid, for input BGR
                                                      0..255: objectness = mean of channel 0 (blue) / 255, class 1 =
                                                      0.9; candidate 19 (stride 8, cell x 3, y 2) has x = y = 0.5,
                                                      w = ln 4, h = ln 2: centre (28,20), size 32x16
end2end           [1,3,64,64]         [1,300,6]       metadata end2end=True; row 0: 16 24 48 40, red, class 1;
                                                      row 1: 0 0 8 8, 0.3, class 0; the other rows zero
one_channel       [1,1,64,64]         [1,6,84]        marker (mean of the only channel); C = 2
five_channel      [1,5,64,64]         [1,6,84]        marker; no video format has five channels
int_input         [1,3,64,64] uint8   [1,6,84]        marker (mean / 255)
zero              [1,3,64,64]         [1,6,84]        all 0: nothing to find
nan               [1,3,64,64]         [1,6,84]        all NaN
inf               [1,3,64,64]         [1,6,84]        all +infinity
huge              [1,3,64,64]         [1,6,84]        every box (3e38, -3e38, 3e38, 3e38), every score 0.9
odd_boxes         [1,3,64,64]         [1,6,84]        candidates 0-8, class 0, score 0.9 unless said: 0 negative width,
                                                      1 zero size, 2 NaN centre, 3 infinite width, 4 score NaN,
                                                      5 score 2.0, 6 score -1, 7 outside the picture,
                                                      8 the sound one: centre (32,32), size 32x16. Box of 4-6 is
                                                      centre (8,8), size 8x8.
all               [1,3,640,640]       [1,6,8400]      every candidate above every threshold: a box in each cell, 0.9 of
                                                      the cell's stride wide and high, scores from 0.5 (candidate 0)
                                                      to 0.9 (candidate 8399), class = index modulo 2; no two boxes of
                                                      one class overlap by IoU 0.7, so NMS keeps all 8400
names_mismatch    [1,3,64,64]         [1,5,84]        metadata names 3 classes, the output has rows for 1
classifier        [1,3,64,64]         [1,1000]        task classify
obb               [1,3,64,64]         [1,7,84]        task obb: 4 + 2 classes + angle
pose              [1,3,64,64]         [1,56,84]       task pose: 4 + 1 class + 17 * 3, kpt_shape [17, 3]
segment           [1,3,64,64]         [1,38,84] and   task segment: 4 + 2 classes + 32 mask numbers; second output
                                      [1,32,16,16]    `output1`
no_outputs_rank3  [1,3,64,64]         [1,6,84,1]      an output of rank 4, none of rank 3
int_output        [1,3,64,64]         [1,6,84] int64  -
two_inputs        [1,3,64,64], [1]    [1,6,84]        marker times a second required input, `scale`
empty_batch       [0,3,64,64]         [0,6,84]        a batch of no pictures
quarters          ['batch',3,64,64]   ['batch',8,84]  four boxes of 8x8, classes a, b, c, d: candidate i lies in a quarter
                                                      of the picture (top left, top right, bottom left, bottom right)
                                                      and its confidence is the mean of what it covers, all channels;
                                                      centres (24,24), (40,24), (24,40), (40,40), so letterboxed
                                                      pictures up to 2:1 keep their quarters
stamped           ['batch',3,64,64]   ['batch',6,84]  marker; candidate 1, of class 1, centre (8,8), size 8x8, says which
                                                      run it was: its confidence is the next of a fixed sequence of
                                                      pseudo-random numbers from 0.3 to 0.9, one for each run (of all
                                                      pictures in it), the same sequence for each session
slow              ['batch',3,64,64]   ['batch',6,84]  as stamped, behind convolutions that take some milliseconds per
                                                      picture; the same numbers
fails_at_run      ['batch',3,64,64]   ['batch',6,84]  marker; the run fails (Gather, index out of range) when a picture
                                                      of the batch has a mean over all channels of 0.9 or more: loading
                                                      and a grey (114) warm-up pass, a white picture fails
hungry            ['batch',3,64,64]   ['batch',6,84]  marker; the run asks for terabytes of memory, and so runs out of it,
                                                      for a batch of more than two pictures, and for a picture with a
                                                      mean over all channels of 0.9 or more
int8_dynamic      ['batch',3,64,64]   ['batch',6,84]  marker, behind a convolution as `quantize_dynamic` writes it: on
                                                      ConvInteger, by the scale that DynamicQuantizeLinear finds
int8_operators    ['batch',3,64,64]   ['batch',6,84]  the same as `quantize_static` writes it in its format QOperator:
                                                      QLinearConv
int8_qdq          ['batch',3,64,64]   ['batch',6,84]  and in its format QDQ: Conv between QuantizeLinear and
                                                      DequantizeLinear
garbage           -                   -               4096 pseudo-random bytes
empty             -                   -               0 bytes
truncated         -                   -               the first half of v8
"""

import argparse
import os
import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
ANCHORS = 84
MARKER = (32.0, 32.0, 32.0, 16.0)
NAMES = {0: "red", 1: "other"}
# Of `slow`.
CHANNELS, CONVOLUTIONS = 16, 20
FLOAT = TensorProto.FLOAT


# --- building blocks -----------------------------------------------------------------------------


class Graph:
    """Nodes and constants on their way to a model."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, value, dtype=np.float32):
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def ints(self, *values):
        return self.constant(values, np.int64)

    def add(self, op, inputs, output=None, **attributes):
        output = output or f"tensor_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def mean_of_channel_0(self, images="images"):
        """[B,1,1]"""
        channel = self.add("Slice", [images, self.ints(0), self.ints(1), self.ints(1)])
        return self.mean(channel)

    def mean(self, images):
        """Over channels, rows and columns; [B,1,1]"""
        return self.add("Squeeze", [self.add("ReduceMean", [images], axes=[1, 2, 3], keepdims=1), self.ints(3)])

    def scaled_mask(self, factor, mask, template, output="output0"):
        """template + factor * mask; `factor` is [B,1,1], the others as the output without its batch."""
        scaled = self.add("Mul", [factor, self.constant(mask[None])])
        return self.add("Add", [scaled, self.constant(template[None])], output)

    def model(self, inputs, outputs, metadata):
        values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, "tiny", *values, initializer=self.constants)
        # Opset and file version of 2021, so that every supported ONNX Runtime reads them.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
        onnx.checker.check_model(model)
        return model


def image(batch=1, channels=3, height=SIZE, width=SIZE, dtype=FLOAT):
    return ("images", dtype, [batch, channels, height, width])


def metadata(names=NAMES, task="detect", batch=1, imgsz=(SIZE, SIZE), **more):
    return {"stride": 32, "task": task, "batch": batch, "imgsz": list(imgsz), "names": names} | more


def marker_arrays(classes):
    """(template, mask), each [4+classes,84]: the box; where its confidence goes."""
    template, mask = np.zeros((2, 4 + classes, ANCHORS), np.float32)
    template[:4, 0] = MARKER
    mask[4, 0] = 1
    return template, mask


def marker(classes=2, batch=1, channels=3, names=None):
    graph = Graph()
    template, mask = marker_arrays(classes)
    graph.scaled_mask(graph.mean_of_channel_0(), mask, template)
    names = names or {index: NAMES[index] for index in range(classes)}
    output = ("output0", FLOAT, [batch, 4 + classes, ANCHORS])
    exported_batch = 1 if batch == "batch" else batch
    return graph.model([image(batch, channels)], [output], metadata(names, batch=exported_batch))


def constant_output(value, size=SIZE, names=NAMES, task="detect", **more):
    """A model that answers `value` ([rows,anchors], batch added) whatever it sees."""
    graph = Graph()
    # The input takes part, as in a real network: times zero, and clipped, since infinity * 0 is NaN.
    seen = graph.add("Clip", [graph.mean("images"), graph.constant(0), graph.constant(1)])
    nothing = graph.add("Mul", [seen, graph.constant(0)])
    graph.add("Add", [nothing, graph.constant(value[None])], "output0")
    output = ("output0", FLOAT, [1, *value.shape])
    return graph.model([image(height=size, width=size)], [output], metadata(names, task, imgsz=(size, size), **more))


# --- models that find the marker -----------------------------------------------------------------


def v8():
    return marker()


def v8_one_class():
    return marker(classes=1)


def v8_dynamic_batch():
    return marker(batch="batch")


def fixed_batch4():
    return marker(batch=4)


def empty_batch():
    return marker(batch=0)


def one_channel():
    return marker(channels=1)


def five_channel():
    return marker(channels=5)


def names_mismatch():
    return marker(classes=1, names={0: "red", 1: "green", 2: "blue"})


def v8_dynamic_size():
    graph = Graph()
    shape = graph.add("Shape", ["images"])
    batch, height, width = (graph.add("Gather", [shape, graph.ints(axis)]) for axis in (0, 2, 3))
    sides = [graph.add("Cast", [side], to=FLOAT) for side in (width, height)]
    # cx, cy, w, h as parts of width and height.
    parts = [(sides[0], 0.5), (sides[1], 0.5), (sides[0], 0.5), (sides[1], 0.25)]
    box = graph.add("Concat", [graph.add("Mul", [side, graph.constant([part])]) for side, part in parts], axis=0)
    box = graph.add("Reshape", [box, graph.ints(1, 4, 1)])
    box = graph.add("Expand", [box, graph.add("Concat", [batch, graph.ints(4, 1)], axis=0)])
    red = graph.mean_of_channel_0()
    found = graph.add("Concat", [box, red, graph.add("Mul", [red, graph.constant(0)])], axis=1)
    # H*W * (1/64 + 1/256 + 1/1024) cells, less the one that is found.
    cells = graph.add("Mul", [graph.add("Mul", [height, width]), graph.ints(21)])
    others = graph.add("Sub", [graph.add("Div", [cells, graph.ints(1024)]), graph.ints(1)])
    zeros = graph.add("ConstantOfShape", [graph.add("Concat", [batch, graph.ints(6), others], axis=0)])
    graph.add("Concat", [found, zeros], "output0", axis=2)
    output = ("output0", FLOAT, ["batch", 6, "anchors"])
    return graph.model([image("batch", 3, "height", "width")], [output], metadata(imgsz=(96, 128)))


def f16():
    graph = Graph()
    template, mask = marker_arrays(2)
    wide = graph.add("Cast", ["images"], to=FLOAT)
    answer = graph.scaled_mask(graph.mean_of_channel_0(wide), mask, template, "wide_output")
    graph.add("Cast", [answer], "output0", to=TensorProto.FLOAT16)
    half = TensorProto.FLOAT16
    return graph.model([image(dtype=half)], [("output0", half, [1, 6, ANCHORS])], metadata())


def int_input():
    graph = Graph()
    template, mask = marker_arrays(2)
    wide = graph.add("Div", [graph.add("Cast", ["images"], to=FLOAT), graph.constant(255)])
    graph.scaled_mask(graph.mean_of_channel_0(wide), mask, template)
    return graph.model([image(dtype=TensorProto.UINT8)], [("output0", FLOAT, [1, 6, ANCHORS])], metadata())


def v5():
    graph = Graph()
    template, mask = np.zeros((2, 3 * ANCHORS, 7), np.float32)
    template[0] = [*MARKER, 0, 0.1, 0.9]
    mask[0, 4] = 1
    graph.scaled_mask(graph.mean_of_channel_0(), mask, template)
    return graph.model([image()], [("output0", FLOAT, [1, 3 * ANCHORS, 7])], metadata())


def yolox():
    graph = Graph()
    template, mask = np.zeros((2, ANCHORS, 7), np.float32)
    cell = 2 * (SIZE // 8) + 3
    template[cell] = [0.5, 0.5, np.log(4), np.log(2), 0, 0, 0.9]
    mask[cell, 4] = 1 / 255
    graph.scaled_mask(graph.mean_of_channel_0(), mask, template, "output")
    return graph.model([image()], [("output", FLOAT, [1, ANCHORS, 7])], {})


def end2end():
    graph = Graph()
    template, mask = np.zeros((2, 300, 6), np.float32)
    template[0] = [16, 24, 48, 40, 0, 1]
    template[1] = [0, 0, 8, 8, 0.3, 0]
    mask[0, 4] = 1
    graph.scaled_mask(graph.mean_of_channel_0(), mask, template)
    return graph.model([image()], [("output0", FLOAT, [1, 300, 6])], metadata(end2end=True))


def two_inputs():
    graph = Graph()
    template, mask = marker_arrays(2)
    graph.scaled_mask(graph.add("Mul", [graph.mean_of_channel_0(), "scale"]), mask, template)
    return graph.model([image(), ("scale", FLOAT, [1])], [("output0", FLOAT, [1, 6, ANCHORS])], metadata())


def fails_at_run():
    graph = Graph()
    template, mask = marker_arrays(2)
    # 0 while the brightest picture's mean is below 0.9; from there on 1, of which the table has none.
    means = graph.add("Div", [graph.mean("images"), graph.constant(0.9)])
    brightest = graph.add("ReduceMax", [means], axes=[0, 1, 2], keepdims=0)
    index = graph.add("Cast", [graph.add("Floor", [brightest])], to=TensorProto.INT64)
    one = graph.add("Gather", [graph.constant([1]), index])
    graph.scaled_mask(graph.add("Mul", [graph.mean_of_channel_0(), one]), mask, template)
    return graph.model([image("batch")], [("output0", FLOAT, ["batch", 6, ANCHORS])], metadata())


def hungry():
    graph = Graph()
    template, mask = marker_arrays(2)
    frames = graph.add("Gather", [graph.add("Shape", ["images"]), graph.ints(0)])
    beyond_two = graph.add("Max", [graph.add("Sub", [frames, graph.ints(2)]), graph.ints(0)])
    means = graph.add("Div", [graph.mean("images"), graph.constant(0.9)])
    brightest = graph.add("ReduceMax", [means], axes=[0, 1, 2], keepdims=0)
    white = graph.add("Cast", [graph.add("Floor", [brightest])], to=TensorProto.INT64)
    trillions = graph.add("Add", [beyond_two, white])
    length = graph.add("Add", [graph.add("Mul", [trillions, graph.ints(10**12)]), graph.ints(1)])
    nothing = graph.add("ReduceMax", [graph.add("ConstantOfShape", [length])], axes=[0], keepdims=0)
    graph.scaled_mask(graph.add("Add", [graph.mean_of_channel_0(), nothing]), mask, template)
    return graph.model([image("batch")], [("output0", FLOAT, ["batch", 6, ANCHORS])], metadata())


def quarters():
    graph = Graph()
    template = np.zeros((8, ANCHORS), np.float32)
    output = None
    for index, (x, y) in enumerate([(24, 24), (40, 24), (24, 40), (40, 40)]):
        template[:4, index] = x, y, 8, 8
        mask = np.zeros((8, ANCHORS), np.float32)
        mask[4 + index, index] = 1
        corners = [graph.ints(y - 4, x - 4), graph.ints(y + 4, x + 4)]
        patch = graph.add("Slice", ["images", *corners, graph.ints(2, 3)])
        part = graph.add("Mul", [graph.mean(patch), graph.constant(mask[None])])
        output = part if output is None else graph.add("Add", [output, part])
    graph.add("Add", [output, graph.constant(template[None])], "output0")
    names = dict(enumerate("abcd"))
    return graph.model([image("batch")], [("output0", FLOAT, ["batch", 8, ANCHORS])], metadata(names))


def with_stamp(graph, red):
    """The marker of confidence `red`, and the run's number."""
    template, mask = marker_arrays(2)
    template[:4, 1] = 8, 8, 8, 8
    stamp_mask = np.zeros_like(mask)
    stamp_mask[5, 1] = 1
    # A generator is the one thing in a session that knows of the runs before. Its seed makes the first 8000
    # numbers differ as 32-bit floats.
    stamp = graph.add("RandomUniform", [], dtype=FLOAT, shape=[1, 1, 1], low=0.3, high=0.9, seed=12.0)
    stamps = graph.add("Mul", [stamp, graph.constant(stamp_mask[None])])
    answer = graph.scaled_mask(red, mask, template, "unstamped")
    graph.add("Add", [answer, stamps], "output0")
    return graph.model([image("batch")], [("output0", FLOAT, ["batch", 6, ANCHORS])], metadata())


def stamped():
    graph = Graph()
    return with_stamp(graph, graph.mean_of_channel_0())


def slow():
    graph = Graph()
    noise = np.random.default_rng(1)
    weights = lambda inputs: noise.normal(0, (9 * inputs) ** -0.5, (CHANNELS, inputs, 3, 3))
    value, kernel = "images", graph.constant(weights(3))
    inner = graph.constant(weights(CHANNELS))
    for _ in range(CONVOLUTIONS):
        value = graph.add("Relu", [graph.add("Conv", [value, kernel], pads=[1, 1, 1, 1])])
        kernel = inner
    return with_stamp(graph, red_behind(graph, value))


def red_behind(graph, value):
    # Far below what a float next to red can show, but no optimiser may say that it is nothing.
    trace = graph.add("Mul", [graph.mean(value), graph.constant(1e-20)])
    return graph.add("Add", [graph.mean_of_channel_0(), trace])


def marker_behind(graph, value):
    template, mask = marker_arrays(2)
    graph.scaled_mask(red_behind(graph, value), mask, template)
    return graph.model([image("batch")], [("output0", FLOAT, ["batch", 6, ANCHORS])], metadata())


def int8_kernel(graph):
    return graph.constant([[[[1]], [[-2]], [[3]]]], np.int8)


def int8_dynamic():
    graph = Graph()
    graph.nodes.append(helper.make_node("DynamicQuantizeLinear", ["images"], ["quantized", "scale", "zero"]))
    value = graph.add("ConvInteger", ["quantized", int8_kernel(graph), "zero"])
    return marker_behind(graph, graph.add("Mul", [graph.add("Cast", [value], to=FLOAT), "scale"]))


def int8_operators():
    graph = Graph()
    scale, zero, signed_zero = graph.constant(1 / 127), graph.constant(0, np.uint8), graph.constant(0, np.int8)
    quantized = graph.add("QuantizeLinear", ["images", scale, zero])
    inputs = [quantized, scale, zero, int8_kernel(graph), scale, signed_zero, scale, zero]
    return marker_behind(graph, graph.add("DequantizeLinear", [graph.add("QLinearConv", inputs), scale, zero]))


def int8_qdq():
    graph = Graph()
    scale, zero, signed_zero = graph.constant(1 / 127), graph.constant(0, np.uint8), graph.constant(0, np.int8)
    there_and_back = lambda value: graph.add(
        "DequantizeLinear", [graph.add("QuantizeLinear", [value, scale, zero]), scale, zero]
    )
    kernel = graph.add("DequantizeLinear", [int8_kernel(graph), scale, signed_zero])
    return marker_behind(graph, there_and_back(graph.add("Conv", [there_and_back("images"), kernel])))


# --- models with a fixed answer ----------------------------------------------------------------


def filled(value):
    return constant_output(np.full((6, ANCHORS), value, np.float32))


def zero():
    return filled(0)


def nan():
    return filled(np.nan)


def inf():
    return filled(np.inf)


def huge():
    answer = np.full((6, ANCHORS), 0.9, np.float32)
    answer[:4] = np.array([3e38, -3e38, 3e38, 3e38], np.float32)[:, None]
    return constant_output(answer)


def odd_boxes():
    answer = np.zeros((6, ANCHORS), np.float32)
    candidates = [
        (32, 32, -32, 16, 0.9),
        (32, 32, 0, 0, 0.9),
        (np.nan, 32, 32, 16, 0.9),
        (32, 32, np.inf, 16, 0.9),
        (8, 8, 8, 8, np.nan),
        (8, 8, 8, 8, 2.0),
        (8, 8, 8, 8, -1.0),
        (-500, -500, 32, 16, 0.9),
        (*MARKER, 0.9),
    ]
    for index, candidate in enumerate(candidates):
        answer[:5, index] = candidate
    return constant_output(answer)


def all():  # hides Python's own `all`, for which this file has no use
    boxes = []
    for stride in (8, 16, 32):
        cells = (np.arange(640 // stride) + 0.5) * stride
        boxes += [(x, y, 0.9 * stride, 0.9 * stride) for y in cells for x in cells]
    answer = np.zeros((6, len(boxes)), np.float32)
    answer[:4] = np.transpose(boxes)
    index = np.arange(len(boxes))
    answer[4 + index % 2, index] = np.linspace(0.5, 0.9, len(boxes))
    return constant_output(answer, size=640)


def obb():
    return constant_output(np.zeros((7, ANCHORS), np.float32), task="obb")


def pose():
    names = {0: "person"}
    return constant_output(np.zeros((56, ANCHORS), np.float32), names=names, task="pose", kpt_shape=[17, 3])


def segment():
    model = constant_output(np.zeros((38, ANCHORS), np.float32), task="segment")
    masks = numpy_helper.from_array(np.zeros((1, 32, 16, 16), np.float32), "masks")
    model.graph.initializer.append(masks)
    model.graph.node.append(helper.make_node("Identity", ["masks"], ["output1"]))
    model.graph.output.append(helper.make_tensor_value_info("output1", FLOAT, [1, 32, 16, 16]))
    return model


def reshaped(shape, dtype=FLOAT, task="detect"):
    """The mean of the input, spread over an output of an unusual shape or type."""
    graph = Graph()
    value = graph.add("Reshape", [graph.mean("images"), graph.ints(*[1] * len(shape))])
    graph.add("Cast", [graph.add("Expand", [value, graph.ints(*shape)])], "output0", to=dtype)
    return graph.model([image()], [("output0", dtype, shape)], metadata(task=task))


def classifier():
    return reshaped([1, 1000], task="classify")


def no_outputs_rank3():
    return reshaped([1, 6, ANCHORS, 1])


def int_output():
    return reshaped([1, 6, ANCHORS], TensorProto.INT64)


MODELS = [
    v8, v8_one_class, v8_dynamic_batch, v8_dynamic_size, fixed_batch4, f16, v5, yolox, end2end, one_channel,
    five_channel, int_input, zero, nan, inf, huge, odd_boxes, all, names_mismatch, classifier, obb, pose, segment,
    no_outputs_rank3, int_output, two_inputs, empty_batch, quarters, stamped,
    slow, fails_at_run, hungry, int8_dynamic, int8_operators, int8_qdq,
]  # fmt: skip


# --- --check -------------------------------------------------------------------------------------


def check(folder):
    import onnxruntime

    def run(name, *pictures, **more):
        session = onnxruntime.InferenceSession(os.path.join(folder, f"{name}.onnx"), providers=["CPUExecutionProvider"])
        return session.run(None, {"images": np.concatenate(pictures)} | more)[0]

    def picture(red, green=0.0, height=SIZE, width=SIZE):
        planes = np.zeros((1, 3, height, width), np.float32)
        planes[:, 0], planes[:, 1] = red, green
        return planes

    def close(found, expected):
        np.testing.assert_allclose(found, expected, atol=1e-3)

    box = list(MARKER)
    for name, classes in (("v8", 2), ("v8_one_class", 1), ("names_mismatch", 1)):
        output = run(name, picture(0.8, green=0.3))
        assert output.shape == (1, 4 + classes, ANCHORS), name
        close(output[0, :, 0], box + [0.8, 0][:classes])
        assert not output[0, :, 1:].any(), name
    int8 = ("int8_dynamic", "int8_operators", "int8_qdq")
    for name in ("v8_dynamic_batch", "fixed_batch4", "fails_at_run", "hungry", *int8):
        reds = [0.5, 1.0] if name == "hungry" else [0.1, 0.5, 0.7, 1.0]
        close(run(name, *[picture(red) for red in reds])[:, 4, 0], reds)
    patches = np.full((2, 3, SIZE, SIZE), 0.5, np.float32)
    patches[0, :, :32, :32], patches[1, :, 32:, 32:], patches[1, 0, :32, 32:] = 0.1, 0.9, 0.8
    output = run("quarters", patches[:1], patches[1:])
    close(output[0, 4:, :4], np.diag([0.1, 0.5, 0.5, 0.5]))
    close(output[1, 4:, :4], np.diag([0.5, 0.6, 0.5, 0.9]))
    close(output[1, :4, 2], [24, 40, 8, 8])
    check_stamps(folder)
    output = run("v8_dynamic_size", picture(0.6, height=96, width=128), picture(0.7, height=96, width=128))
    assert output.shape == (2, 6, 252)
    close(output[1, :, 0], [64, 48, 64, 24, 0.7, 0])
    close(run("f16", picture(0.5).astype(np.float16))[0, :, 0], box + [0.5, 0])
    close(run("int_input", np.full((1, 3, SIZE, SIZE), 51, np.uint8))[0, :, 0], box + [0.2, 0])
    close(run("v5", picture(0.5))[0, 0], box + [0.5, 0.1, 0.9])
    close(run("yolox", picture(127.5))[0, 19], [0.5, 0.5, np.log(4), np.log(2), 0.5, 0, 0.9])
    close(run("end2end", picture(0.5))[0, :2], [[16, 24, 48, 40, 0.5, 1], [0, 0, 8, 8, 0.3, 0]])
    close(run("one_channel", picture(0.5)[:, :1])[0, :, 0], box + [0.5, 0])
    close(run("two_inputs", picture(0.5), scale=np.array([0.5], np.float32))[0, 4, 0], 0.25)
    assert np.isnan(run("nan", picture(0.5))).all()
    assert np.isposinf(run("inf", picture(0.5))).all()
    assert not run("zero", picture(0.5)).any()
    assert np.isfinite(run("huge", picture(0.5))).all()
    close(run("odd_boxes", picture(0.5))[0, :, 8], box + [0.9, 0])
    everything = run("all", picture(0.5, height=640, width=640))
    assert everything.shape == (1, 6, 8400) and everything[0, 4:].max(0).min() >= 0.5
    assert most_overlap(everything[0]) < 0.7
    for name, shape in (
        ("classifier", (1, 1000)),
        ("obb", (1, 7, ANCHORS)),
        ("pose", (1, 56, ANCHORS)),
        ("segment", (1, 38, ANCHORS)),
        ("no_outputs_rank3", (1, 6, ANCHORS, 1)),
        ("int_output", (1, 6, ANCHORS)),
    ):
        assert run(name, picture(0.5)).shape == shape, name
    run("fails_at_run", picture(114 / 255, 114 / 255))
    for name in ("garbage", "empty", "truncated"):
        expect_failure(lambda: run(name, picture(0.5)), f"{name} loads")
    white = np.ones((1, 3, SIZE, SIZE), np.float32)
    expect_failure(lambda: run("fails_at_run", white), "a white picture passes fails_at_run")
    expect_failure(lambda: run("fails_at_run", picture(0.5), white), "a batch with a white picture passes")
    print(f"{len(MODELS) + 3} tiny models do what the table says")


def check_stamps(folder):
    """Both models tell their runs by the same numbers, none of which comes twice."""
    import onnxruntime

    def stamps(name, runs):
        session = onnxruntime.InferenceSession(os.path.join(folder, f"{name}.onnx"), providers=["CPUExecutionProvider"])
        pictures = np.full((2, 3, SIZE, SIZE), 0.5, np.float32)
        outputs = [session.run(None, {"images": pictures})[0] for _ in range(runs)]
        for output in outputs:
            np.testing.assert_allclose(output[:, 4, 0], 0.5, atol=1e-6)
            assert output[0, 5, 1] == output[1, 5, 1], name
            np.testing.assert_array_equal(output[0, :4, 1], [8, 8, 8, 8])
        return [output[0, 5, 1] for output in outputs]

    sequence = stamps("stamped", 8000)
    assert len(set(sequence)) == len(sequence) and 0.299 < min(sequence) and max(sequence) < 0.901
    assert stamps("slow", 50) == sequence[:50]


def most_overlap(output):
    """The largest IoU of two boxes of one class in [6,N]."""
    most = 0.0
    for label in (0, 1):
        cx, cy, w, h = output[:4, output[4:].argmax(0) == label]
        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        for i in range(len(cx)):
            shared = np.clip(np.minimum(x2, x2[i]) - np.maximum(x1, x1[i]), 0, None)
            shared *= np.clip(np.minimum(y2, y2[i]) - np.maximum(y1, y1[i]), 0, None)
            iou = shared / (w * h + w[i] * h[i] - shared)
            iou[i] = 0
            most = max(most, iou.max())
    return most


def expect_failure(action, message):
    try:
        action()
    except Exception:  # ONNX Runtime has many kinds
        return
    raise AssertionError(message)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    os.makedirs(arguments.folder, exist_ok=True)
    path = lambda name: os.path.join(arguments.folder, f"{name}.onnx")
    for model in MODELS:
        onnx.save(model(), path(model.__name__))
    with open(path("v8"), "rb") as whole, open(path("truncated"), "wb") as half:
        data = whole.read()
        half.write(data[: len(data) // 2])
    with open(path("garbage"), "wb") as garbage:
        garbage.write(random.Random(1).randbytes(4096))
    open(path("empty"), "wb").close()
    if arguments.check:
        check(arguments.folder)


if __name__ == "__main__":
    main()
