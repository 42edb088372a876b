"""The site: its links fit it, its Python page lacks no public name, and the formats are those of real files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import struct
import sys
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.cli.main import cli
from icis_deploy.updates.envelope import save_update
from icis_deploy.updates.signing import keygen, sign
from testing.bundles import make_update, write_bundle

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "decisions")
FORMATS = (DOCS / "reference" / "formats.md").read_text("utf-8")
WORKFLOWS = sorted((REPOSITORY / ".github").rglob("*.yml"))


# --- links --------------------------------------------------------------------------------------------------------

mkdocs = pytest.importorskip("mkdocs", reason="the extra docs is not installed")

from mkdocs.structure.files import File, InclusionLevel  # noqa: E402 - needs mkdocs

from scripts.maintenance.site_links import ROOT_DOCUMENTS, included, rewritten  # noqa: E402
from scripts.maintenance.site_reference import names_of, with_names  # noqa: E402

SITE = {"index.md", "device.md", "results/README.md", "decisions/README.md", "project/SECURITY.md", "images/a.png"}


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("device.md", "[a](../SECURITY.md#threats)", "[a](project/SECURITY.md#threats)"),
        ("device.md", "[a](results/README.md)", "[a](results/README.md)"),
        ("results/README.md", "[a](../../README.md)", "[a](../index.md)"),
        ("results/README.md", "![a](../images/a.png)", "![a](../images/a.png)"),
        ("project/SECURITY.md", "[a](docs/device.md#guard)", "[a](../device.md#guard)"),
        ("project/SECURITY.md", "[a](docs/decisions)", "[a](../decisions/README.md)"),
        ("device.md", "[a](../scripts/check)", "a (`scripts/check`)"),
        ("device.md", "[`check`](../scripts/check)", "`check`"),
        (
            "device.md",
            "[a](https://arxiv.org/abs/2308.10599) [b](#faults)",
            "[a](https://arxiv.org/abs/2308.10599) [b](#faults)",
        ),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(source, link, expected):
    assert rewritten(link, source, SITE) == expected


def test_a_file_that_the_site_leaves_out_is_named_and_not_linked():
    files = [
        File(path, str(DOCS), "site", use_directory_urls=False, inclusion=inclusion)
        for path, inclusion in (("inputs.md", InclusionLevel.INCLUDED), ("examples/a.py", InclusionLevel.EXCLUDED))
    ]

    assert included(files) == {"inputs.md"}
    assert rewritten("[a](examples/a.py)", "inputs.md", included(files)) == "a (`docs/examples/a.py`)"


def test_all_documents_of_the_root_are_on_the_site_and_exist():
    named = set(re.findall(r"project/(\w+\.md)", (REPOSITORY / "mkdocs.yml").read_text("utf-8")))

    assert named == set(ROOT_DOCUMENTS)
    assert all((REPOSITORY / name).is_file() for name in ROOT_DOCUMENTS)


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    missing = [str(path.relative_to(DOCS)) for path in PAGES if str(path.relative_to(DOCS)) not in navigation]

    assert missing == []


# --- reference ----------------------------------------------------------------------------------------------------


def test_every_public_name_is_on_the_python_page():
    page = with_names((DOCS / "reference" / "python.md").read_text("utf-8"))
    shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    values = {name for name in icis_deploy.__all__ if name not in {"__version__", "errors", "results"}}

    assert values - shown == set()
    assert {name for name in dir(icis_deploy.errors) if name.endswith("Error")} - shown == set()


def test_names_of_a_module_are_given_where_they_are_defined():
    names = list(names_of("icis_deploy", "functions"))

    assert "icis_deploy.api.inject.inject" in names
    assert names == sorted(names, key=lambda name: name.rpartition(".")[2])


def commands_of(text: str) -> list[list[str]]:
    """Return the arguments of every `icis-deploy` command in the blocks of a document."""
    found = []
    for block in re.findall(r"^```(?:console|shell|yaml)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:\$ |- run: )?icis-deploy (.+)", line.strip())
            if match:
                words = shlex.split(match[1], comments=True)
                ends = [index for index, word in enumerate(words) if word in {"|", "||", "&&"} or word.startswith("2>")]
                found.append(words[: min(ends, default=None)])
    return found


def faults_of_command(arguments: list[str]) -> list[str]:
    """Return what the command line does not know of a command: its name, or an option."""
    command = cli.commands.get(arguments[0])
    if command is None:
        return [] if arguments[0].startswith("-") else [f"there is no command {arguments[0]}"]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = [word.partition("=")[0] for word in arguments[1:] if re.match(r"--\w", word)]
    return [f"{arguments[0]} has no {option}" for option in given if option not in known | {"--help"}]


@pytest.mark.parametrize(
    "path", [REPOSITORY / "README.md", REPOSITORY / "RELEASE.md", *PAGES], ids=lambda path: path.name
)
def test_commands_of_documents_have_the_options_that_stand_there(path):
    assert [fault for arguments in commands_of(path.read_text("utf-8")) for fault in faults_of_command(arguments)] == []


def test_commands_are_found_and_faults_in_them_too():
    text = "```\nicis-deploy inject model.onnx \\\n    --nothing 1 # --never\n$ icis-deploy injekt x\n```\n"

    assert [faults_of_command(arguments) for arguments in commands_of(text)] == [
        ["inject has no --nothing"],
        ["there is no command injekt"],
    ]
    assert sum(len(commands_of(path.read_text("utf-8"))) for path in PAGES) > 60


def test_every_command_is_listed_by_its_task():
    listed = (DOCS / "reference" / "commands.md").read_text("utf-8")

    assert [name for name in cli.commands if not re.search(rf"^icis-deploy {name}\s", listed, re.MULTILINE)] == []


# --- formats ------------------------------------------------------------------------------------------------------


def fields_of(title: str) -> set[str]:
    """Return the fields that the table of the formats under a heading names."""
    table = FORMATS.partition(f"| {title} | value |\n|---|---|\n")[2].partition("\n\n")[0]
    return {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}


def metadata_of(data: bytes, key: str) -> dict[str, object]:
    """Return an entry of a safetensors file's metadata, read as the document says."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][key])


