#!/usr/bin/env python3
"""Decodes pictures (JPEG, PNG) to 8-bit RGB PNGs of the same names.

    make_pictures.py FOLDER PICTURE...
"""

import os
import sys

from PIL import Image

folder, *pictures = sys.argv[1:]
for path in pictures:
    name, _ = os.path.splitext(os.path.basename(path))
    # Level 6 like zlib's default; no metadata: an EXIF rotation or a colour profile would be a second meaning.
    Image.open(path).convert("RGB").save(os.path.join(folder, f"{name}.png"), compress_level=6)
