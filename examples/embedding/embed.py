#!/usr/bin/python3
"""Embedding yolodetect in Python: the graph as gst-launch-1.0 would write it, the metas read in a pad probe.

    embed.py MODEL FRAMES VIDEO...

Prints what embed.c beside this file does. Needs python3-gi and gir1.2-gst-plugins-base-1.0.
"""

import ctypes
import struct
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, Gst, GstVideo  # noqa: E402

WRONG_USAGE = 2

# Regions alone: every GStreamer has them, and their ids are the detections'.
STREAM = """
    filesrc name=source{0} ! decodebin
    ! yolodetect name=stream{0} analytics-meta=off roi-meta=on stats-interval=1000000000
    ! fakesink name=sink{0}
"""


# README: begin probe
output = threading.Lock()


def print_frame(pad, info):
    buffer = info.get_buffer()
    meta = buffer.get_custom_meta("YoloDetectFrameMeta")
    if meta is None:
        return Gst.PadProbeReturn.OK
    # A copy. The metas themselves are the buffer's: keep what they say, never the objects.
    frame = meta.get_structure()
    first_id, count = frame.get_value("first-id"), frame.get_value("count")
    classes = struct.unpack(f"<{count}H", frame.get_value("class-ids").get_data() or b"")
    confidences = struct.unpack(f"<{count}f", frame.get_value("confidences").get_data() or b"")

    line = f"{frame.get_string('element')} {frame.get_value('frame')} {frame.get_string('status')}"
    for i in range(count):
        # The ids are unsigned, this function's argument is not.
        id = ctypes.c_int(first_id + i).value
        box = GstVideo.buffer_get_video_region_of_interest_meta_id(buffer, id)
        if box is not None:  # else an element that cuts the picture dropped it
            line += f" #{first_id + i} {GLib.quark_to_string(box.roi_type)}({classes[i]})"
            line += f" {confidences[i]:.2f} [{box.x},{box.y},{box.w},{box.h}]"
    with output:  # each stream has a thread of its own
        print(line)
    return Gst.PadProbeReturn.OK
# README: end probe


def build(model, frames, videos):
    pipeline = Gst.parse_launch("".join(STREAM.format(number) for number in range(len(videos))))
    for number, video in enumerate(videos):
        # Not in the text above: paths would have to be quoted there.
        pipeline.get_by_name(f"source{number}").set_property("location", video)
        pipeline.get_by_name(f"sink{number}").set_property("num-buffers", frames or -1)
        detector = pipeline.get_by_name(f"stream{number}")
        detector.set_property("model-file", model)
        detector.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, print_frame)
    return pipeline


class Player:
    """Plays a pipeline to its end, or to the first error."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.loop = GLib.MainLoop()
        self.well = True

    def play(self):
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message", self.on_message)
        try:
            # Waits while the model loads: an application with windows does this in a thread of its own.
            started = self.pipeline.set_state(Gst.State.PLAYING)
            if started == Gst.StateChangeReturn.FAILURE and not bus.have_pending():
                sys.exit("error: the pipeline does not start")
            self.loop.run()
        finally:
            self.pipeline.set_state(Gst.State.NULL)
            bus.remove_signal_watch()
        return self.well

    # README: begin messages
    def on_message(self, bus, message):
        if message.type == Gst.MessageType.EOS:
            self.loop.quit()
        elif message.type == Gst.MessageType.ERROR:
            report_problem("error", message.src, *message.parse_error())
            self.well = False
            self.loop.quit()
        elif message.type == Gst.MessageType.WARNING:
            report_problem("warning", message.src, *message.parse_warning())
        elif message.type == Gst.MessageType.LATENCY:
            self.pipeline.recalculate_latency()
        elif message.type == Gst.MessageType.ELEMENT:
            fields = message.get_structure()
            if fields.get_name() == "yolodetect-stats":
                report_stats(message.src.get_name(), fields)
            elif fields.get_name() == "yolodetect-batch-reduced":
                report_reduced_batch(fields)
            elif fields.get_name() == "yolodetect-memory-pressure":
                report_memory_pressure(fields)
    # README: end messages


def say(text):
    print(text, file=sys.stderr)


def report_problem(kind, source, problem, debug):
    say(f"{kind}: {source.get_name()}: {problem.message}\n{debug or ''}")


def report_stats(name, stats):
    inferred, out = stats.get_value("inferred"), stats.get_value("frames-out")
    engine = stats.get_value("engine")
    streams = engine.get_value("streams") if engine else 0
    say(f"stats: {name}: {inferred} of {out} frames inferred, {streams} streams on the engine")


def report_reduced_batch(fields):
    model, batch, limit = (fields.get_value(name) for name in ("model", "batch", "limit"))
    say(f"batch reduced: {model} had no memory for {batch} frames at once, takes {limit} from now on")


def report_memory_pressure(fields):
    level, source, freed = (fields.get_value(name) for name in ("level", "source", "freed-bytes"))
    actions = fields.get_value("actions")
    names = " ".join(actions.nth_field_name(i) for i in range(actions.n_fields()))
    say(f"memory pressure: {level}, by the {source}; {freed} bytes given back: {names}")


def main():
    Gst.init(None)
    try:
        model, frames, videos = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    except (IndexError, ValueError):
        videos = []
    if not videos or frames < 0:
        say(f"usage: {sys.argv[0]} MODEL FRAMES VIDEO...")
        return WRONG_USAGE
    try:
        pipeline = build(model, frames, videos)
    except GLib.Error as error:
        sys.exit(f"error: {error.message}; is the plugin's folder in GST_PLUGIN_PATH?")
    return 0 if Player(pipeline).play() else 1


if __name__ == "__main__":
    sys.exit(main())
