"""Take pictures of the page of a report, in light and in dark, for docs/results/real-model.md.

    icis-deploy report docs/results/mobilenetv2-{bench,update}.json docs/results/head-scale.json --out report.html
    python scripts/maintenance/draw_report.py report.html docs/images

They show the beginning of the page as headless Chromium (Debian's, with its driver) does, 1,280 pixels wide.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from selenium import webdriver

from icis_deploy.common.files import write_file

WIDTH, HEIGHT = 1280, 1560
NAMES = {"light": "report.png", "dark": "report-dark.png"}


def main() -> None:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="The page that `icis-deploy report` wrote.")
    parser.add_argument("out", type=Path, help="A folder for the pictures.")
    arguments = parser.parse_args()
    for scheme, picture in pictures_of(arguments.page).items():
        write_file(arguments.out / NAMES[scheme], picture)


def pictures_of(page: Path) -> dict[str, bytes]:
    """Return PNG files of a page by color scheme, with 256 colors."""
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(option)
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    found = {}
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for scheme in NAMES:
            wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
            driver.get(page.resolve().as_uri())
            written = io.BytesIO()
            shown = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            shown.quantize(256).save(written, "PNG", optimize=True)
            found[scheme] = written.getvalue()
    finally:
        driver.quit()
    return found


if __name__ == "__main__":
    main()
