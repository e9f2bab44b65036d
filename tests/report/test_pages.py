"""Pages of reports: HTML and Markdown, whole, escaped and without anything from elsewhere."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_unlearn.core.evaluation import Evaluation, Example
from lightning_unlearn.report.figures import svg
from lightning_unlearn.report.html import render_html
from lightning_unlearn.report.images import png
from lightning_unlearn.report.model import Headline, UnlearningReport
from lightning_unlearn.report.render_markdown import render_markdown
from lightning_unlearn.report.sections import Curve, Heatmap, Measurement, Section, Series, Table, Text
from lightning_unlearn.report.write import write_report
from tests.report.reports import full_report

HOSTILE = "<script>alert(1)</script> | `x` *y* [z](javascript:1)\n# n"


class Outline(HTMLParser):
    """Headings and pictures of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.unnamed: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if re.fullmatch(r"h\d", tag):
            self.levels.append(int(tag[1]))
        if (tag == "img" and not names.get("alt")) or (
            names.get("role") in ("img", "region") and not names.get("aria-label")
        ):
            self.unnamed.append(tag)


def hostile() -> UnlearningReport:
    rows = Example("forget", HOSTILE, HOSTILE, HOSTILE, True)
    from lightning_unlearn.report.runs import run_report

    seen = Evaluation(0, {f"{HOSTILE}_nll": 1.0}, [rows], HOSTILE)
    whole = run_report(
        HOSTILE, HOSTILE, seen, seen, curves=[seen], settings={HOSTILE: HOSTILE}, terms={HOSTILE: HOSTILE}
    )
    table = Table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE)
    texts = Section("a", HOSTILE, [table, Text(HOSTILE, HOSTILE, [HOSTILE])], HOSTILE)
    lead = Headline(HOSTILE, "bad", HOSTILE, [HOSTILE], [HOSTILE])
    return replace(whole, headline=lead, sections=[*whole.sections, texts], limits=[HOSTILE])


def test_text_of_the_model_is_escaped_in_html() -> None:
    page = render_html(hostile())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 25


def test_text_of_the_model_is_escaped_in_markdown() -> None:
    text = render_markdown(hostile())
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert not re.search(r"(?<!\\)`|^# n", text, flags=re.MULTILINE)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    wide = {len(re.findall(r"(?<!\\)\|", line)) for line in tables if "alert" in line}
    assert wide <= {2, 3, 5, 6, 7}  # the bars of the text are no bars of the table


