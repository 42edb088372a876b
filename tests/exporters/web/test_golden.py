"""The package's own tests in Node, and its types."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import icis_deploy
from tests.exporters.web.javascript import PACKAGE, node_modules


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("name", ["golden", "hostile"])
def test_the_package_in_node(name):
    path = Path(__file__).with_name(f"{name}.test.mjs")
    ran = subprocess.run(["node", "--test", str(path)], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout


def test_the_types_name_everything_that_the_module_exports():
    typed = (PACKAGE / "index.d.ts").read_text()
    for line in (PACKAGE / "src" / "index.js").read_text().split("export {")[1:]:
        for name in line.partition("}")[0].replace("\n", " ").split(","):
            assert not name.strip() or f" {name.strip()}" in typed, name
    package = json.loads((PACKAGE / "package.json").read_text())
    for entry in package["exports"].values():
        assert all((PACKAGE / path).is_file() for path in entry.values())
    assert "dependencies" not in package
    assert package["version"] == icis_deploy.__version__


def test_the_page_runs_no_script_but_its_own():
    page = (PACKAGE / "page" / "index.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (inline,) = re.findall(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"script-src 'self' 'wasm-unsafe-eval' 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"https?://", page)


def test_the_types_are_valid_typescript_and_a_user_of_them_compiles(tmp_path):
    compiler = node_modules() / "typescript" / "bin" / "tsc"
    if not compiler.is_file():
        pytest.skip("needs typescript next to onnxruntime-web: npm install --no-save typescript")
    shutil.copytree(PACKAGE, tmp_path / "node_modules" / "icis-deploy")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "user.ts").write_text(
        """
        import { openBundle, memoryStorage, GuardError, type Device } from 'icis-deploy';
        import { folderSource } from 'icis-deploy/node';
        const device: Device = await openBundle(folderSource('bundle'), { storage: memoryStorage(), trust: ['PEM'] });
        const pixels = { data: new Uint8ClampedArray(4), width: 1, height: 1 };
        const { classes, version } = await device.predict(pixels, { top: 2 });
        const first: { name: string; probability: number } = classes[0];
        const { entry, changed } = await device.apply(new Uint8Array(), { allowChangedAnswers: true });
        const lines: string[] = (await device.history()).map((line) => `${line.time} ${line.action} ${line.version}`);
        try { await device.rollback(); } catch (error) { if (error instanceof GuardError) console.log(error.hint); }
        console.log(first, version, entry.sequence, changed, lines, device.classes().length, await device.refresh());
        """
    )
    flags = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2023,dom"]
    command = ["node", str(compiler), *flags, "user.ts"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout
