from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from icis_deploy.demo.image_sheet import (
    CARD_HEIGHT,
    CARD_WIDTH,
    GAP,
    HEADER_HEIGHT,
    IMAGE_SIDE,
    MARGIN,
    PADDING,
    SheetCard,
    draw_image_sheet,
    draw_mark,
    draw_words,
    marked,
    save_image_sheet,
)
from icis_deploy.errors import StorageError


def card(answer: str = "small red star", *, answer_before: str = "small red cross", shade: int = 90) -> SheetCard:
    image = np.full((64, 64, 3), shade, np.uint8)
    return SheetCard(
        image=image, class_name="small red star", answer=answer, probability=0.62, answer_before=answer_before
    )


def drawn_card(item: SheetCard) -> np.ndarray:
    sheet = np.asarray(draw_image_sheet([item], title="t", subtitle="s"))
    return sheet[HEADER_HEIGHT : HEADER_HEIGHT + CARD_HEIGHT, MARGIN : MARGIN + CARD_WIDTH]


def test_an_answer_is_correct_when_it_names_the_class() -> None:
    assert card().is_correct
    assert not card("small red cross").is_correct


def test_words_that_are_not_true_of_the_image_are_marked() -> None:
    words = marked("large striped red cross", "small striped red star")
    assert words == [("large", True), ("striped", False), ("red", False), ("cross", True)]


def test_an_attribute_that_the_answer_leaves_unsaid_is_put_into_words() -> None:
    assert marked("small red star", "small outlined striped red star")[3:] == [
        ("(not outlined)", True),
        ("(not striped)", True),
    ]


def test_a_right_answer_has_nothing_marked() -> None:
    assert not any(is_wrong for _, is_wrong in marked("large dotted blue heart", "large dotted blue heart"))


def test_right_and_wrong_marks_differ_in_shape_not_only_in_colour() -> None:
    marks = []
    for is_correct in (True, False):
        canvas = Image.new("L", (24, 24), 128)
        colored = Image.new("RGB", (24, 24), (128, 128, 128))
        draw_mark(ImageDraw.Draw(colored), (12, 12), is_correct=is_correct)
        canvas.paste(colored.convert("L"))
        marks.append(np.asarray(colored).min(axis=-1) > 200)  # the white stroke alone
    assert marks[0].any()
    assert marks[1].any()
    assert (marks[0] ^ marks[1]).sum() > 10


def test_a_wrong_card_has_a_thicker_edge() -> None:
    right, wrong = (drawn_card(item)[CARD_HEIGHT // 2, 2] for item in (card(), card("small red cross")))
    assert right.min() > 250  # already the card's white
    assert wrong.min() < 100  # still the edge


def test_each_image_is_shown_on_its_own_card_row_by_row() -> None:
    shades = [20, 60, 100, 140, 180]
    sheet = np.asarray(draw_image_sheet([card(shade=shade) for shade in shades], title="t", subtitle="s"))
    for index, shade in enumerate(shades):
        row, column = divmod(index, 4)
        y = HEADER_HEIGHT + row * (CARD_HEIGHT + GAP) + PADDING + IMAGE_SIDE // 2
        x = MARGIN + column * (CARD_WIDTH + GAP) + PADDING + IMAGE_SIDE // 2
        assert sheet[y, x].tolist() == [shade] * 3


@pytest.mark.parametrize("answer_before", ["large outlined checked purple triangle", "small red circle"])
def test_the_longest_names_stay_inside_their_card(answer_before: str) -> None:
    longest = "large outlined striped orange triangle"
    item = SheetCard(
        image=np.zeros((64, 64, 3), np.uint8),
        class_name=longest,
        answer="large outlined checked yellow triangle",
        probability=1.0,
        answer_before=answer_before,
    )
    sheet = np.asarray(draw_image_sheet([item], title="t", subtitle="s"))
    below = sheet[HEADER_HEIGHT + CARD_HEIGHT + 1 : HEADER_HEIGHT + CARD_HEIGHT + GAP]
    next_to_it = sheet[HEADER_HEIGHT : HEADER_HEIGHT + CARD_HEIGHT, MARGIN + CARD_WIDTH + 1 :]
    for outside in (below, next_to_it):
        assert (outside == outside[0, 0]).all()
    inner_bottom = drawn_card(item)[-8:-4, PADDING + IMAGE_SIDE : -4]
    assert inner_bottom.min() > 250


def test_words_that_do_not_fit_go_to_the_next_line() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (400, 100)))
    words = [("outlined", False), ("striped", False), ("purple", False)]
    one_line = draw_words(draw, words, (0, 0), 400, size=20, color=(0, 0, 0))
    assert draw_words(draw, words, (0, 0), 90, size=20, color=(0, 0, 0)) == 3 * one_line


def test_the_sheet_is_written_as_a_png(tmp_path: Path) -> None:
    save_image_sheet(tmp_path / "unseen.png", [card()], title="One class", subtitle="U 100 %")
    with Image.open(tmp_path / "unseen.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(
            np.asarray(image), np.asarray(draw_image_sheet([card()], title="One class", subtitle="U 100 %"))
        )


def test_a_sheet_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        save_image_sheet(tmp_path / "nowhere" / "unseen.png", [card()], title="t", subtitle="s")
