"""Draw the image sheet: one image of each unseen class, and what the model says about it.

Every card shows the image, what it is, what the model answers now that the class is injected, and what it answered
before. Right and wrong differ by mark, by word, by the card's edge and, last, by colour; what an answer gets wrong is
underlined.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from icis_deploy.common.files import write_file
from icis_deploy.demo.world import ATTRIBUTES

Color = tuple[int, int, int]

PAPER: Color = (244, 242, 237)
CARD: Color = (255, 255, 255)
INK: Color = (30, 32, 38)
FAINT: Color = (104, 107, 116)
LINE: Color = (216, 212, 203)
RIGHT: Color = (17, 112, 92)
WRONG: Color = (178, 58, 20)

NUM_COLUMNS = 4
CARD_WIDTH, CARD_HEIGHT = 436, 196
IMAGE_SIDE = 164
GAP, MARGIN, PADDING = 18, 44, 16
HEADER_HEIGHT, FOOTER_HEIGHT = 132, 56


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetCard:
    """One image of an unseen class and the answers to it."""

    image: NDArray[np.uint8]
    """`(height, width, 3)` uint8, RGB."""

    class_name: str
    """Name of the class that it shows."""

    answer: str
    """What the model with the injected classes says, among all classes."""

    probability: float
    """Softmax probability of that answer, 0..1."""

    answer_before: str
    """What the model said before the injection, when it knew the seen classes only."""

    @property
    def is_correct(self) -> bool:
        """Whether the answer is the class that it shows."""
        return self.answer == self.class_name


def save_image_sheet(path: Path, cards: Sequence[SheetCard], *, title: str, subtitle: str) -> None:
    """Draw a image sheet and write it as a PNG.

    Raises:
        StorageError: If it cannot be written; what was at `path` before is still there.
    """
    buffer = io.BytesIO()
    draw_image_sheet(cards, title=title, subtitle=subtitle).save(buffer, format="PNG", optimize=True)
    write_file(path, buffer.getvalue())


def draw_image_sheet(cards: Sequence[SheetCard], *, title: str, subtitle: str) -> Image.Image:
    """Return the sheet: a header, the cards in rows, and a legend.

    Args:
        cards: In the order in which they are shown, row by row.
        title: One line.
        subtitle: One line, smaller: the accuracies that the sheet illustrates.
    """
    num_rows = -(-len(cards) // NUM_COLUMNS)
    width = 2 * MARGIN + NUM_COLUMNS * (CARD_WIDTH + GAP) - GAP
    height = HEADER_HEIGHT + num_rows * (CARD_HEIGHT + GAP) + FOOTER_HEIGHT
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 36), title, font=font(34), fill=INK, stroke_width=0.5)
    draw.text((MARGIN, 84), subtitle, font=font(19), fill=FAINT)
    for index, card in enumerate(cards):
        row, column = divmod(index, NUM_COLUMNS)
        left = MARGIN + column * (CARD_WIDTH + GAP)
        draw_card(sheet, draw, card, left=left, top=HEADER_HEIGHT + row * (CARD_HEIGHT + GAP))
    draw_legend(draw, cards, left=MARGIN, top=height - FOOTER_HEIGHT + 10)
    return sheet


def draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: SheetCard, *, left: int, top: int) -> None:
    """Draw one card with its upper left corner at `(left, top)`."""
    box = (left, top, left + CARD_WIDTH, top + CARD_HEIGHT)
    edge, edge_width = (LINE, 1) if card.is_correct else (WRONG, 3)
    draw.rounded_rectangle(box, radius=10, fill=CARD, outline=edge, width=edge_width)
    scaled = Image.fromarray(card.image).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
    rounded = Image.new("L", (IMAGE_SIDE * 4, IMAGE_SIDE * 4))
    ImageDraw.Draw(rounded).rounded_rectangle((0, 0, rounded.width - 1, rounded.height - 1), radius=28, fill=255)
    sheet.paste(scaled, (left + PADDING, top + PADDING), rounded.reduce(4))
    draw_answers(draw, card, left=left + IMAGE_SIDE + 2 * PADDING, top=top + PADDING - 3)


def draw_answers(draw: ImageDraw.ImageDraw, card: SheetCard, *, left: int, top: int) -> None:
    """Draw a card's text: what it is, whether that is the answer, the answer where it is not, the one before."""
    width = CARD_WIDTH - IMAGE_SIDE - 3 * PADDING
    y = draw_words(draw, marked(card.class_name, card.class_name), (left, top), width, size=20, color=INK)
    draw_mark(draw, (left + 9, y + 17), is_correct=card.is_correct)
    verdict = f"{'right' if card.is_correct else 'wrong'}, {100 * card.probability:.0f} % sure"
    draw.text((left + 26, y + 7), verdict, font=font(17), fill=RIGHT if card.is_correct else WRONG, stroke_width=0.3)
    y += 33
    answer, before = marked(card.answer, card.class_name), marked(card.answer_before, card.class_name)
    if card.answer == card.answer_before:
        draw_words(draw, [("as before:", False), *answer], (left, y), width, size=16, color=WRONG)
        return
    if not card.is_correct:
        y = draw_words(draw, [("says", False), *answer], (left, y), width, size=16, color=WRONG) + 3
    draw_words(draw, [("before:", False), *before], (left, y), width, size=15, color=FAINT)


