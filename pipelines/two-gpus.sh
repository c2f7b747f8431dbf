#!/usr/bin/env bash
# Four videos on two GPUs: an engine on each, two streams through each. Needs what `pipelines/setup.sh --cuda` fetches.
if ! [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')" -ge 2 ]; then
    echo "error: two NVIDIA GPUs are needed, and nvidia-smi -L lists fewer (nothing, where it is missing); with one, use device=cuda:0 throughout" >&2
    exit 1
fi
gst-launch-1.0 -q \
    filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
        ! yolodetect name=a device=cuda:0 model-file=target/assets/models/yolo12n.onnx ! yolojson ! filesink location=target/a.jsonl \
    filesrc location=target/assets/clips/bigbuckbunny.mp4 ! decodebin \
        ! yolodetect name=b device=cuda:0 model-file=target/assets/models/yolo12n.onnx ! yolojson ! filesink location=target/b.jsonl \
    filesrc location=target/assets/clips/bikes.mp4 ! decodebin \
        ! yolodetect name=c device=cuda:1 model-file=target/assets/models/yolo12n.onnx ! yolojson ! filesink location=target/c.jsonl \
    filesrc location=target/assets/clips/bigbuckbunny.mp4 ! decodebin \
        ! yolodetect name=d device=cuda:1 model-file=target/assets/models/yolo12n.onnx ! yolojson ! filesink location=target/d.jsonl
