"""The steps of a project: what each reads, which settings concern it, what it makes, and how.

A step calls the library as anybody does; whether it has to is for `running.py` to say.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icis_deploy.api.inputs import preprocessing_from
from icis_deploy.api.models import ModelSource
from icis_deploy.common.files import write_file
from icis_deploy.common.terminal_text import percent
from icis_deploy.errors import ICISDeployError
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.project.content import factory_source
from icis_deploy.project.file import ProjectFile

Result = dict[str, Any]
Say = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a project."""

    name: str

    settings: Mapping[str, Any]
    """JSON values that what it makes depends on, by what they are called in the file."""

    inputs: Mapping[str, Path]
    """Files and folders that it reads, by what they are called in the file or under `out`."""

    outputs: tuple[Path, ...]
    """Files and folders that it makes."""

    extras: tuple[str, ...]
    """Libraries, as they are imported, that it needs."""

    run: Callable[[Say], Result]
    """Makes the outputs; returns what is worth telling, as JSON values with a sentence in `text`."""


_WORKBENCH = ("onnx_ir", "scipy")


def steps_of(project: ProjectFile) -> tuple[Step, ...]:
    """Return the steps of a project in order.

    Raises:
        UsageError: If settings contradict each other in a way that the library refuses.
    """
    _check_preprocess(project)
    makers = {
        "describe": _describe,
        "inject": _inject,
        "export": _export,
        "verify": _verify,
        "evaluate": _evaluate,
        "bench": _bench,
        "report": _report,
    }
    return tuple(makers[name](project) for name in project.step_names)


def _check_preprocess(project: ProjectFile) -> None:
    """Check settings of preprocessing that stand in the file itself, before minutes are spent without them.

    Raises:
        UsageError: If they say nothing that can be done.
    """
    given = project.settings.preprocess
    if not isinstance(given, dict):
        return
    try:
        preprocessing_from(given)
    except ICISDeployError as error:
        what = error.what.removesuffix(".")
        raise project.error(
            ("preprocess",), what, found=error.found, expected=error.expected or "preprocessing", hint=error.hint
        ) from error


def bundle_of(project: ProjectFile) -> Path:
    """Return where the bundle of a project is."""
    return project.out / "bundle"


def _source(project: ProjectFile) -> ModelSource:
    settings = project.settings
    path = project.model_file
    return ModelSource(
        spec=settings.model if path is None else path,
        weights=project.optional(settings.weights),
        input_shape=None if settings.input_shape is None else tuple(settings.input_shape),
        head_node=settings.head_node,
    )


def _model_inputs(project: ProjectFile) -> dict[str, Path]:
    """Return the files of a project's model and of its classes."""
    settings = project.settings
    path = project.model_file
    if path is None and ":" in settings.model:
        path = factory_source(settings.model)
    return _given(project, "weights", "classes") | ({} if path is None else {"model": path})


def _model_settings(project: ProjectFile) -> dict[str, Any]:
    settings = project.settings
    spec = None if project.model_file is not None else settings.model
    return {"model": spec, "input_shape": settings.input_shape, "head_node": settings.head_node}


def _given(project: ProjectFile, *names: str) -> dict[str, Path]:
    """Return the paths of settings at the top of the file that are given."""
    paths = {name: getattr(project.settings, name) for name in names}
    return {name: project.resolve(path) for name, path in paths.items() if isinstance(path, str)}


def _of_section(project: ProjectFile, section: str, *names: str) -> dict[str, Path]:
    """Return the paths of settings of a section that are given, lists one by one."""
    found: dict[str, Path] = {}
    for name in names:
        value = getattr(getattr(project.settings, section), name)
        listed = (
            {f"{section}.{name}[{index}]": each for index, each in enumerate(value)}
            if isinstance(value, list)
            else {f"{section}.{name}": value}
        )
        found |= {called: project.resolve(each) for called, each in listed.items() if each is not None}
    return found