def marked(answer: str, truth: str) -> list[tuple[str, bool]]:
    """Return an answer's words, each with whether it is wrong.

    An attribute that an answer leaves unsaid and the truth does not is put into words: "(not striped)".

    Args:
        answer: A class name.
        truth: The name of the class that the image shows.
    """
    said, true = answer.split(), truth.split()
    words = [(word, word not in true) for word in said]
    for values in ATTRIBUTES.values():
        missing = [value for value in values if value in true]
        if missing and not set(values) & set(said):
            words.append((f"(not {missing[0]})", True))
    return words


def draw_words(
    draw: ImageDraw.ImageDraw,
    words: Sequence[tuple[str, bool]],
    corner: tuple[int, int],
    width: int,
    *,
    size: int,
    color: Color,
) -> int:
    """Draw words in as many lines as they need, underlining the wrong ones.

    Args:
        draw: Where to draw.
        words: Each with whether it is wrong.
        corner: Left end and top of the first line.
        width: Of a line, in pixels.
        size: Of the letters, in pixels.
        color: Of letters and lines.

    Returns:
        Where the next line would start.
    """
    face = font(size)
    left, y = corner
    x: float = left
    for word, is_wrong in words:
        length = face.getlength(word)
        if x > left and x + length > left + width:
            x, y = left, y + round(size * 1.3)
        draw.text((x, y), word, font=face, fill=color)
        if is_wrong:
            underline = y + round(size * 1.14)
            draw.line((x, underline, x + length, underline), fill=color, width=2)
        x += length + face.getlength(" ")
    return y + round(size * 1.3)


def draw_mark(draw: ImageDraw.ImageDraw, centre: tuple[float, float], *, is_correct: bool) -> None:
    """Draw a tick on a disc, or a cross on a square."""
    x, y = centre
    box = (x - 9, y - 9, x + 9, y + 9)
    if is_correct:
        draw.ellipse(box, fill=RIGHT)
        draw.line([(x - 4.5, y + 0.5), (x - 1.5, y + 4), (x + 4.5, y - 4)], fill=CARD, width=2, joint="curve")
    else:
        draw.rectangle(box, fill=WRONG)
        draw.line((x - 4, y - 4, x + 4, y + 4), fill=CARD, width=2)
        draw.line((x - 4, y + 4, x + 4, y - 4), fill=CARD, width=2)


def draw_legend(draw: ImageDraw.ImageDraw, cards: Sequence[SheetCard], *, left: int, top: int) -> None:
    """Draw what the marks mean, and how many images there are of each."""
    num_correct = sum(card.is_correct for card in cards)
    face = font(16)
    x: float = left
    for is_correct, text in [(True, f"{num_correct} right"), (False, f"{len(cards) - num_correct} wrong")]:
        draw_mark(draw, (x + 9, top + 10), is_correct=is_correct)
        draw.text((x + 26, top), text, font=face, fill=INK)
        x += 26 + face.getlength(text) + 28
    note = "before: the answer without the injected classes      underlined: what an answer gets wrong"
    draw.text((x, top), note, font=face, fill=FAINT)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface that Pillow carries inside, so that the sheet looks the same everywhere."""
    return ImageFont.load_default(size)
