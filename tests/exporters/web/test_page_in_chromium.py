"""The page that an export writes, in Chromium: it answers, takes a signed update, refuses others and remembers.

Chromium and its driver are Debian's (`apt install chromium chromium-driver`); without them these tests skip. With
`ICIS_DEPLOY_SCREENSHOTS=FOLDER` they leave pictures of the page there.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

import icis_deploy
from icis_deploy.api.models import head_of, inspect
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.updates.signing import KeyPair, keygen
from testing.bundles import write_signed
from testing.tiny_project import FEATURE_DIM, TinyProject

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--use-fake-ui-for-media-stream")
SECONDS = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs chromium and chromium-driver"),
    # Selenium leaves its pipes to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle with a page, and files for it."""

    bundle: Path
    update: Path
    forged: Path
    crowded: Path
    image: Path


@pytest.fixture(scope="module")
def exported(tiny_project: TinyProject, library: Path, keys: KeyPair, tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    opened = inspect(tiny_project.model, classes=tiny_project.classes)
    icis_deploy.export(
        opened,
        out=folder / "bundle",
        options=icis_deploy.ExportOptions(
            head="updatable",
            capacity=8,
            preprocess=tiny_project.preprocess,
            trust=(keys.public_path,),
            targets=("web",),
            target_options=icis_deploy.TargetOptions(onnxruntime_web=library),
            max_changed_answers=None,
        ),
    )
    head = head_of(opened)

    def update(name: str, num_classes: int, private: Path, version: int) -> Path:
        rows = np.random.default_rng(2).normal(size=(num_classes, FEATURE_DIM + 1))
        rows[0] = [*10 * np.abs(rows[0, :-1]), 100.0]  # the answer on every image
        names = tuple(f"new class {index}" for index in range(num_classes))
        content = ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=names, version=version)
        return write_signed(folder / name, content, private)

    pixels = np.random.default_rng(1).integers(0, 256, size=(24, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return Exported(
        bundle=folder / "bundle",
        update=update("new.icis", 3, keys.private_path, 5),
        forged=update("forged.icis", 3, keygen(folder / "stranger.key").private_path, 9),
        crowded=update("crowded.icis", 9, keys.private_path, 8),
        image=folder / "image.png",
    )


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(exported: Exported):
    handler = partial(QuietHandler, directory=str(exported.bundle))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/web/index.html"
        server.shutdown()


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, "--window-size=1000,720", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_script_timeout(SECONDS)
    yield driver
    driver.quit()


class Page:
    """What a person does with the page, and sees."""

    def __init__(self, browser, address: str) -> None:
        self._browser = browser
        browser.get(address)

    def text(self, element: str) -> str:
        return self._browser.execute_script("return document.getElementById(arguments[0]).innerText", element)

    def wait(self, element: str, part: str) -> str:
        from selenium.webdriver.support.wait import WebDriverWait

        def has_it(_driver) -> bool:
            return part in self.text(element)

        try:
            WebDriverWait(self._browser, SECONDS).until(has_it)
        except Exception as error:
            shown = {name: self.text(name) for name in ("state", "message", "answers")}
            raise AssertionError(f"{element} never says {part!r}: {shown}") from error
        return self.text(element)

    def choose(self, element: str, path: Path) -> None:
        self._browser.find_element("id", element).send_keys(str(path))

    def drop(self, path: Path) -> None:
        """Drop a file on the page, as a person would drag it there."""
        self._browser.execute_script(
            """
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(arguments[0])], arguments[1]));
            const drop = new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true});
            document.getElementById('drop').dispatchEvent(drop);
            """,
            list(path.read_bytes()),
            path.name,
        )

    def click(self, element: str) -> None:
        self._browser.find_element("id", element).click()

    def answers(self) -> list[tuple[str, float]]:
        lines = self.text("answers").splitlines()
        return [(name, float(share.removesuffix(" %"))) for name, share in zip(lines[::2], lines[1::2], strict=True)]

    def picture(self, name: str) -> None:
        if folder := os.environ.get("ICIS_DEPLOY_SCREENSHOTS"):
            self._browser.save_screenshot(str(Path(folder) / name))


def python_answers(device: icis_deploy.Device, image: Path) -> list[tuple[str, float]]:
    (prediction,) = device.predict([image])
    return [
        (name, round(100 * share, 1))
        for name, share in zip(prediction.class_names, prediction.probabilities, strict=True)
    ]


def test_the_page_answers_takes_an_update_refuses_others_and_remembers(browser, address, exported):
    device = icis_deploy.Device.open(exported.bundle)
    page = Page(browser, address)
    page.wait("state", "40 classes, version 0")
    page.choose("file", exported.image)
    page.wait("answers", "%")
    before = page.answers()
    assert before == python_answers(device, exported.image)
    page.picture("before.png")

    page.drop(exported.forged)
    assert "is signed by" in page.wait("message", "trusted are")
    page.drop(exported.crowded)
    assert "adds 9 classes; 8 slots, 0 used" in page.wait("message", "9 classes")
    assert page.text("state") == "40 classes, version 0"

    page.drop(exported.update)
    page.wait("message", "Version 5 is in effect: 3 added.")
    page.wait("answers", "new class 0")
    device.apply(exported.update)
    assert page.answers() == python_answers(device, exported.image)
    page.picture("after.png")

    browser.refresh()
    page.wait("state", "43 classes, version 5")  # kept in IndexedDB
    page.click("rollback")
    page.wait("state", "40 classes, version 0")
    page.choose("file", exported.image)
    page.wait("answers", "%")
    assert page.answers() == before
    page.choose("update", exported.update)
    assert "has held version 5, so it takes 6 or greater" in page.wait("message", "version 5, so")
    assert "rollback, version 0" in page.text("history")


def test_pages_share_one_state_and_none_is_lost(browser, address, exported):
    Page(browser, address).wait("state", "40 classes")
    found = browser.execute_async_script(
        """
        const [data, done] = arguments;
        (async () => {
          const { openBundle } = await import('icis-deploy');
          const devices = await Promise.all([0, 1, 2].map(() => openBundle(new URL('..', location.href))));
          const bytes = Uint8Array.from(data);
          const results = await Promise.all(devices.map((device) => device.apply(bytes)));
          for (const device of devices) await device.refresh();
          const lines = await devices[0].history();
          const changed = results.map(({changed}) => changed).sort();
          return [changed, devices.map((device) => device.classes().length), lines.length];
        })().then(done, (error) => done(String(error.stack)));
        """,
        list(exported.update.read_bytes()),
    )
    assert found == [[False, False, True], [43, 43, 43], 1]


def test_a_browser_without_ed25519_answers_and_says_why_it_takes_no_update(browser, address, exported):
    browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": """
            const importKey = SubtleCrypto.prototype.importKey;
            SubtleCrypto.prototype.importKey = async function (...given) {
              if (given[2].name === 'Ed25519') throw new DOMException('Unrecognized name', 'NotSupportedError');
              return importKey.apply(this, given);
            };
            """
        },
    )
    page = Page(browser, address)
    page.wait("state", "40 classes, version 0")
    page.choose("file", exported.image)
    page.wait("answers", "%")
    page.drop(exported.update)
    page.wait("message", "This browser cannot check Ed25519 signatures")
    assert page.text("state") == "40 classes, version 0"


def test_the_browser_turns_no_jpeg_that_the_model_would_not_turn(browser, address, exported, tmp_path):
    picture = Image.new("RGB", (32, 16), "white")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    Page(browser, address).wait("state", "40 classes")

    found = browser.execute_async_script(
        """
        const [data, done] = arguments;
        (async () => {
          const { pixelsOf } = await import(new URL('icis-deploy/src/images.js', location.href));
          const blob = new Blob([Uint8Array.from(data)], { type: 'image/jpeg' });
          const sizes = [];
          for (const exifOrientation of [false, true]) {
            const { width, height } = await pixelsOf(blob, { exifOrientation });
            sizes.push([width, height]);
          }
          return sizes;
        })().then(done, (error) => done(String(error.stack)));
        """,
        list((tmp_path / "turned.jpg").read_bytes()),
    )
    assert found == [[32, 16], [16, 32]]


def test_a_page_without_onnxruntime_web_says_what_to_do(browser, exported, tmp_path):
    shutil.copytree(exported.bundle, tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "web" / "ort")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "bundle"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = Page(browser, f"http://localhost:{server.server_address[1]}/web/")
        page.wait("message", "onnxruntime-web is not next to this page. Export the bundle with")
        server.shutdown()


def test_photos_get_the_answers_that_python_gives(browser, imagenet_mobilenet, library, tmp_path):
    icis_deploy.export(
        imagenet_mobilenet / "model.onnx",
        classes=imagenet_mobilenet / "classes.txt",
        out=tmp_path / "bundle",
        options=icis_deploy.ExportOptions(
            head="updatable",
            capacity=16,
            preprocess=imagenet_mobilenet / "preprocess.json",
            targets=("web",),
            target_options=icis_deploy.TargetOptions(onnxruntime_web=library),
            max_changed_answers=None,
        ),
    )
    photos = sorted((imagenet_mobilenet / "images").glob("*.jpg"))[::40]
    expected = icis_deploy.Device.open(tmp_path / "bundle").predict(photos, top=1)
    for photo in photos:
        shutil.copy(photo, tmp_path / "bundle")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "bundle"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        Page(browser, f"http://localhost:{server.server_address[1]}/web/").wait("state", "800 classes")
        found = browser.execute_async_script(
            """
            const [names, done] = arguments;
            (async () => {
              const { openBundle } = await import('icis-deploy');
              const device = await openBundle(new URL('..', location.href));
              const answers = [];
              for (const name of names) {
                const blob = await (await fetch(new URL(`../${name}`, location.href))).blob();
                answers.push((await device.predict(blob, { top: 1 })).classes[0]);
              }
              return answers;
            })().then(done, (error) => done(String(error.stack)));
            """,
            [photo.name for photo in photos],
        )
        server.shutdown()
    assert len(found) == len(expected) > 10
    differences = [
        abs(answer["probability"] - prediction.probabilities[0])
        for answer, prediction in zip(found, expected, strict=True)
    ]
    # Only the decoders differ, by a level or two of some pixels.
    assert [answer["name"] for answer in found] == [prediction.class_names[0] for prediction in expected]
    assert max(differences) < 0.02, differences
