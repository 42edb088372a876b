"""Every place that reads a file is listed with what bounds it; a new one, or one that went away, fails."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("icis_deploy", "exporters", "benchmarks")

READS = {
    "open", "read_bytes", "read_text", "fdopen", "FileIO", "mmap", "memmap", "fromfile", "loadtxt", "genfromtxt",
    "loadmat", "safe_open", "load_file", "ZipFile", "TarFile", "DictReader", "reader", "read_array",
}  # fmt: skip
"""Functions and methods that open or read a file, whatever they are called on."""

LOADERS = {"np", "numpy", "onnx", "ir", "torch", "export", "json", "pickle", "safetensors", "gzip"}
"""What has a `load` or `loads` that takes whatever is in a file."""


def reads_in(source: str) -> Iterator[str]:
    """Yield each call that reads, as `module.function` or `function`; opening a device or a session is none."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LOADERS
        for alias in node.names
        if alias.name in {"load", "loads"}
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in (READS - {"reader"}) | imported:
            yield node.func.id
        elif isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            last = owner.rpartition(".")[2]
            if node.func.attr in READS and last not in {"Device", "icis_deploy"}:
                yield f"{last}.{node.func.attr}" if last.isidentifier() else node.func.attr
            elif node.func.attr in {"load", "loads"} and last in LOADERS:
                yield f"{last}.{node.func.attr}"


def found_reads() -> dict[str, Counter[str]]:
    return {
        str(path.relative_to(REPOSITORY)): reads
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if (reads := Counter(reads_in(path.read_text("utf-8"))))
    }


