#!/bin/sh
# Watch detections in real time: one frame in three is inferred, the others show the latest boxes.
gst-launch-1.0 filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
    ! yolodetect model-file=target/assets/models/yolo12n.onnx inference-interval=3 \
        classes=person,bicycle,car confidence-threshold=0.4 \
    ! yolooverlay ! videoconvert ! autovideosink
