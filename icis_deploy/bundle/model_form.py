"""The form in which a model is exported: its precision, its input and its outputs, whatever its head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from icis_deploy.bundle.manifest import PRECISIONS
from icis_deploy.errors import UsageError

_INPUTS = ("float32", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelForm:
    """What the exported model computes in, takes and gives; by default it selects the most probable classes itself.

    Raises:
        UsageError: On construction, if its parts do not go together.
    """

    precision: str = "fp32"
    """What the backbone computes in: `fp32` leaves it as it is, `fp16`, `int8`. Slots are float32 in all of them."""

    calibration_images: str | Path | None = None
    """An image list of what the device will see, for `int8`: a CSV with the columns `file` and `class`."""

    model_input: str = "float32"
    """What it takes: `float32` prepared images, or `uint8` pixels, which it prepares itself after resize and crop."""

    top: int = 5
    """How many classes per image it selects itself, with their probabilities: all where it has fewer; 0 leaves that to
    the device. The scores of all classes stay its first output."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"There is no precision {self.precision!r}; choose among {', '.join(PRECISIONS)}.")
        if self.model_input not in _INPUTS:
            raise UsageError(f"A model cannot take {self.model_input!r}; choose among {', '.join(_INPUTS)}.")
        if self.top < 0:
            raise UsageError(f"A model cannot choose {self.top} classes; give --top a number of at least 0.")
        if self.precision == "int8" and self.calibration_images is None:
            raise UsageError(
                "int8 must be calibrated on images of the kind that the device will see: give "
                "--calibration-images with an image list (100 to 500 images)."
            )
        if self.precision != "int8" and self.calibration_images is not None:
            raise UsageError("Calibration images are for --precision int8 only.")