ALLOWED: dict[str, tuple[str, str]] = {
    "icis_deploy/bundle/opened_files.py": ("mmap.mmap", "maps the file; reads the names of others within a limit"),
    "icis_deploy/carriers/hawkbit.py": (
        "json.loads json.loads os.open",
        "an answer, which transfer limits, and a note of its own, read to a limit; opens its folder for a lock",
    ),
    "icis_deploy/carriers/oci.py": (
        "content.open json.loads",
        "a file to push is sent as it is read; an answer, which transfer limits",
    ),
    "icis_deploy/carriers/transfer.py": ("open", "opens an address of HTTP; reads to the size that the caller states"),
    "icis_deploy/cli/output.py": ("os.open os.open", "opens the null device to write to"),
    "icis_deploy/common/archives.py": (
        "archive.open archive.open format.read_array zipfile.ZipFile",
        "counts members and adds up sizes first; compares each array's header with its size",
    ),
    "icis_deploy/common/csv_rows.py": ("csv.reader", "reads lines of bounded size, after counting the cells"),
    "icis_deploy/common/files.py": (
        "FileIO mmap.mmap os.fdopen os.open os.open path.open",
        "what others read through, with limits; hashes piece by piece; writes",
    ),
    "icis_deploy/common/tensor_files.py": (
        "load",
        "the header was read within its limit; tensors are parts of the data",
    ),
    "icis_deploy/demo/image_files.py": ("path.open", "writes"),
    "icis_deploy/descriptors/files.py": ("loadmat", "check_mat compared the sizes of what is asked for with the file"),
    "icis_deploy/descriptors/word_vectors.py": ("gzip.open", "read line by line, both of which have limits"),
    "icis_deploy/head/class_update.py": ("json.loads", "copies what was written as JSON in this process"),
    "icis_deploy/evaluation/on_ray.py": ("json.loads np.load", "what this process and its own workers have written"),
    "icis_deploy/images/array_files.py": ("np.memmap", "maps what its header states, which is compared with the file"),
    "icis_deploy/images/input_files.py": ("system.open", "read_input looks at the size first; others read in pieces"),
    "icis_deploy/images/saved_datasets.py": ("path.open", "reads eight bytes at the end; rows are mapped"),
    "icis_deploy/images/tar_files.py": (
        "tarfile.TarFile",
        "headers through a file that gives no more at once than a header has; members have limits",
    ),
    "icis_deploy/images/loading.py": ("Image.open", "size of the file first; pixels before they are decoded"),
    "icis_deploy/descriptors/tag_answers.py": ("reader.read_text", "a method of its own: parses a text that was read"),
    "icis_deploy/project/content.py": ("path.open", "the first line of a list, up to a limit; all else is hashed"),
    "icis_deploy/project/running.py": ("json.loads", "copies what was written as JSON in this process"),
    "icis_deploy/runtime/inbox.py": (
        "os.fdopen os.fdopen os.fdopen os.open os.open os.open os.open os.open os.open",
        "reads no more than an update may have, and a copy no further than what it is compared with; opens folders; "
        "writes copies",
    ),
    "icis_deploy/runtime/sessions/tensorrt_engine.py": (
        "path.read_bytes",
        "of the size and hash that the manifest states",
    ),
    "icis_deploy/runtime/state/filesystem.py": ("os.open", "writes; reads what plain_descriptor opened, so many bytes"),
    "icis_deploy/runtime/state/locking.py": ("_lockable.open os.open os.open", "locks; nothing is read"),
    "icis_deploy/common/syncing.py": ("os.open", "syncs; nothing is read"),
    "icis_deploy/serving/bodies.py": (
        "Image.open",
        "the header of a body whose size has a limit; nothing is decoded",
    ),
    "icis_deploy/serving/head.py": ("os.open", "locks; nothing is read"),
    "icis_deploy/updates/signing.py": ("os.fdopen os.open", "writes"),
    "exporters/bundles/finishing.py": ("path.read_bytes", "of keys that were read within their limit just before"),
    "exporters/conversion/int8.py": ("ir.load ir.load", "models that this process has just written"),
    "exporters/gate/gate.py": ("ir.load", "the model of the bundle that this process has just written"),
    "exporters/gate/other_outputs.py": ("ir.load", "the model of the bundle that this process has just written"),
    "exporters/onnx_io/class_names_metadata.py": ("json.loads", "a text in the metadata of a model that was read"),
    "exporters/head/surgery.py": ("ir.load", "the model that this process has just written"),
    "exporters/loading/original.py": (
        "onnx.load",
        "a model that read_model has read within its limits, without weights",
    ),
    "exporters/loading/torch_export.py": (
        "export.load torch.load",
        "the archive's members were counted and added up; samples are read within a limit of their own",
    ),
    "exporters/loading/torch_modules.py": (
        "load_file torch.load",
        "safetensors compares sizes with the file; archives of torch were counted and added up",
    ),
    "exporters/onnx_io/lazy_tensors.py": ("mmap.mmap", "maps a part of the file"),
    "exporters/onnx_io/streaming.py": ("mmap.mmap", "maps the file; what is parsed of it has a limit"),
    "exporters/targets/executorch_target.py": ("json.loads", "what the converter printed in this export"),
    "exporters/targets/ncnn_target.py": ("path.read_text read_bytes", "what the converter wrote in this export"),
    "exporters/targets/qnn_target.py": ("ir.load", "what the quantizer wrote in this export"),
    "exporters/targets/web_target.py": (
        "path.read_bytes path.read_bytes",
        "the JavaScript of this package",
    ),
    "exporters/targets/tensorrt/build.py": ("path.read_bytes", "TensorRT's timing cache, which this package wrote"),
    "benchmarks/bench/loadgen_logs.py": ("json.loads read_text", "logs that LoadGen has just written for this process"),
    "benchmarks/machine/environment.py": (" ".join(["read_text"] * 11), "files of the kernel, through system_files"),
    "benchmarks/machine/monitor.py": (" ".join(["read_text"] * 6), "files of the kernel, through system_files"),
    "benchmarks/machine/system_files.py": ("read_text read_text read_text", "files of the kernel"),
    "benchmarks/timing/startup.py": (
        "answer.read_text json.loads path.open",
        "what a child process of this one has written; hashes piece by piece",
    ),
}
"""For each module, its reads and what bounds them."""


def test_every_read_is_listed_with_what_bounds_it():
    found = {name: " ".join(sorted(reads.elements())) for name, reads in found_reads().items()}

    assert found == {name: reads for name, (reads, _) in ALLOWED.items()}
    assert all(reason for _, reason in ALLOWED.values())


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("open('a')", ["open"]),
        ("path.open('rb').read()", ["path.open"]),
        ("Path('a').read_bytes()", ["read_bytes"]),
        ("self.folder.joinpath('a').read_text()", ["read_text"]),
        ("np.load('a')", ["np.load"]),
        ("json.loads(text)", ["json.loads"]),
        ("PIL.Image.open(file)", ["Image.open"]),
        ("def f():\n    from scipy.io import loadmat\n    return loadmat(file)", ["loadmat"]),
        ("zipfile.ZipFile(path)", ["zipfile.ZipFile"]),
        ("torch.export.load(path)", ["export.load"]),
        ("from safetensors.numpy import load\nload(data)", ["load"]),
        ("csv.reader(file)", ["csv.reader"]),
        ("Device.open('bundle')", []),
        ("read_plain(path, max_bytes=9)", []),
    ],
)
def test_a_new_read_would_be_found(source, reads):
    assert list(reads_in(source)) == reads