def _section_settings(project: ProjectFile, section: str, *paths: str) -> dict[str, Any]:
    """Return the settings of a section but for its paths, whose content counts instead."""
    values = getattr(project.settings, section).model_dump(exclude=set(paths))
    return {f"{section}.{name}": value for name, value in values.items()}


def _preprocess(project: ProjectFile) -> Path | dict[str, Any] | None:
    given = project.settings.preprocess
    return project.resolve(given) if isinstance(given, str) else given


def _preprocess_settings(project: ProjectFile) -> dict[str, Any]:
    given = project.settings.preprocess
    return {"preprocess": given} if isinstance(given, dict) else {}


def _descriptors(project: ProjectFile) -> Path | None:
    settings = project.settings
    return project.optional(settings.descriptors) if settings.describe is None else project.out / "descriptors.npz"


def _fraction(points: float | None) -> float | None:
    return None if points is None else points / 100.0


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


_DESCRIBE_PATHS = ("tags", "attributes", "vectors", "texts")


def _describe(project: ProjectFile) -> Step:
    settings, section = project.settings, project.settings.describe
    assert section is not None
    out = project.out / "descriptors.npz"
    model = project.resolve(section.model) if section.model and project.resolve(section.model).is_dir() else None
    inputs = _model_inputs(project) if settings.classes is None else _given(project, "classes")
    model_settings = _model_settings(project) if settings.classes is None else {}
    own = {} if model is None else {"describe.model": model}

    def run(_say: Say) -> Result:
        from icis_deploy.api.describe import DescribeOptions, describe
        from icis_deploy.api.models import head_of, inspect
        from icis_deploy.descriptors.files import save_descriptors
        from icis_deploy.head.class_names import load_class_list

        assert settings.unseen is not None
        if settings.classes is None:
            seen = head_of(inspect(_source(project))).class_names
        else:
            seen = load_class_list(project.resolve(settings.classes))
        unseen = load_class_list(project.resolve(settings.unseen))
        paths = {name: project.optional(getattr(section, name)) for name in _DESCRIBE_PATHS}
        made = describe(
            tuple(dict.fromkeys((*seen, *unseen))),
            **paths,
            model=section.model if model is None else model,
            options=DescribeOptions(templates=section.templates),
        )
        save_descriptors(made, out)
        counts = {"num_classes": made.num_classes, "descriptor_dim": made.descriptor_dim}
        text = f"{made.num_classes} classes, {made.descriptor_dim} numbers each"
        return {**counts, "text": text}

    return Step(
        name="describe",
        settings=model_settings | _section_settings(project, "describe", *_DESCRIBE_PATHS),
        inputs=inputs | _given(project, "unseen") | _of_section(project, "describe", *_DESCRIBE_PATHS) | own,
        outputs=(out,),
        extras=_WORKBENCH if settings.classes is None else (),
        run=run,
    )


def _inject(project: ProjectFile) -> Step:
    settings, section = project.settings, project.settings.inject
    out = project.out / "new.icis"
    descriptors = _descriptors(project)
    options = InjectionOptions(
        method=section.method,
        calibration=section.calibration,
        max_seen_loss=_fraction(section.max_seen_loss),
        balance=section.balance,
        arbiter=section.arbiter,
        seen_images=project.optional(settings.seen_images) if section.calibration == "auto" else None,
        photos=project.optional(section.photos),
        skip_unreadable=section.skip_unreadable,
        seen_accuracy=section.seen_accuracy,
        seed=section.seed,
    )

    def run(say: Say) -> Result:
        from icis_deploy.api.inject import inject
        from icis_deploy.updates.envelope import save_update

        update = inject(
            _source(project),
            classes=project.optional(settings.classes),
            descriptors=descriptors,
            unseen=project.optional(settings.unseen),
            options=options,
            preprocess=_preprocess(project),
            strict=section.strict,
            progress=lambda epoch, loss: say(f"training, epoch {epoch}, loss {loss:.4f}"),
        )
        save_update(update, out)
        provenance = dict(update.provenance)
        estimate = provenance["estimate"]
        values = None if estimate is None else {name: estimate[name]["value"] for name in ("T", "U", "S", "H")}
        predicted = "" if values is None else f"; U {percent(values['U'])} and S {percent(values['S'])} are predicted"
        text = f"{len(update.added)} classes by {provenance['method']}{predicted}"
        return {
            "num_added": len(update.added),
            "method": provenance["method"],
            "base_fingerprint": update.base_fingerprint,
            "predicted": values,
            "text": text,
        }

    return Step(
        name="inject",
        settings=_model_settings(project)
        | _preprocess_settings(project)
        | _section_settings(project, "inject", "photos"),
        inputs=_model_inputs(project)
        | _given(project, "unseen", "preprocess", "seen_images")
        | _of_section(project, "inject", "photos")
        | ({} if descriptors is None else {"descriptors": descriptors}),
        outputs=(out,),
        extras=_WORKBENCH,
        run=run,
    )


