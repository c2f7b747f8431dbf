#!/bin/sh
# Detections of a video file as JSON lines, one per frame, on standard output.
gst-launch-1.0 -q filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
    ! yolodetect model-file=target/assets/models/yolo12n.onnx ! yolojson ! fdsink
