"""How the files are built that a bundle can hold besides `model.onnx`; the targets themselves are in `exporters`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from icis_deploy.common.files import path_from
from icis_deploy.common.given import check_flag, check_type, items, whole_number
from icis_deploy.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How engines of TensorRT and TensorRT-RTX are built.

    Example:
        settings = icis_deploy.EngineSettings(opt_batch=8, max_batch=64)
        icis_deploy.TargetOptions(engine=settings)

    Raises:
        UsageError: On construction, if the batches are not in order.
    """

    min_batch: int = 1
    """The smallest batch, in images, that the engine takes."""

    opt_batch: int = 1
    """The batch size that kernels are chosen for."""

    max_batch: int = 32
    """The largest batch that the engine takes."""

    compute_capabilities: tuple[str, ...] = ()
    """GPU architectures, such as `8.6`, for TensorRT-RTX; by default all from 8.0 on that it knows. TensorRT itself
    builds for the GPU of this machine."""

    hardware_compatibility: str = "none"
    """For TensorRT: `ampere_plus` lets the engine run on every architecture from 8.0 on, somewhat slower."""

    workspace_bytes: int | None = None
    """Memory that a layer may use while it runs; `None` for all there is."""

    timing_cache: Path | None = None
    """For TensorRT: a file of kernel timings, read if it is there and written afterwards. A rebuild takes seconds."""

    refit: bool = False
    """Whether slots are weights that are refitted, and not inputs."""

    def __post_init__(self) -> None:
        for name in ("min_batch", "opt_batch", "max_batch"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name=name))
        check_flag(self.refit, name="refit")
        capabilities = items(self.compute_capabilities, "GPU architectures, such as '8.6'", name="compute_capabilities")
        object.__setattr__(self, "compute_capabilities", capabilities)
        if self.workspace_bytes is not None:
            whole_number(self.workspace_bytes, name="workspace_bytes", at_least=1)
        if self.timing_cache is not None:
            object.__setattr__(self, "timing_cache", path_from(self.timing_cache, name="timing_cache"))
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(
                f"The batches {self.min_batch}, {self.opt_batch}, {self.max_batch} are not in order: expected 1 <= "
                f"min_batch <= opt_batch <= max_batch.",
                found=(self.min_batch, self.opt_batch, self.max_batch),
                expected="1 <= min_batch <= opt_batch <= max_batch",
                hint=(
                    "Give `min_batch`, `opt_batch` and `max_batch` in this order of size; what is left out "
                    "is 1, 1 and 32."
                ),
            )

    @property
    def batches_were_chosen(self) -> bool:
        """Whether any batch size differs from its default."""
        batches = ("min_batch", "opt_batch", "max_batch")
        return any(getattr(self, each.name) != each.default for each in fields(self) if each.name in batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSettings:
    """How the backbone alone is written, which compilers of chips take.

    Example:
        settings = icis_deploy.BackboneSettings(batch=1, opset=17)
        icis_deploy.TargetOptions(backbone=settings)

    Raises:
        UsageError: On construction, if a number is not positive.
    """

    batch: int | None = None
    """The only batch size that it takes, in images; `None` for those of the model."""

    opset: int | None = None
    """Version of ONNX's operators; `None` for that of the model."""

    def __post_init__(self) -> None:
        for name in ("batch", "opset"):
            number = getattr(self, name)
            if number is not None and whole_number(number, name=name) < 1:
                raise UsageError(
                    f"The backbone's {name} is {number}; expected at least 1.",
                    found=number,
                    expected="at least 1",
                    where=name,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """How targets are built; each target takes what concerns it.

    Example:
        targets = icis_deploy.TargetOptions(engine=icis_deploy.EngineSettings(max_batch=8))
        icis_deploy.ExportOptions(targets=("tensorrt-rtx",), target_options=targets)

    Raises:
        UsageError: On construction, if something is of another type.
    """

    engine: EngineSettings = field(default_factory=EngineSettings)
    """How TensorRT's engines are built."""

    onnxruntime_web: Path | None = None
    """For `web`: where onnxruntime-web is, whose files are copied next to the page: a `node_modules` folder, the
    package's own, or a folder with the two files; `None` leaves them to whoever serves the page."""

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    """How the backbone alone is written."""

    def __post_init__(self) -> None:
        check_type(self.engine, EngineSettings, name="engine")
        check_type(self.backbone, BackboneSettings, name="backbone")
        if self.onnxruntime_web is not None:
            object.__setattr__(self, "onnxruntime_web", path_from(self.onnxruntime_web, name="onnxruntime_web"))
