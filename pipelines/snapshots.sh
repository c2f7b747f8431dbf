#!/bin/sh
# One annotated picture for each second of a video.
gst-launch-1.0 filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
    ! videorate drop-only=true ! video/x-raw,framerate=1/1 \
    ! yolodetect model-file=target/assets/models/yolo12n.onnx ! yolooverlay \
    ! videoconvert ! pngenc ! multifilesink location=target/second-%d.png