_EXPORT_PATHS = ("trust", "generator", "calibration_images")


def _export(project: ProjectFile) -> Step:
    from icis_deploy.api.export import ExportOptions
    from icis_deploy.bundle.model_form import ModelForm

    settings, section = project.settings, project.settings.export
    has_guard = section.head == "updatable" and section.max_changed_answers is not None
    options = ExportOptions(
        head=section.head,
        capacity=section.capacity,
        arbiter=section.arbiter,
        preprocess=_preprocess(project),
        images=project.optional(settings.images),
        seen_images=project.optional(settings.seen_images) if has_guard else None,
        max_changed_answers=_fraction(section.max_changed_answers),
        form=ModelForm(
            precision=section.precision,
            calibration_images=project.optional(section.calibration_images),
            model_input=section.model_input,
            top=section.top,
        ),
        trust=[project.resolve(each) for each in section.trust],
        generator=project.optional(section.generator),
        targets=section.targets,
    )

    def run(say: Say) -> Result:
        from icis_deploy.api.export import export

        bundle = export(
            _source(project),
            classes=project.optional(settings.classes),
            out=bundle_of(project),
            updates=[project.out / "new.icis"],
            options=options,
            on_target=lambda target: say(f"target {target.name}"),
            overwrite=True,
        )
        size = sum(entry.size_bytes for entry in bundle.files.values())
        text = f"{bundle.head_kind} head, {len(bundle.class_names)} classes baked, {size / 1e6:.1f} MB, the gate passed"
        return {
            "head": bundle.head_kind,
            "precision": bundle.precision,
            "capacity": bundle.capacity,
            "size_bytes": size,
            "text": text,
        }

    images = ("images", "seen_images") if has_guard else ("images",)
    return Step(
        name="export",
        settings=_model_settings(project)
        | _preprocess_settings(project)
        | _section_settings(project, "export", *_EXPORT_PATHS),
        inputs=_model_inputs(project)
        | _given(project, "preprocess", *images)
        | _of_section(project, "export", *_EXPORT_PATHS)
        | {"new.icis": project.out / "new.icis"},
        outputs=(bundle_of(project),),
        extras=_WORKBENCH,
        run=run,
    )


def _verify(project: ProjectFile) -> Step:
    settings, section = project.settings, project.settings.verify
    assert section is not None
    out = project.out / "verify.json"

    def run(_say: Say) -> Result:
        from icis_deploy.api.verify import verify

        reports = verify(
            bundle_of(project),
            against=_source(project),
            images=project.optional(settings.images),
            runtime=section.runtime,
            max_seen_loss=_fraction(section.max_seen_loss),
        )
        error = max(report.max_scaled_error for report in reports)
        _write_json(out, {"runtime": section.runtime, "parity": [report.to_json() for report in reports]})
        text = f"{len(reports)} comparisons passed; the largest scaled error is {error:.2g}"
        return {"passed": True, "max_scaled_error": error, "text": text}

    return Step(
        name="verify",
        settings=_model_settings(project) | _section_settings(project, "verify"),
        inputs=_model_inputs(project) | _given(project, "images") | {"bundle": bundle_of(project)},
        outputs=(out,),
        extras=_WORKBENCH,
        run=run,
    )


