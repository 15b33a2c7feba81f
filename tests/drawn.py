"""A folder of drawn images with their masks, and the settings of a study of it that takes a moment.

Nothing else is imported here: processes that are started in tests need it.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TINY = {
    "size": 32,
    "width": 0.05,
    "hidden": 20,
    "grid": 4,
    "epochs": 2,
    "teacher_epochs": 2,
    "head_epochs": 1,
}
TINY |= {
    "share": 16,
    "test_samples": 8,
    "teacher_samples": 32,
    "analysed": 6,
    "batch_size": 8,
    "seeds": (0,),
    "layers": ("FC1",),
}
TINY |= {"rank": 4, "probes": 4, "noise": 8}  # of 20 coordinates at FC1


def draw(root: Path, per_class: int = 24) -> Path:
    """Discs and squares on noise, with their masks."""
    rng = np.random.default_rng(0)
    for shape in ("disc", "square"):
        for folder in ("images", "masks"):
            (root / folder / shape).mkdir(parents=True)
        for number in range(per_class):
            picture = Image.fromarray(rng.integers(0, 120, (32, 32, 3), dtype=np.uint8))
            mask = Image.new("L", (32, 32))
            left, top = rng.integers(2, 14, 2)
            for canvas, colour in ((picture, (250, 120, 40)), (mask, 255)):
                box = [left, top, left + 14, top + 14]
                pen = ImageDraw.Draw(canvas)
                (pen.ellipse if shape == "disc" else pen.rectangle)(box, fill=colour)
            picture.save(root / "images" / shape / f"{number}.png")
            mask.save(root / "masks" / shape / f"{number}.png")
    return root
