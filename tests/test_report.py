"""The page about a folder of shards: whole, valid, inert, redactable; in a browser without errors or overflow."""

import itertools
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import Browser, chromium
from recorded import Tables, sources_of

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.known_answer import drift, known_answer
from gazeprep.results import results_tables
from gazeprep.shards import ShardFolder
from gazeprep.summary import best_lead_s, choose_cases, histogram, round_step, summarize
from gazeprep.synthetic import read_truth

SECTIONS = ("indication", "history", "comparison", "technique", "findings", "impression", "last_paragraph")
VOID = {"img", "meta"}


class Page(HTMLParser):
    """What a page consists of: start tags with attributes in order, text, whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.said, self.open, self.unclosed = text, [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unclosed.append((tag, self.getpos()))

    def handle_data(self, data):
        self.said.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert main(["report", str(shards), f"--out={out / 'whole.html'}"]) == 0
    assert main(["report", str(shards), f"--out={out / 'redacted.html'}", "--redact", "--cases=26"]) == 0
    return {name: Page((out / f"{name}.html").read_text(encoding="utf-8")) for name in ("whole", "redacted")}


@pytest.fixture(scope="module")
def page(pages):
    return pages["whole"]


def records(shards):
    folder = ShardFolder(shards)
    return [json.loads(folder.member(key, "json")) for key in folder.index["key"]]


def test_the_page_is_well_formed(pages):
    for page in pages.values():
        assert not page.open
        assert not page.unclosed
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        named = [
            attrs[name] for _, attrs in page.tags for name in ("aria-labelledby", "aria-describedby") if name in attrs
        ]
        linked = [attrs["href"] for attrs in page.all("a")]
        assert set(named) <= set(ids)
        assert linked
        assert all(href.startswith("#") and href[1:] in ids for href in linked)


def test_the_page_needs_no_other_file_and_runs_nothing(pages):
    for page in pages.values():
        sources = [attrs[name] for _, attrs in page.tags for name in ("src", "srcset", "data") if name in attrs]
        assert sources
        assert all(source.startswith("data:image/webp;base64,") for source in sources)
        assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("object")
        assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
        assert "url(" not in page.text
        assert "@import" not in page.text
        assert "default-src 'none'" in page.all("meta")[1]["content"]
        assert "://" not in page.text


def test_it_can_be_read_aloud_and_without_a_mouse(page):
    assert page.all("html")[0]["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("main", "nav", "h1")] == [1, 1, 1]
    assert page.all("a")[0] == {"class": "skip", "href": "#content"}
    alts = [attrs["alt"] for attrs in page.all("img")]
    assert len(set(alts)) > 12
    assert all(alts)
    for attrs in page.all("svg"):
        assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-labelledby"])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in attrs for attrs in page.all("th"))


def test_counts_and_cases_are_those_of_the_folder(page, shards):
    said = " ".join(" ".join(page.said).split())
    assert "26 samples from 28 inputs; 2 rejected." in said
    assert "eye_tracking_discarded 2" in said
    keys = choose_cases(ShardFolder(shards), 12)
    assert [attrs["id"] for attrs in page.all("article")] == keys
    for key in keys:
        for sentence in ShardFolder(shards).sample(key).record["sentences"].split("\n"):
            assert sentence in said
    assert main(["report", str(shards), "--cases=-1"]) == 1


def test_equal_shards_give_equal_pages_without_paths(page, shards, tmp_path):
    main(["report", str(shards), f"--out={tmp_path / 'again.html'}"])
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page.text
    assert str(shards.parent) not in page.text
    assert not list(tmp_path.glob(".*"))


def test_it_says_how_to_get_jinja(shards, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "gazeprep.report", raising=False)
    monkeypatch.delattr("gazeprep.report", raising=False)
    assert main(["report", str(shards)]) == 1
    assert "pip install 'gazeprep-cogaze[report]'" in capsys.readouterr().err


def test_redacted_pages_hold_no_text_and_no_id(pages, shards):
    secret = set()
    for record in records(shards):
        secret |= {record[f"{what}_id"] for what in ("reading", "dicom", "study", "subject")}
        texts = (
            record[name] for name in ("indication", "history", "comparison", "technique", "findings", "impression")
        )
        secret |= {sentence.strip() for text in texts for sentence in text.split(".")}
        secret |= {*record["sentences"].split("\n"), *record["transcript"].split(".")}
        secret.add(json.loads(record["provenance"])["image_path"])
    secret = {text.lower() for text in secret if len(text) > 4}
    assert len(secret) > 100
    whole, redacted = (pages[name].text.lower() for name in ("whole", "redacted"))
    assert [text for text in secret if text in whole]
    assert not [text for text in secret if text in redacted]


def test_text_of_a_report_stays_text(config_of, tables: Tables, tmp_path, inline):
    evil = "<script>alert(1)</script>&amp;\"'><img src=x onerror=alert(2)>"
    tables.image("one")
    tables.reading("r1", "one")
    quoted = evil.replace('"', '""')
    tables.words[:] = [f'r1,"{quoted} .",0.5,1.0']
    build(config_of(tmp_path / "shards", Sources(table=tables.source())))
    assert main(["report", str(tmp_path / "shards"), f"--out={tmp_path / 'page.html'}"]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert any(evil in said for said in page.said)
    assert not page.all("script")
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))


def test_a_very_long_reading_is_cut_and_says_so(config_of, tables: Tables, tmp_path, inline):
    tables.image("one")
    tables.reading("r1", "one", [(i % 30, i % 40) for i in range(1000)])
    tables.words[:] = [f"r1,sentence {i}.,{i},{i + 0.9}" for i in range(1, 41)]
    build(config_of(tmp_path / "shards", Sources(table=tables.source())))
    assert main(["report", str(tmp_path / "shards"), f"--out={tmp_path / 'page.html'}"]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert (len(page.all("circle")), len(page.all("li")) > 16, len(page.text) < 4e5) == (400, True, True)
    assert sum("Map of sentence" in attrs["alt"] for attrs in page.all("img")) == 16
    said = " ".join(page.said)
    assert "600 later ones left out" in said
    assert "24 more sentences are not shown" in said


def test_a_folder_without_gaze_or_reports_has_a_page(config_of, tables: Tables, tmp_path, inline):
    tables.image("one")
    build(config_of(tmp_path / "shards", Sources(table=tables.source())))
    assert main(["report", str(tmp_path / "shards"), f"--out={tmp_path / 'page.html'}"]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "No sample has gaze." in page.said
    assert len(page.all("img")) == 1


def test_readers_of_one_image_are_compared(page):
    said = " ".join(" ".join(page.said).split())
    assert "Reader agreement" in said
    assert "other readers" in said
    assert "Agreement of two scanpaths compared with images shape direction length position duration" in said
    assert "in a drawn order" in said


# --- a model's results

RESULTS = {
    "zero-shot": {
        "figures": [
            {"name": "AUROC", "value": 0.75, "low": 0.5, "high": 0.875, "n": 40, "baselines": {"chance": 0.5}},
            {"name": "median rank", "value": 12.4, "low": None, "high": None, "n": 40, "baselines": {}},
        ]
    },
    "gaze": {"error": "no sample has gaze <b>"},
}


def test_a_models_figures_stand_beside_what_they_have_to_beat(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"settings": {}, "results": RESULTS}))
    scores, failed = results_tables(tmp_path / "results.json")
    assert scores.columns == ("figure", "value", "95 % interval", "chance", "n")
    assert scores.rows == [("AUROC", "0.75", "0.50 to 0.88", "0.50", 40), ("median rank", "12", "", "", 40)]
    assert failed.rows == [("no sample has gaze <b>",)]


def test_the_page_shows_a_models_results_where_they_are_named(shards, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps({"settings": {}, "results": RESULTS}))
    out = tmp_path / "page.html"
    assert main(["report", str(shards), f"--out={out}", "--cases=0", f"--results={tmp_path / 'results.json'}"]) == 0
    assert "What a model knows" in Page(out.read_text(encoding="utf-8")).said
    assert "<b>" not in out.read_text(encoding="utf-8")
    (tmp_path / "results.json").write_text("[1]")
    assert main(["report", str(shards), f"--out={out}", f"--results={tmp_path / 'results.json'}"]) == 1
    said = capsys.readouterr().err
    assert "results.json cannot be read as results" in said
    assert str(tmp_path) not in said


# --- the known answer


def figures_of(table):
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def beside_truth(shards, corpus):
    return known_answer(ShardFolder(shards), corpus.out)


def test_stored_fixations_lie_within_a_pixel_of_the_true_ones(shards, beside_truth):
    folder = ShardFolder(shards)
    for dataset, figures in figures_of(beside_truth[0]).items():
        own = folder.index[(folder.index.dataset == dataset) & folder.index.has_gaze]
        assert figures["readings"] == len(own)
        assert figures["fixations"] == own.fixations.sum()
        assert figures["not in the truth"] == 0
        assert float(figures["most off, px"]) < 1  # recordings are written in whole pixels


def test_sentences_look_at_what_they_are_about(beside_truth):
    for figures in figures_of(beside_truth[1]).values():
        own, others, counted, _ = (int(cell.rstrip("%")) for cell in list(figures.values())[1:])
        assert own > 2 * others
        assert counted > 90


def test_a_drift_put_into_a_reading_is_found(shards, corpus):
    folder, truth = ShardFolder(shards), read_truth(corpus.out)
    key = folder.index.index[folder.index.dataset == "reflacx"][0]
    sample, row = folder.sample(key), folder.index.loc[key]
    true = truth.fixations[truth.fixations.reading_id == row.reading]
    minutes = sample.gaze["start_s"] / 60
    sample.gaze["x_px"] = sample.gaze["x_px"] + 30 + 40 * minutes
    sample.gaze["y_px"] = sample.gaze["y_px"] + 30 * minutes
    sample.gaze["start_s"][3] += 0.05
    found = drift(sample, true)
    assert found.unmatched == 1
    assert found.px_per_minute == pytest.approx(50, abs=2)
    assert found.mean_px == pytest.approx(np.hypot(30 + 40 * minutes.mean(), 30 * minutes.mean()), abs=1)


def test_the_page_shows_the_known_answer_of_its_own_corpus_only(shards, corpus, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(shards), f"--out={out}", f"--truth={corpus.out}", "--cases=0"]) == 0
    assert "Against the known answer" in Page(out.read_text(encoding="utf-8")).said
    assert main(["report", str(shards), f"--out={out}", f"--truth={tmp_path}"]) == 1
    assert "give the one that gazeprep synth wrote" in capsys.readouterr().err


# --- the figures


def test_the_lead_of_gaze_is_found_in_the_recordings():
    """Four sentences, each about another place that is looked at two seconds before it is said."""
    starts = np.array([3.0, 6.0, 9.0, 12.0])
    look = np.arange(0.1, 14, 0.2)
    about = np.clip(np.searchsorted(starts - 2, look, side="right") - 1, 0, 3)
    gaze = {
        "start_s": look,
        "end_s": look + 0.1,
        "x_px": np.array([0.0, 90, 10, 80])[about],
        "y_px": np.array([0.0, 80, 70, 5])[about],
        "on_image": np.ones(len(look), dtype=bool),
        "sentence_start_s": starts,
        "sentence_end_s": starts + 3,
    }
    assert best_lead_s(gaze) == pytest.approx(2, abs=0.3)
    assert np.isnan(best_lead_s(gaze | {"sentence_start_s": starts[:1], "sentence_end_s": starts[:1]}))


def test_a_summary_counts_the_folder(shards):
    summary = summarize(ShardFolder(shards))
    rows = {row[0]: row[1:] for row in summary.tables["samples"].rows}
    assert {name: row[3] for name, row in rows.items()} == {"egd-cxr": 4, "mimic-cxr": 10, "reflacx": 12, "all": 26}
    assert all(sum(row[:3]) == row[3] for row in rows.values())
    assert all(sum(row[1:]) == 26 for row in summary.tables["labels"].rows)
    assert sum(row[1] for row in summary.tables["views"].rows) == 26
    folder = ShardFolder(shards)
    for distribution in summary.distributions:
        if distribution.title == "Fixations":
            assert distribution.pooled.sum() == folder.index["fixations"].sum()


def test_mean_maps_and_readings_that_stand_out_are_those_of_the_samples(shards):
    folder = ShardFolder(shards)
    summary = summarize(folder)
    samples = {key: folder.sample(key) for key in folder.index[folder.index.has_gaze]["key"]}
    of_egd = [sample.maps[0] for sample in samples.values() if sample.record["dataset"] == "egd-cxr"]
    assert summary.mean_maps["egd-cxr"] == pytest.approx(np.mean(of_egd, axis=0))
    assert summary.mean_maps["reflacx"].sum() == pytest.approx(1)
    off = {key: (s.gaze["end_s"] - s.gaze["start_s"])[~s.gaze["on_image"]].sum() for key, s in samples.items()}
    named = [row[0] for row in summary.tables["unusual"].rows if row[1] == "looking time off the image"]
    assert 0 < len(named) <= 3
    assert all(off[key] > 0 for key in named)
    fewest = [row for row in summary.tables["unusual"].rows if row[1] == "fewest fixations"]
    assert fewest[0][2] == str(folder.index[folder.index.fixations > 0].fixations.min())


def test_a_histogram_counts_every_value_once_between_round_edges():
    counted = histogram(np.array([0.0, 0.1, 0.25, 0.25, 0.9]))
    assert counted.counts.sum() == 5
    assert counted.edges[1] - counted.edges[0] == pytest.approx(0.05)
    assert counted.counts[5] == 2  # 0.25 lies on an edge: it counts above
    assert not counted.open_ended


def test_a_far_value_is_counted_in_the_last_bin():
    counted = histogram(np.array([*range(100), 1_000_000.0]), whole=True)
    assert counted.open_ended
    assert counted.counts.sum() == 101
    assert counted.edges[-1] <= 105
    assert counted.counts[-1] == 1 + (counted.edges[-2] <= 99) * (99 - counted.edges[-2] + 1)


@pytest.mark.parametrize(
    ("at_least", "whole", "step"),
    [
        (0.3, False, 0.5),
        (0.3, True, 1),
        (2.2, False, 2.5),
        (2.2, True, 5),
        (1, True, 1),
        (0, False, 1),
        (70, True, 100),
    ],
)
def test_a_step_is_round(at_least, whole, step):
    assert round_step(at_least, whole=whole) == pytest.approx(step)


def test_cases_come_in_turn_from_every_source_and_split(shards):
    folder = ShardFolder(shards)
    keys = choose_cases(folder, 4)
    groups = folder.index.loc[keys].groupby(["dataset", "split"]).size()
    with_gaze = folder.index[folder.index.has_gaze & (folder.index.sentences > 0)]
    assert len(groups) == min(4, with_gaze.groupby(["dataset", "split"]).ngroups)
    assert folder.index.loc[keys].has_gaze.all()
    assert len(choose_cases(folder, 100)) == 26


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def full_page(shards, corpus, tmp_path_factory):
    """A report with every section."""
    out = tmp_path_factory.mktemp("full") / "page.html"
    main(["report", str(shards), f"--out={out}", f"--truth={corpus.out}"])
    return out


FAINT = """(() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = colour => channels(colour).slice(0, 3).map(c => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = part => channels(getComputedStyle(part).backgroundColor)[3] === 0 && part.parentElement
    ? ground(part.parentElement) : getComputedStyle(part).backgroundColor;
  const contrast = part => {
    const both = [light(getComputedStyle(part).color), light(ground(part))];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  };
  return [...document.querySelectorAll('body *')].filter(part => !part.closest('svg, .skip'))
    .filter(part => [...part.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
    .filter(part => contrast(part) < 4.5).map(part => part.outerHTML.slice(0, 80));
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_a_browser_shows_it_without_errors_overflow_or_faint_text(browser, full_page, width, dark):
    browser.complaints.clear()
    browser.open(full_page, width, dark=dark)
    assert browser.complaints == []
    assert browser.ask("[...document.images].every(image => image.naturalWidth > 0 && image.width > 0)")
    assert browser.ask("document.images.length") > 36
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(FAINT) == []
    browser.ask("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 300) == dark


@pytest.mark.slow
def test_a_browser_asks_nothing_of_the_network_and_the_tab_key_reaches_what_can_be_used(browser, full_page):
    browser.requests.clear()
    browser.open(full_page, 1280)
    assert browser.requests
    assert all(address.startswith(("file:", "data:")) for address in browser.requests)
    reached = []
    for _ in range(8):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(browser.ask("document.activeElement.innerText.split('\\n')[0]"))
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached[:3] == ["Skip to the content", "Counts", "Rejected and missing"]


@pytest.mark.slow
def test_a_report_of_whole_size_pictures_stays_small(corpus, tmp_path):
    build(BuildConfig(tmp_path / "shards", sources_of(corpus), workers=2))
    assert main(["report", str(tmp_path / "shards"), f"--out={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").stat().st_size < 4e6
