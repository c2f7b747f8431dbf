#!/usr/bin/env python3
"""Cuts frames of one size from pictures and writes them one behind the other as they are in memory (I420), for machines that
have no decoder.

    make_frames.py FOLDER PICTURE...    writes FOLDER/pictures-640x480.i420: each picture three times, from one end to the other
"""

import os
import sys

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 640, 480
PLACES = (0, 0.5, 1)
# BT.601 in limited range, as GStreamer takes such a size to be.
LUMA = (65.481, 128.553, 24.966)
BLUE = (-37.797, -74.203, 112)
RED = (112, -93.786, -18.214)


def frame(picture, place):
    """The picture in the frame's size, filled; what is too much of it lies before and behind the place (0 to 1)."""
    scale = max(WIDTH / picture.width, HEIGHT / picture.height)
    size = max(WIDTH, round(picture.width * scale)), max(HEIGHT, round(picture.height * scale))
    left, top = round((size[0] - WIDTH) * place), round((size[1] - HEIGHT) * place)
    return picture.resize(size, Image.BILINEAR).crop((left, top, left + WIDTH, top + HEIGHT))


def i420(picture):
    pixels = np.asarray(picture, np.float64) / 255
    halved = pixels.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))
    planes = (pixels @ LUMA + 16, halved @ BLUE + 128, halved @ RED + 128)
    return b"".join(np.round(plane).astype(np.uint8).tobytes() for plane in planes)


folder, *paths = sys.argv[1:]
pictures = [Image.open(path).convert("RGB") for path in paths]
with open(os.path.join(folder, f"pictures-{WIDTH}x{HEIGHT}.i420"), "wb") as out:
    for place in PLACES:
        for picture in pictures:
            out.write(i420(frame(picture, place)))
