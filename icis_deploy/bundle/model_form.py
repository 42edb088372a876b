"""The form in which a model is exported: its precision, its input and its outputs, whatever its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from icis_deploy.bundle.manifest import HEAD_PRECISIONS, PRECISIONS
from icis_deploy.common.given import check_choice, whole_number
from icis_deploy.errors import UsageError

_INPUTS = ("float32", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelForm:
    """What the exported model computes in, takes and gives; by default it selects the most probable classes itself.

    Example:
        >>> icis_deploy.ModelForm(precision="fp16", model_input="uint8").top
        5

    Raises:
        UsageError: On construction, if its parts do not go together.
    """

    precision: str = "fp32"
    """What the backbone computes in: `fp32` leaves it as it is, `fp16`, `int8`. Slots are float32 in all of them."""

    head_precision: str = "fp32"
    """What the rows that are baked into the model are stored in: `fp32` leaves them as they are, `fp16`, `int8` in
    steps of each row's own. They are multiplied as floats in all of them; slots stay float32."""

    calibration_images: Any = None
    """Images or arrays of what the device will see, for `int8`, in any form of `evaluate`, with or without classes."""

    model_input: str = "float32"
    """What it takes: `float32` prepared images, or `uint8` pixels, which it prepares itself after resize and crop."""

    top: int = 5
    """How many classes per image it selects itself, with their probabilities: all where it has fewer; 0 leaves that to
    the device. The scores of all classes stay its first output."""

    def __post_init__(self) -> None:
        check_choice(self.precision, PRECISIONS, what="precision", name="precision")
        check_choice(self.head_precision, HEAD_PRECISIONS, what="head precision", name="head_precision")
        check_choice(self.model_input, _INPUTS, what="model input", name="model_input")
        object.__setattr__(self, "top", whole_number(self.top, name="top"))
        if self.top < 0:
            raise UsageError(
                f"A model cannot choose {self.top} classes; expected at least 0.",
                found=self.top,
                expected="at least 0",
                hint="Give another `top`.",
            )
        if self.precision == "int8" and self.calibration_images is None:
            raise UsageError(
                "int8 must be calibrated on images of the kind that the device will see.",
                expected="an image list",
                hint="Give an image list (100 to 500 images) as `calibration_images`.",
            )
        if self.precision != "int8" and self.calibration_images is not None:
            raise UsageError(
                f"Calibration images are for int8 only; the precision is {self.precision}.",
                found=self.precision,
                expected="int8",
                hint="Give `precision='int8'` with `calibration_images`, or leave them out.",
            )
