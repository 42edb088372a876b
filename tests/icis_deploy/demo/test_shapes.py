import numpy as np
import pytest

from icis_deploy.demo.shapes import SHAPES, rotation, unit_area
from icis_deploy.demo.world import ATTRIBUTES


def signed_area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_every_shape_of_the_world_can_be_drawn() -> None:
    assert set(SHAPES) == set(ATTRIBUTES["shape"])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_area_of_a_disc_of_radius_one(shape: str) -> None:
    assert abs(signed_area(SHAPES[shape])) == pytest.approx(np.pi)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_its_centre_of_area_at_the_origin(shape: str) -> None:
    np.testing.assert_allclose(unit_area(SHAPES[shape]), SHAPES[shape], atol=1e-12)


def test_a_polygon_is_moved_to_its_centre_and_scaled() -> None:
    square = unit_area([(10, 10), (14, 10), (14, 14), (10, 14)])
    np.testing.assert_allclose(np.abs(square), np.sqrt(np.pi) / 2)


def test_a_quarter_turn_takes_x_to_y() -> None:
    np.testing.assert_allclose(rotation(np.pi / 2) @ [1, 0], [0, 1], atol=1e-12)
