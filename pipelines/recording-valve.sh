#!/bin/sh
# Detection beside a recording that stops while memory is short, and goes on with a key frame afterwards.
gst-launch-1.0 -q -e filesrc location=target/assets/clips/bikes.mp4 ! qtdemux ! h264parse ! tee name=camera \
    camera. ! queue ! decodebin ! yolodetect model-file=target/assets/models/yolo12n.onnx max-fps=2 \
        ! yolojson ! filesink location=target/recorded.jsonl \
    camera. ! queue ! pressurevalve ! mp4mux ! filesink location=target/recording.mp4
