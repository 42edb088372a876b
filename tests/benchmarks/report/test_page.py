"""The page and the Markdown text: complete, self-contained, and harmless whatever a result calls its targets."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.report.canvas import SERIES
from benchmarks.report.page import FOLDER, html_page, markdown_text, report_of
from benchmarks.report.sections import charts_of
from benchmarks.report.tables import extra_tables
from icis_deploy.errors import MissingDependencyError

HOSTILE = "<script>alert(1)</script> | $x_1$ & \"'"


@pytest.fixture
def page(page_of_two):
    return page_of_two


def svgs_of(page):
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def test_there_is_a_row_for_each_target_batch_and_device(page):
    assert len(re.findall(r"<tr role=\"row\" data-batch=", page)) == 2 * 3 * 2


def test_the_headline_is_of_the_last_bench_with_most_targets_and_names_it(full):
    later = replace(full, created="2030-01-02T03:04:05Z")
    fewer = replace(
        later,
        created="2031-01-02T03:04:05Z",
        targets=full.targets[:1],
        runs=tuple(
            replace(run, measurement=replace(run.measurement, latencies=run.measurement.latencies[:1], comparisons=()))
            for run in full.runs
        ),
    )
    (alone,) = report_of([full]).headlines
    peers = replace(full, created="2032-01-02T03:04:05Z", command="bench-peers")
    (of_four,) = report_of([full, later, fewer, peers]).headlines

    assert alone.startswith("The fastest is ")
    assert of_four.startswith("bench of 2030-01-02 03:04 UTC: The fastest is ")


def test_the_head_of_the_page_says_which_machine_was_not_quiet(measured):
    assert measured.runs[0].measurement.steadiness.interference
    quiet = replace(
        measured,
        created="2030-01-02T03:04:05Z",
        environment=replace(
            measured.environment, sections={**measured.environment.sections, "memory": {"total_bytes": 2**30}}
        ),
        runs=tuple(
            replace(
                run,
                measurement=replace(run.measurement, steadiness=replace(run.measurement.steadiness, interference=())),
            )
            for run in measured.runs
        ),
    )
    (sign, *_) = measured.runs[0].measurement.steadiness.interference
    alone, both = report_of([measured]), report_of([quiet, measured])

    assert alone.caution.startswith(f"Not a quiet machine: bench, batch 1: {sign}")
    assert html_page(alone).index("Not a quiet machine") < html_page(alone).index("The fastest is")
    assert markdown_text(alone).splitlines()[2].startswith("> Not a quiet machine")
    assert f"Not a quiet machine: {both.devices[1].label}, bench" in both.caution
    assert both.caution.count("batch 1:") == 1
    assert report_of([quiet]).caution == ""
    assert "Not a quiet machine" not in html_page(report_of([quiet]))


def test_devices_stand_side_by_side(full, other_device):
    slower = replace(
        other_device,
        runs=tuple(
            replace(
                run,
                measurement=replace(
                    run.measurement,
                    latencies=tuple(
                        replace(
                            each,
                            median_ms=replace(
                                each.median_ms,
                                value=3 * each.median_ms.value,
                                low=3 * each.median_ms.value,
                                high=3 * each.median_ms.value,
                            ),
                        )
                        for each in run.measurement.latencies
                    ),
                ),
            )
            for run in other_device.runs
        ),
    )
    report = report_of([full, slower])
    (table,) = [each for each in extra_tables(report.devices, report.entries) if each.title == "Devices side by side"]
    first, second = (device.label for device in report.devices)

    assert table.titles == ("Target", "Batch", first, second)
    assert [row[:2] for row in table.rows] == [
        (name, batch) for name in ("original", "fused", "updatable") for batch in ("1", "8")
    ]
    assert all(row[3].endswith("(× 3.00)") for row in table.rows)
    words = next(each.words for each in charts_of(report.devices, report.entries) if each.name == "devices")
    assert f"With fused {first} is the fastest" in words
    assert f"{second} takes 3.0 times as long" in words
    assert not [
        each for each in charts_of(report_of([full]).devices, report_of([full]).entries) if each.name == "devices"
    ]


def test_a_page_without_labelled_images_says_so_and_has_no_columns_of_accuracy(measured):
    bare = replace(measured, targets=tuple(replace(each, accuracy=None) for each in measured.targets))
    page = html_page(report_of([bare]))

    assert "All, accuracy: no labelled images were given (--images)" in page
    assert 'data-title="H %"' not in page


def test_every_chart_is_drawn_for_each_device_and_said_in_words(page):
    titles = re.findall(r"<figure.*?<h3[^>]*>(.*?)</h3>", page, flags=re.DOTALL)
    words = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", page, flags=re.DOTALL)

    assert {title.split(",")[0] for title in titles} == {
        "Latency of a query",
        "Devices side by side",
        "Latency against accuracy",
        "What the old classes keep",
        "Accuracy on unseen and seen classes",
        "Throughput against batch size",
        "Latency of the head against its number of classes",
        "Time until a device answers with 50 new classes",
        "Time to add 50 classes",
    }
    assert len(titles) == len(words) == len(svgs_of(page)) == 17
    assert all(len(each.split()) > 5 for each in words)


def test_nothing_is_asked_of_a_network(page):
    namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)

    assert "default-src 'none'" in page
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r"^\s*//.*$", "", namespaces, flags=re.MULTILINE))
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert not re.findall(r"@import|<link(?! rel=\"icon\" href=\"data:,\")|<img|\bsrc=", page)


def test_every_id_is_there_once_and_every_reference_has_its_id(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    labels = " ".join(re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', page)).split()

    assert len(ids) == len(set(ids))
    assert references
    assert set(references) | set(labels) <= set(ids)


def test_charts_are_well_formed_and_take_their_colors_and_font_from_the_page(page):
    for svg in svgs_of(page):
        ElementTree.fromstring(svg)
        assert "<text" in svg
        assert "DejaVu" not in svg
        assert not re.findall(r"#[0-9a-f]{6}\b", svg), "a colour that dark mode cannot change"


def test_equal_results_give_equal_pages(measured):
    assert html_page(report_of([measured])) == html_page(report_of([measured]))


def test_names_are_text_and_never_markup_or_formulas(measured):
    targets = (replace(measured.targets[0], name=HOSTILE, missing={HOSTILE: HOSTILE}),)
    runs = tuple(
        replace(
            run,
            measurement=replace(
                run.measurement,
                latencies=(replace(run.measurement.latencies[0], label=HOSTILE),),
                comparisons=(),
            ),
        )
        for run in measured.runs
    )
    report = report_of([replace(measured, targets=targets, runs=runs)])
    page, text = html_page(report), markdown_text(report)

    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert any("&lt;script&gt;alert(1)&lt;/script&gt; | $x_1$" in svg for svg in svgs_of(page))
    assert r"\<script\>alert(1)\</script\> \| $x\_1$" in text


def test_what_was_not_measured_is_named_with_its_reason(page):
    assert "fused, power: no sensor" in page


def test_markdown_has_the_table_the_words_and_the_machine(full):
    text = markdown_text(report_of([full]))
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]

    assert len(tables[0]) == 2 + 3 * 2
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    parity = tables[1 + bool(full.scenarios)]
    assert parity[0].startswith("| Target | Against | Inputs |")
    assert len(parity) == 2 + sum(len(target.parity) for target in full.targets)
    assert "**Accuracy on unseen and seen classes.** updatable has the highest H, 53.3 %" in text
    assert full.environment.fingerprint in text


def test_a_column_without_a_value_is_left_out(measured, full, other_device):
    def titles(*results):
        return [column.title for column in report_of(results).cells[0]]

    bare = replace(measured, targets=tuple(replace(each, accuracy=None) for each in measured.targets))
    assert {"T", "U", "S", "H", "Device"}.isdisjoint(titles(bare))
    assert {"T", "U", "S", "H"} <= set(titles(full))
    assert "Device" in titles(full, other_device)


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_extra(full, name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)

    with pytest.raises(MissingDependencyError, match=r"pip install 'icis-deploy\[bench\]'"):
        html_page(report_of([full]))


# --- colours ------------------------------------------------------------------------------------------------------


def luminance(color):
    """Relative luminance of a colour (WCAG 2.2)."""
    channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def palettes():
    """The variables of the page in light and in dark mode."""
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text("utf-8"), flags=re.DOTALL)[:2]
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    assert light.keys() == dark.keys()
    return [light, dark]


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_text_and_colors_stand_out_from_their_ground(palette):
    for ground in (palette["page"], palette["surface"]):
        for text in ("ink", "muted", "good", "bad"):
            assert contrast(palette[text], ground) >= 4.5, text
        for index in range(len(SERIES)):
            assert contrast(palette[f"series-{index}"], ground) >= 3, index
