"""Draw classes arriving on a running device, from the folder that `icis-deploy demo` made, as an animated GIF.

    icis-deploy demo --out demo && python scripts/maintenance/draw_arrival.py demo docs/images/arrival.gif

One device stays open: it answers, takes the class update, answers, gives it back and answers. What the picture says is
what it answered then.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

import icis_deploy
from icis_deploy.common.files import write_file
from icis_deploy.demo.image_sheet import (
    CARD,
    FAINT,
    INK,
    LINE,
    PAPER,
    RIGHT,
    WRONG,
    draw_mark,
    draw_words,
    font,
    marked,
)

NUM_COLUMNS, NUM_ROWS = 4, 2
CARD_WIDTH, CARD_HEIGHT, IMAGE_SIDE = 224, 212, 112
GAP, MARGIN, HEADER_HEIGHT = 14, 24, 84
FRAME_MS = (2600, 4200, 2600)


@dataclass(frozen=True)
class Frame:
    """What the device answers at one moment."""

    title: str
    subtitle: str
    answers: tuple[str, ...]
    """Of each image, in order."""


def chosen_images(folder: Path) -> list[tuple[Path, str]]:
    """Return an image of each of the first unseen classes, with the name of its class."""
    unseen = (folder / "unseen.txt").read_text("utf-8").splitlines()
    lines = (folder / "images.csv").read_text("utf-8").splitlines()[1:]
    first: dict[str, Path] = {}
    for line in lines:
        file, _, name = line.partition(",")
        first.setdefault(name, folder / file)
    step = max(1, len(unseen) // (NUM_COLUMNS * NUM_ROWS))
    return [(first[name], name) for name in unseen[::step][: NUM_COLUMNS * NUM_ROWS]]


def observed_frames(folder: Path, images: list[tuple[Path, str]]) -> list[Frame]:
    """Open a copy of the demo's updatable bundle; return what it answers before, with and after the class update."""
    files = [path for path, _ in images]
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        # As it was exported: without what the demo's device took.
        shutil.copytree(folder / "updatable", bundle, ignore=shutil.ignore_patterns("state"))
        with icis_deploy.Device.open(bundle) as device:

            def answers() -> tuple[str, ...]:
                return tuple(prediction.class_names[0] for prediction in device.predict(files, top=1))

            num_seen = len(device.classes())
            before = answers()
            device.apply(folder / "new.icis", allow_unsigned=True)
            num_new, after = len(device.classes()) - num_seen, answers()
            size_kb = (folder / "new.icis").stat().st_size / 1000
            device.rollback()
            return [
                Frame(f"A running device knows {num_seen} classes", "These eight things are not among them.", before),
                Frame(
                    f"It takes {num_new} more while it runs",
                    f"One file of {size_kb:.0f} kB, made from descriptions; no image of them was used.",
                    after,
                ),
                Frame("It gives them back", "One command: icis-deploy rollback.", answers()),
            ]


def draw_frame(frame: Frame, images: list[tuple[Path, str]]) -> Image.Image:
    """Return one frame."""
    width = 2 * MARGIN + NUM_COLUMNS * (CARD_WIDTH + GAP) - GAP
    sheet = Image.new("RGB", (width, HEADER_HEIGHT + NUM_ROWS * (CARD_HEIGHT + GAP) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 16), frame.title, font=font(27), fill=INK, stroke_width=0.5)
    draw.text((MARGIN, 52), frame.subtitle, font=font(16), fill=FAINT)
    for index, ((file, name), answer) in enumerate(zip(images, frame.answers, strict=True)):
        row, column = divmod(index, NUM_COLUMNS)
        left, top = MARGIN + column * (CARD_WIDTH + GAP), HEADER_HEIGHT + row * (CARD_HEIGHT + GAP)
        is_correct = answer == name
        edge = (RIGHT, 2) if is_correct else (LINE, 1)
        draw.rounded_rectangle(
            (left, top, left + CARD_WIDTH, top + CARD_HEIGHT), 8, fill=CARD, outline=edge[0], width=edge[1]
        )
        with Image.open(file) as image:
            sheet.paste(
                image.convert("RGB").resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC), (left + 12, top + 12)
            )
        draw_mark(draw, (left + IMAGE_SIDE + 34, top + 24), is_correct=is_correct)
        draw.text(
            (left + IMAGE_SIDE + 52, top + 15),
            "right" if is_correct else "wrong",
            font=font(15),
            fill=RIGHT if is_correct else WRONG,
        )
        y = draw_words(
            draw,
            marked(answer, name),
            (left + 12, top + IMAGE_SIDE + 20),
            CARD_WIDTH - 24,
            size=15,
            color=RIGHT if is_correct else WRONG,
        )
        if not is_correct:
            draw_words(
                draw,
                [("is:", False), *((word, False) for word in name.split())],
                (left + 12, y),
                CARD_WIDTH - 24,
                size=14,
                color=FAINT,
            )
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="Folder that `icis-deploy demo` made.")
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    images = chosen_images(options.demo)
    frames = [draw_frame(frame, images).quantize(128) for frame in observed_frames(options.demo, images)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=True)
    write_file(options.out, buffer.getvalue())


if __name__ == "__main__":
    main()
