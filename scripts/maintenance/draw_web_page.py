"""Take pictures of the page that `--target web` writes, before and after a class update, for docs/web.md.

    icis-deploy demo --out demo
    python scripts/maintenance/draw_web_page.py demo node_modules docs/images

The folder's model is exported with a page, its class update `new.icis` signed, and a picture of a new class given to
the page in headless Chromium (Debian's, with its driver) before and after the update was dropped on it. What the
pictures say is what the page answered. Any folder with `model.onnx` or `model.pt2`, `classes.txt`, `preprocess.json`
and an update will do; `--picture` names a photo, which otherwise is the first of a class that `unseen.txt` names.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

import icis_deploy
from icis_deploy.common.files import write_file

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1000,760")
SECONDS, NUM_COLOURS = 180, 96
DROP = """
const transfer = new DataTransfer();
transfer.items.add(new File([Uint8Array.from(arguments[0])], arguments[1]));
const drop = new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true});
document.getElementById('drop').dispatchEvent(drop);
"""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def export_page(demo: Path, node_modules: Path, folder: Path) -> tuple[Path, Path]:
    """Return a bundle with a page, and the demo's class update, signed by a key that it trusts."""
    keys = icis_deploy.keygen(folder / "KEY")
    icis_deploy.export(
        next(path for path in (demo / "model.onnx", demo / "model.pt2") if path.is_file()),
        classes=demo / "classes.txt",
        out=folder / "bundle",
        options=icis_deploy.ExportOptions(
            head="updatable",
            capacity=32,
            preprocess=demo / "preprocess.json",
            trust=(keys.public_path,),
            targets=("web",),
            target_options=icis_deploy.TargetOptions(onnxruntime_web=node_modules),
        ),
    )
    icis_deploy.sign(demo / "new.icis", key=keys.private_path, version=1, out=folder / "new.icis")
    return folder / "bundle", folder / "new.icis"


def picture_of_a_new_class(demo: Path) -> Path:
    """Return the first picture whose class the model does not know."""
    unseen = set((demo / "unseen.txt").read_text("utf-8").splitlines())
    with (demo / "images.csv").open(encoding="utf-8", newline="") as file:
        return next(demo / line["file"] for line in csv.DictReader(file) if line["class"] in unseen)


def text_of(browser: Any, element: str) -> str:
    """Return what an element of the page says."""
    return str(browser.execute_script("return document.getElementById(arguments[0]).innerText", element))


def wait_for(browser: Any, element: str, part: str) -> None:
    """Wait until an element of the page says something."""
    WebDriverWait(browser, SECONDS).until(lambda driver: part in text_of(driver, element))


def take_picture(browser: Any, path: Path) -> None:
    """Write what the browser shows, in few colours, so that it is small."""
    shown = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    written = io.BytesIO()
    shown.quantize(NUM_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        written, "PNG", optimize=True
    )
    write_file(path, written.getvalue())


def draw(demo: Path, node_modules: Path, out: Path, picture: Path) -> None:
    """Write `page-before.png` and `page-after.png`."""
    with tempfile.TemporaryDirectory() as name:
        bundle, update = export_page(demo, node_modules, Path(name))
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in FLAGS:
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(bundle)))
        Thread(target=server.serve_forever, daemon=True).start()
        browser = webdriver.Chrome(options=options, service=service)
        try:
            browser.get(f"http://localhost:{server.server_address[1]}/web/")
            wait_for(browser, "state", "version 0")
            browser.find_element("id", "file").send_keys(str(picture.resolve()))
            wait_for(browser, "answers", "%")
            take_picture(browser, out / "page-before.png")
            before = text_of(browser, "answers")
            browser.execute_script(DROP, list(update.read_bytes()), update.name)
            wait_for(browser, "message", "in effect")
            WebDriverWait(browser, SECONDS).until(lambda driver: text_of(driver, "answers") not in {"", before})
            take_picture(browser, out / "page-after.png")
        finally:
            browser.quit()
            server.shutdown()
            server.server_close()


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("demo", type=Path, help="the folder that `icis-deploy demo` made")
    parser.add_argument("node_modules", type=Path, help="a folder with onnxruntime-web")
    parser.add_argument("out", type=Path)
    parser.add_argument("--picture", type=Path, help="a photo of a class that the update adds")
    arguments = parser.parse_args()
    picture = arguments.picture or picture_of_a_new_class(arguments.demo)
    draw(arguments.demo, arguments.node_modules, arguments.out, picture)


if __name__ == "__main__":
    main()
