#!/usr/bin/env python3
"""Whether boxes were drawn on bus.png where its objects are.

    check_overlay.py PLAIN.png DRAWN.png

Compares the two pictures: what differs must lie on the sides of the expected boxes.
"""

import sys

import numpy as np
from PIL import Image

# What YOLO12n finds on bus.png: x1 y1 x2 y2, in pixels. The half person on the left, near the threshold, is not asked for.
BOXES = {
    "bus": (7, 230, 800, 734),
    "left person": (46, 396, 247, 903),
    "right person": (670, 395, 810, 879),
    "middle person": (219, 405, 345, 859),
}
NEAR = 6  # pixels: line width, rounding


def side_coverage(changed, x1, y1, x2, y2):
    """For the left, top, right and bottom side: the part of its length along which something was drawn."""
    height, width = changed.shape
    rows, columns = slice(max(y1, 0), min(y2, height)), slice(max(x1, 0), min(x2, width))
    around = lambda at: slice(max(at - NEAR, 0), at + NEAR + 1)
    return (
        changed[rows, around(x1)].any(1).mean(),
        changed[around(y1), columns].any(0).mean(),
        changed[rows, around(x2)].any(1).mean(),
        changed[around(y2), columns].any(0).mean(),
    )


def main():
    plain, drawn = (np.asarray(Image.open(path).convert("RGB"), int) for path in sys.argv[1:3])
    if plain.shape != drawn.shape:
        sys.exit(f"sizes differ: {plain.shape} and {drawn.shape}")
    changed = np.abs(plain - drawn).max(2) > 24
    missing = [
        f"{name}: sides drawn by {', '.join(f'{part:.0%}' for part in coverage)}"
        for name, box in BOXES.items()
        # One side may lie outside of the picture or under a label.
        if sorted(coverage := side_coverage(changed, *box))[1] < 0.9
    ]
    # Lines and labels are a small part of a picture; a filled box or a broken conversion is not.
    if changed.mean() > 0.15:
        missing.append(f"{changed.mean():.0%} of the picture changed")
    if missing:
        sys.exit("\n".join(missing))


if __name__ == "__main__":
    main()
