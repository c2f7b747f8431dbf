#!/bin/sh
# Two videos through one engine: the model is loaded once, each stream keeps its own thresholds.
gst-launch-1.0 -q \
    filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
        ! yolodetect name=street model-file=target/assets/models/yolo12n.onnx max-fps=2 \
        ! yolojson ! filesink location=target/street.jsonl \
    filesrc location=target/assets/clips/bigbuckbunny.mp4 ! decodebin \
        ! yolodetect name=film model-file=target/assets/models/yolo12n.onnx max-fps=2 confidence-threshold=0.5 \
        ! yolojson ! filesink location=target/film.jsonl
