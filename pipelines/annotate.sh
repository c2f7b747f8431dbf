#!/bin/sh
# A video file with its detections drawn in, as H.264.
gst-launch-1.0 -e filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
    ! yolodetect model-file=target/assets/models/yolo12n.onnx ! yolooverlay \
    ! videoconvert ! x264enc tune=zerolatency ! h264parse ! mp4mux ! filesink location=target/annotated.mp4