@pytest.mark.filterwarnings("error")
def test_the_page_is_self_contained() -> None:
    page = render_html(full_report())
    assert page.count("<svg") == 2
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|<link|<script|url\((?!#)|\ssrc=\"(?!data:)", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


def test_headings_are_in_order_and_pictures_have_names() -> None:
    outline = Outline(render_html(full_report()))
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(outline.levels, outline.levels[1:], strict=False))
    assert outline.unnamed == []


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_of_small_text(scheme: str) -> None:
    page = render_html(full_report())
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)[:2]
    found = re.findall(r"--([\w-]+): (#\w+)", light if scheme == "light" else dark)
    colours = {name: luminance(value) for name, value in found}
    pairs = [("ink", "page"), ("soft", "page"), ("soft", "raised"), ("ink", "raised")]
    pairs += [(tone, f"{tone}-back") for tone in ("good", "bad", "warning", "neutral")]
    pairs += [("ink", f"{tone}-back") for tone in ("good", "bad", "warning", "neutral")]
    pairs += [(f"set-{i}", "page") for i in range(8)]
    for one, other in pairs:
        high, low = sorted((colours[one], colours[other]), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (one, other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_on_the_strongest_colour_of_a_heat_map_are_readable(scheme: str) -> None:
    roots = re.findall(r":root \{(.*?)\}", render_html(full_report()), flags=re.DOTALL)
    root = roots[0] if scheme == "light" else roots[1]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", root))
    (heat,) = re.findall(r"--heat: (\d+) (\d+) (\d+); --heat-top: ([.\d]+)", root)
    page = [int(colours["page"].ljust(7, colours["page"][-1])[i : i + 2], 16) for i in (1, 3, 5)]
    mixed = [round(float(heat[3]) * int(c) + (1 - float(heat[3])) * p) for c, p in zip(heat[:3], page, strict=True)]
    back, ink = luminance("#" + "".join(f"{c:02x}" for c in mixed)), luminance(colours["ink"])
    assert (max(back, ink) + 0.05) / (min(back, ink) + 0.05) >= 4.5
    assert (max(back, luminance(colours["page"])) + 0.05) / (min(back, luminance(colours["page"])) + 0.05) >= 2.5


def test_a_heat_map_is_a_table_whose_cells_have_headings_numbers_and_colours() -> None:
    page = render_html(full_report())
    table = page[page.index('class="heat"') :]
    table = table[: table.index("</figure>")]
    assert re.findall(r'scope="colgroup" colspan="(\d)" class="group"><span>(\w+)', table) == [
        ("2", "styles"),
        ("1", "objects"),
    ]
    assert len(re.findall(r'<th scope="row"', table)) == 2
    body = table[table.index("<tbody>") :]
    shown = re.findall(r'<td( class="marked")?(?: style="--v:([\d.]+)")?>([^<]*)', body)
    assert shown[:3] == [("", "1", "100"), ("", "0.975", "98"), ("", "0.5", "50")]
    assert shown[3:] == [(' class="marked"', "0", "0"), ("", "", "–"), ("", "0.25", "25")]
    assert '<span class="hidden"> erased concept</span>' in body


def test_markdown_of_heat_maps_and_bars() -> None:
    text = render_markdown(full_report())
    assert "| erased ↓, asked for →, in % | mosaic | ember | disk |" in text
    assert "| mosaic | 0\\* | – | 25 |\n\n\\* erased concept\n\nEmber was not drawn." in text
    assert "| ESD | 98.0 % (90.0 % to 100.0 %) | 81.0 % | 80.0 % |\n| UCE | – | 60.0 % | 50.0 % |" in text
    wide = Heatmap("Wide", "r", "c", ["a"], [f"c{i}" for i in range(30)], [[0.5] * 30])
    assert "1 rows of 30 values; the HTML page" in render_markdown(
        UnlearningReport(title="", sections=[Section("a", "", [wide])])
    )


def test_the_verdict_is_a_word_and_a_colour_before_the_evidence_and_the_limits() -> None:
    page = render_html(full_report())
    places = [
        page.index(text)
        for text in (
            "Two authors removed",
            "suppressed but recoverable",
            "Do not file",
            "At a glance",
            "Questions as they",
            "Absence of evidence",
            "Provenance",
        )
    ]
    assert places[1:] == sorted(places[1:])
    assert 'class="verdict warning"' in page
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "extraction strength strict ✓ pass 0.742 0.071 95 %: 0.052 to 0.094 0.066 0 40 lower" in words
    assert "activation noise ○ not run –" in words
    assert "needs --depth full" in words
    assert "95 %: at least 0.61" in words
    assert "Effectiveness 1 fail 1 pass 1 not run" in words


def test_markdown_says_the_same() -> None:
    text = render_markdown(full_report())
    assert text.startswith("# Two authors removed from SmolLM2\n\n**Verdict: suppressed but recoverable.** The model")
    assert (
        "| extraction strength (strict) | pass | 0.742 | 0.071 (95 %: 0.052 to 0.094) | 0.066 | 0 | 40 | lower |"
        in text
    )
    assert "| activation noise | not run | – | – |" in text
    assert "| 10 | 50.0 % | – | 90.0 % |" in text
    assert "2 images; the HTML page shows them." in text
    assert "- Absence of evidence under the listed attacks is no proof of removal." in text
    assert text.endswith("<!-- lightning-unlearn/report/1; rows to forget: shown -->\n")


def test_without_matplotlib_the_page_has_the_numbers_of_the_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_unlearn.report.html.find_spec", lambda name: None)
    page = render_html(full_report())
    assert "<svg" not in page
    assert "<details open><summary>Numbers" in page
    assert "50.0 %" in page


def test_without_jinja2_the_error_says_what_to_install_and_the_other_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    report = full_report()
    with pytest.raises(ImportError, match=re.escape('pip install "lightning-unlearn[report]"')):
        write_report(report, tmp_path, show_text=True)
    assert UnlearningReport.read(tmp_path) == report
    assert (tmp_path / "report.md").exists()


def test_a_failed_write_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(full_report(), tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(replace(full_report(), title="other"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_an_image_is_encoded_bit_for_bit() -> None:
    image = torch.rand(3, 8, 8)
    decoded = Image.open(io.BytesIO(base64.b64decode(png(image).partition(",")[2]))).convert("RGB")
    expected = (image.permute(1, 2, 0) * 255).round().flatten().to(torch.int64)
    assert torch.equal(torch.tensor(list(decoded.tobytes())), expected)


@pytest.mark.filterwarnings("error")
def test_a_scatter_plot_has_its_front_and_a_name_at_each_point() -> None:
    names = [f"method {i}" for i in range(12)]
    points = [Series(name, [i / 12], [(i % 5) / 5], role="unlearned") for i, name in enumerate(names)]
    front = Series("Pareto front", [0.1, 0.9], [0.8, 0.2], role="front")
    curve = Curve("Trade", "forget", "utility", [*points, front], "scatter")
    page = render_html(UnlearningReport(title="", sections=[Section("a", "A", [curve, Measurement("m", 1.0)])]))
    drawing = page[page.index("<svg") : page.index("</svg>")]
    assert all(f">{name}<" in drawing for name in names)
    assert "Pareto front" not in drawing


def test_ticks_of_a_narrow_scatter_plot_are_told_apart() -> None:
    points = [Series(name, [x], [x], role="unlearned") for name, x in (("a", 0.975), ("b", 1.0))]
    drawing = svg(Curve("Trade", "UA", "IRA", points, "scatter", unit="share"), "x")
    ticks = re.findall(r">([\d.]+%)<", drawing)
    assert max(map(ticks.count, ticks)) == 2  # one of each axis
    assert "98.5%" in ticks
