"""Faulty picture files, which join the table of faulty data sets."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.test_tools.faulty_data import CASES, Coco, case, image, picture

FILES = "picture file unusable"


def damaged(coco: Coco, pictures: Path) -> None:
    """The second picture as a JPEG, cut in the middle."""
    file = pictures / "2.jpg"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    coco["images"][1]["file_name"] = "2.jpg"


def turned(kept: bool) -> Callable[[Coco, Path], None]:
    """The second picture turned by EXIF, with the size before turning in the json, or after."""

    def change(coco: Coco, pictures: Path) -> None:
        entry = coco["images"][1]
        side = Image.open(pictures / entry["file_name"]).transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        side.save(pictures / "2.jpg", exif=exif, quality=95)
        entry["file_name"] = "2.jpg"
        if not kept:
            entry.update(width=entry["height"], height=entry["width"])
            coco["annotations"][2]["bbox"] = coco["annotations"][3]["bbox"] = [1, 1, 9, 9]

    return change


def shaped(width: int, height: int) -> Callable[[Coco, Path], None]:
    def change(coco: Coco, pictures: Path) -> None:
        name = coco["images"][1]["file_name"]
        cv2.imwrite(str(pictures / name), np.full((height, width, 3), 90, np.uint8))
        coco["images"][1].update(width=width, height=height)
        coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 2]

    return change


case("picture missing", FILES, picture(Path.unlink), names="2.png")
case("file_name that no file can have", FILES, image(file_name="\ud800.png"), names="image 2")
case("picture empty", FILES, picture(lambda file: file.write_bytes(b"")), names="2.png")
half = picture(lambda file: file.write_bytes(file.read_bytes()[:900]))
case("picture truncated, PNG", FILES, half, names="2.png")
case("picture truncated, JPEG", FILES, damaged, names="2.jpg")
case("picture a text", FILES, picture(lambda file: file.write_text("404 Not Found")), names="404")
folder = picture(lambda file: (file.unlink(), file.mkdir()))
case("picture a folder", FILES, folder, names="2.png")
case("turned by EXIF", "picture turned by EXIF", turned(False), names="2.jpg")
case("turned by EXIF, and so the json", "", turned(True), train=0, test=0)
case("picture of another size", "picture of another size", image(width=63), names="2.png")
case("1 x 3000", "picture too thin", shaped(1, 3000), names="image 2")
case("8000 x 50", "picture too thin", shaped(8000, 50), names="image 2")  # 64 x 0 of it
case("3000 x 50", "picture too thin", shaped(3000, 50), test=0, names="image 2")  # 64 x 1
case("no picture at all", FILES, lambda c, d: [f.unlink() for f in d.iterdir()] and None)
CASES["no picture at all"].mends = False
