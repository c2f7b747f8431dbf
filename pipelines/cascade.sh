#!/bin/sh
# Two detectors in a row; each record names the one that it comes from.
gst-launch-1.0 -q filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
    ! yolodetect name=people model-file=target/assets/models/yolo12n.onnx classes=person max-fps=2 \
    ! yolodetect name=vehicles model-file=target/assets/models/yolo12n.onnx classes=bicycle,car max-fps=2 \
    ! yolojson ! fdsink