def _evaluate(project: ProjectFile) -> Step:
    settings, section = project.settings, project.settings.evaluate
    assert section is not None
    out, table, curve = project.out / "evaluate.json", project.out / "classes.csv", project.out / "curve.png"

    def run(_say: Say) -> Result:
        from icis_deploy.api.evaluate import evaluate, save_class_table
        from icis_deploy.api.evaluate_plot import save_curve_plot

        assert settings.images is not None
        report = evaluate(
            bundle_of(project),
            images=project.resolve(settings.images),
            runtime=section.runtime,
            max_seen_loss=_fraction(section.max_seen_loss),
        )
        _write_json(out, {"runtime": section.runtime, **report.to_json()})
        save_class_table(table, report)
        if section.curve:
            save_curve_plot(curve, report)
        figures = {name: getattr(report, name) for name in ("T", "U", "S", "H", "S_original")}
        return {**figures, "text": ", ".join(f"{name} {percent(value)}" for name, value in figures.items())}

    return Step(
        name="evaluate",
        settings=_section_settings(project, "evaluate"),
        inputs=_given(project, "images") | {"bundle": bundle_of(project)},
        outputs=(out, table, *([curve] if section.curve else [])),
        extras=("matplotlib",) if section.curve else (),
        run=run,
    )


def _bench(project: ProjectFile) -> Step:
    from icis_deploy.api.bench import BenchOptions

    settings, section = project.settings, project.settings.bench
    assert section is not None
    out = project.out / "bench.json"
    path = project.model_file
    against = path if section.against_model and path is not None and path.is_file() else None
    options = BenchOptions(
        preset=section.preset,
        max_seconds=section.max_seconds,
        batch_sizes=section.batch_sizes,
        runtimes=section.runtimes,
        num_threads=section.num_threads,
        scenarios=section.scenarios,
    )

    def run(say: Say) -> Result:
        from icis_deploy.api.bench import bench
        from icis_deploy.workbench import enable_workbench

        enable_workbench()
        from benchmarks.results.result import save_result

        images = project.optional(settings.images)
        result = bench([bundle_of(project)], against=against, images=images, options=options, progress=say)
        save_result(result, out)
        names = [target.name for target in result.targets]
        return {
            "targets": names,
            "text": f"{', '.join(names)}; in batches of {', '.join(map(str, section.batch_sizes))}",
        }

    return Step(
        name="bench",
        # Of another machine it would be another result.
        settings=_section_settings(project, "bench") | {"machine": platform.node()},
        inputs=_given(project, "images")
        | ({} if against is None else {"model": against})
        | {"bundle": bundle_of(project)},
        outputs=(out,),
        extras=(*_WORKBENCH, "psutil"),
        run=run,
    )


def _report(project: ProjectFile) -> Step:
    section = project.settings.report
    assert section is not None
    page, markdown = project.out / "report.html", project.out / "report.md"
    own = {} if project.settings.bench is None else {"bench.json": project.out / "bench.json"}
    others = _of_section(project, "report", "results")

    def run(_say: Say) -> Result:
        from icis_deploy.api.report import report

        written = report(
            [*own.values(), *others.values()],
            out=page,
            markdown=markdown if section.markdown else None,
            overwrite=True,
        )
        text = f"results: {written.num_results}, devices: {len(written.devices)}, rows: {written.num_rows}"
        return {"num_results": written.num_results, "devices": list(written.devices), "text": text}

    return Step(
        name="report",
        settings=_section_settings(project, "report", "results"),
        inputs=own | others,
        outputs=(page, *([markdown] if section.markdown else [])),
        extras=("matplotlib", "jinja2"),
        run=run,
    )