def test_the_formats_name_the_fields_of_a_class_update(tmp_path):
    save_update(make_update("okapi"), tmp_path / "new.icis")
    sign(tmp_path / "new.icis", keygen(tmp_path / "key").private_path)
    envelope = json.loads((tmp_path / "new.icis").read_bytes())
    payload = base64.b64decode(envelope["payload"])

    assert set(envelope) == {"payload", "payloadType", "signatures"}
    assert f"`{envelope['payloadType']}`" in FORMATS
    written = set(metadata_of(payload, "class_update"))
    assert written <= fields_of("field of `class_update`")
    assert fields_of("field of `class_update`") - written <= {"arbiter_sha256", "follows", "complete", "targets"}


def test_the_formats_name_the_fields_of_a_bundle(tmp_path):
    from icis_deploy.runtime.device import Device

    bundle = write_bundle(tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    device = Device.open(bundle)
    device.apply(make_update("okapi"), allow_unsigned=True)
    (slots,) = (bundle / "state").glob("slots-*.safetensors")
    raw = (bundle / "state" / "journal.json").read_bytes()

    assert set(manifest) <= fields_of("field of `manifest.json`")
    assert set(metadata_of(slots.read_bytes(), "slot_table")) == fields_of("field of `slot_table`")
    assert set(json.loads(raw)["journal"]) == fields_of("field of the journal")
    body = raw[len(b'{"journal":') : raw.rindex(b',"sha256":')]
    assert hashlib.sha256(body).hexdigest() == json.loads(raw)["sha256"]


def test_the_formats_have_the_layout_of_an_outcome():
    from icis_deploy.metrics.outcomes import OUTCOME

    table = FORMATS.partition("| field of an outcome | type | offset |\n|---|---|---|\n")[2].partition("\n\n")[0]
    offsets = {}
    for row in table.splitlines():
        names, _, places = (cell.strip() for cell in row.strip("| ").split(" | "))
        offsets |= zip(re.findall(r"`(\w+)`", names), map(int, places.split(", ")), strict=True)

    assert offsets == {name: field[1] for name, field in (OUTCOME.fields or {}).items()}
    assert f"A row of {OUTCOME.itemsize} bytes" in FORMATS


# --- release ------------------------------------------------------------------------------------------------------


def test_the_readme_of_an_index_leads_nowhere_that_is_not_there():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is of Python 3.11")
    import tomllib

    hook = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    text = (REPOSITORY / "README.md").read_text("utf-8")
    for step in hook["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(step["pattern"], step["replacement"], text)

    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_and_templates_are_yaml_and_name_scripts_that_exist(path):
    import yaml

    text = path.read_text("utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    scripts = re.findall(r"run: (\./\S+)", text)
    assert all((REPOSITORY / script).is_file() for script in scripts)
    assert bool(scripts) == (path.parent.name == "workflows")
