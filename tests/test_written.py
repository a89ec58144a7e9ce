"""Generated reports on the page: read strictly, the best and worst chosen, findings marked, attention beside gaze."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from browser import Browser, chromium
from test_report import FAINT, Page

from gazeprep.cli import main
from gazeprep.images import decode
from gazeprep.pictures import map_picture, shrunk
from gazeprep.schema import CHEXPERT_LABELS
from gazeprep.selection import select
from gazeprep.shards import ShardFolder, sha256_of
from gazeprep.written import Looked, choose, places, read_scores, read_written, said_in
from gazeprep.written_page import PICTURE_PX, WrittenConfig, written_section

EVIL = "<script>alert(1)</script>&amp;\"'><img src=x onerror=alert(2)>"


def finding(label, status, verdict):
    return {"label": label, "status": status, "verdict": verdict}


MARKED = {
    "reference": [
        {"text": "Large left effusion.", "findings": [finding("Pleural Effusion", "positive", "contradiction")]},
        {"text": "No pneumothorax.", "findings": [finding("Pneumothorax", "negative", "match")]},
    ],
    "text": [
        {
            "text": "no effusion or pneumothorax.",
            "findings": [
                finding("Pleural Effusion", "negative", "contradiction"),
                finding("Pneumothorax", "negative", "match"),
            ],
        },
        {"text": "possible edema of 2. 5 cm.", "findings": [finding("Edema", "uncertain", "alone")]},
    ],
}
REFERENCE = " ".join(piece["text"] for piece in MARKED["reference"])
TEXT = " ".join(piece["text"] for piece in MARKED["text"])
SENTENCES = ("no effusion or pneumothorax.", "possible edema of 2.", "5 cm.")  # as the model's attention was split


class Folders:
    """A generated folder and a score folder of some samples, with whatever a test puts in their place."""

    def __init__(self, root, keys, grid):
        self.generated, self.scores = root / "generated", root / "scores"
        for folder in (self.generated, self.scores):
            folder.mkdir()
        self.keys, self.grid = keys, grid
        self.write_reports([{"key": key, "reference": REFERENCE, "text": TEXT} for key in keys])
        self.write_attention([(key, sentence) for key in keys for sentence in SENTENCES])
        self.write_scores({"BLEU-4": np.linspace(0, 1, len(keys)), "label agreement (rules)": np.ones(len(keys))})
        self.write_marks([{"key": key} | MARKED for key in keys])

    def write_reports(self, rows):
        ids = {"study_id": "s", "image_id": "i", "subject_id": "p"}
        pd.DataFrame([ids | row for row in rows]).to_parquet(self.generated / "generated.parquet", index=False)
        self.write_results()

    def write_attention(self, rows, **changes):
        rng = np.random.default_rng(0)
        mass = rng.dirichlet(np.ones(np.prod(self.grid)), len(rows)).reshape(-1, *self.grid).astype(np.float32)
        arrays = {"key": [key for key, _ in rows], "sentence": [said for _, said in rows], "mass": mass} | changes
        np.savez_compressed(self.generated / "attention.npz", **arrays)

    def write_results(self):
        made = {"overlap": {"figures": FIGURES, "notes": {}}}
        settings = {"generated": {"sha256": sha256_of(self.generated / "generated.parquet")}}
        (self.scores / "results.json").write_text(json.dumps({"settings": settings, "results": made}))

    def write_scores(self, columns, keys=None):
        table = {"key": self.keys if keys is None else keys} | columns
        pd.DataFrame(table).to_parquet(self.scores / "scores.parquet", index=False)

    def write_marks(self, rows):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.scores / "marks.jsonl").write_text("".join(lines), encoding="utf-8")

    def read(self, known=None):
        reports = read_written(self.generated, self.keys if known is None else known)
        return reports, read_scores(self.scores, self.generated, reports)


FIGURES = [
    {"name": f"BLEU-{n}", "value": n / 10, "low": 0.0, "high": 1.0, "n": 8, "baselines": {"shuffled": 0.1}}
    for n in range(1, 10)
]


@pytest.fixture(scope="module")
def few(shards, tmp_path_factory):
    """Shards of three readings of one image, another reading, and four images without gaze; small, for quick pages."""
    index = ShardFolder(shards).index.reset_index(drop=True)
    gaze = index[index.has_gaze]
    several = gaze[gaze.groupby("dicom")["key"].transform("size") > 2]
    readings = several[several.dicom == several.iloc[0].dicom]["key"][:3]
    other = gaze[gaze.dicom != several.iloc[0].dicom]["key"][:1]
    keys = tmp_path_factory.mktemp("few") / "keys.txt"
    keys.write_text("\n".join([*readings, *other, *index[~index.has_gaze]["key"][:4]]))
    select(shards, keys.with_name("shards"), keys=keys)
    return keys.with_name("shards")


@pytest.fixture
def made(few, tmp_path):
    """Reports of all of them, those with gaze first."""
    folder = ShardFolder(few)
    keys = list(
        folder.index.reset_index(drop=True).sort_values(["has_gaze", "dicom", "key"], ascending=[False, True, True])[
            "key"
        ]
    )
    return Folders(tmp_path, keys, folder.sample(keys[0]).maps.shape[1:])


def page_of(made, few, *options):
    out = made.generated.parent / "page.html"
    named = [f"--generated={made.generated}", f"--out={out}", "--cases=0", *options]
    assert main(["report", str(few), *named]) == 0
    return Page(out.read_text(encoding="utf-8"))


def said_by(page):
    return " ".join(" ".join(page.said).split())


# --- reading


def without(folder, name):
    (folder / name).unlink()


def change_first_mark(made, **changes):
    piece = {"text": "Left effusion.", "findings": [finding("Edema", "positive", "match") | changes]}
    made.write_marks([{"key": made.keys[0], "reference": [], "text": [piece]}])


WRONG = {
    "no reports": (lambda made: without(made.generated, "generated.parquet"), "no generated.parquet"),
    "no column": (
        lambda made: pd.DataFrame({"key": ["k"], "text": [REFERENCE]}).to_parquet(made.generated / "generated.parquet"),
        "has no column 'reference'",
    ),
    "no parquet": (lambda made: (made.generated / "generated.parquet").write_bytes(b"PAR1"), "cannot be read"),
    "a key twice": (
        lambda made: made.write_reports([{"key": made.keys[0], "reference": REFERENCE, "text": TEXT}] * 2),
        "stand twice",
    ),
    "an unknown key": (
        lambda made: made.write_reports([{"key": "left effusion", "reference": REFERENCE, "text": TEXT}]),
        "1 of 1 reports are of samples that these shards do not hold",
    ),
    "damaged attention": (
        lambda made: (made.generated / "attention.npz").write_bytes(
            (made.generated / "attention.npz").read_bytes()[:-40]
        ),
        "attention.npz: the npz cannot be read",
    ),
    "pickled attention": (
        lambda made: made.write_attention([(made.keys[0], "")], sentence=np.array([{}], dtype=object)),
        "an array is pickled (allow_pickle)",
    ),
    "attention without masses": (
        lambda made: np.savez(made.generated / "attention.npz", key=["k"], sentence=["left effusion"]),
        "no array 'mass'",
    ),
    "attention of other lengths": (
        lambda made: made.write_attention([(made.keys[0], "left effusion")], key=made.keys[:2]),
        "must be texts (T,), texts (T,) and numbers (T, rows, cols)",
    ),
    "attention that is none": (
        lambda made: made.write_attention([(made.keys[0], "left effusion")], mass=np.full((1, *made.grid), np.nan)),
        "negative or does not sum to 1",
    ),
    "attention of other reports": (
        lambda made: made.write_attention([("left effusion", "no")]),
        "1 keys are of no report",
    ),
    "no scores": (lambda made: without(made.scores, "scores.parquet"), "--scores: no scores.parquet there"),
    "no results": (lambda made: without(made.scores, "results.json"), "--scores: no results.json there"),
    "other results": (lambda made: (made.scores / "results.json").write_text("[1]"), "cannot be read as scores"),
    "scores of other texts": (
        lambda made: pd.DataFrame(
            [{"key": key, "reference": REFERENCE, "text": "left effusion"} for key in made.keys]
        ).to_parquet(made.generated / "generated.parquet"),
        "of other reports than --generated holds",
    ),
    "scores of some": (
        lambda made: made.write_scores({"BLEU-4": [0.5]}, ["left effusion"]),
        "1 keys are of no generated report, 8 reports have no row",
    ),
    "a score that is text": (
        lambda made: made.write_scores({"BLEU-4": ["left effusion and more"] * 8}),
        "row 1, column 'BLEU-4' is 22 characters of text, not a finite number",
    ),
    "another verdict": (lambda made: change_first_mark(made, verdict="left effusion"), "marks.jsonl, line 1"),
    "another status": (lambda made: change_first_mark(made, status=1), "marks.jsonl, line 1"),
    "one member more": (lambda made: change_first_mark(made, certain=True), "marks.jsonl, line 1"),
    "a mark that is no json": (
        lambda made: (made.scores / "marks.jsonl").write_text('{"key": "left effusion'),
        "marks.jsonl, line 1",
    ),
    "marks of no report": (
        lambda made: made.write_marks([{"key": "left effusion"} | MARKED]),
        "line 1: its key is of no report",
    ),
    "marks twice": (
        lambda made: made.write_marks([{"key": made.keys[0]} | MARKED] * 2),
        "line 2: its key is of no report, or stands twice",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_as_it_was_written_is_refused_without_quoting_it(made, what):
    spoil, says = WRONG[what]
    spoil(made)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        made.read()
    told = f"{error.value}{error.value.__cause__ or ''}".lower()
    assert "left effusion" not in told
    assert str(made.generated.parent) not in told


def test_attention_that_unpacks_to_more_than_allowed_is_refused(made, monkeypatch):
    monkeypatch.setattr("gazeprep.written.MAX_FILE_BYTES", (made.generated / "attention.npz").stat().st_size)
    made.write_attention([(key, "no") for key in made.keys], mass=np.full((8, 100, 100), 1e-4, dtype=np.float32))
    with pytest.raises(ValueError, match="claims to hold more than"):
        made.read()


def test_what_was_written_is_read(made):
    reports, scores = made.read()
    first = reports[made.keys[0]]
    assert (first.reference, first.text) == (REFERENCE, TEXT)
    assert [one.sentence for one in first.looked] == list(SENTENCES)
    assert all(one.mass.sum() == pytest.approx(1, abs=1e-5) for one in first.looked)
    assert list(scores.table) == ["BLEU-4", "label agreement (rules)"]
    mark = scores.marks[made.keys[0]].text[1].findings[0]
    assert (mark.label, mark.status, mark.verdict) == ("Edema", "uncertain", "alone")


def test_a_text_may_hold_unicodes_own_line_ends(made):
    text = "no effusion.\u2028no mass.\x85"
    made.write_marks([{"key": made.keys[0], "reference": [], "text": [{"text": text, "findings": []}]}])
    _, scores = made.read()
    assert scores.marks[made.keys[0]].text[0].text == text


# --- which studies


def table_of(columns):
    return pd.DataFrame(columns, index=list("dcba"), dtype=float)


@pytest.mark.parametrize(
    ("values", "count", "best", "worst", "none"),
    [
        ([4, 3, 2, 1], 1, "d", "a", 0),
        ([1, 1, 1, 1], 2, "ab", "cd", 0),  # equal ones by key
        ([4, 3, 2, 1], 3, "dcb", "a", 0),  # none is both
        ([4, np.nan, 2, np.nan], 1, "d", "b", 2),
        ([4, 3, 2, 1], 0, "", "", 0),
    ],
)
def test_the_best_and_the_worst_are_chosen(values, count, best, worst, none):
    chosen = choose(table_of({"a": values}), "a", count)
    assert ("".join(chosen.best), "".join(chosen.worst), chosen.without) == (best, worst, none)


def test_of_an_error_the_least_is_the_best():
    assert choose(table_of({"RadCliQ": [4, 3, 2, 1]}), "radcliq", 1).best == ("a",)


def test_a_score_is_named_as_it_is_convenient():
    values = [1, 2, 3, 4]
    table = table_of({"BLEU-4": values, "BLEU-4 b": values, "label agreement (x)": values, "none": [np.nan] * 4})
    assert choose(table, "bleu_4", 1).by == "BLEU-4"
    assert choose(table, "label_agreement", 1).by == "label agreement (x)"
    assert choose(table, "", 1).by == "label agreement (x)"
    assert choose(table[["none", "BLEU-4 b"]], "", 1).by == "BLEU-4 b"
    for by, says in {
        "BLEU": "means 2 of the scores",
        "x": "means 0 of the scores",
        "none": "no report has a value",
    }.items():
        with pytest.raises(ValueError, match=says):
            choose(table, by, 1)
    with pytest.raises(ValueError, match="holds no score of any report"):
        choose(table[["none"]], "", 1)


# --- sentences


def test_sentences_are_found_in_pieces_that_were_split_otherwise():
    pieces = ["No effusion.", "A 2. 5 cm nodule.", "No effusion."]
    assert places(pieces, ["no  EFFUSION.", "a 2.", "5 cm nodule.", "no effusion."]) == [0, 1, 1, 2]
    assert places(pieces, ["No effusion. A 2.5 cm nodule.", "other", "no effusion."]) == [0, None, 2]
    assert places([], ["no"]) == [None]


def test_a_sentence_said_twice_comes_once_with_both_numbers():
    even, point = np.full((2, 2), 0.25, np.float32), np.eye(2, dtype=np.float32) / 2
    looked = [Looked("a.", even), Looked("b.", point), Looked("A.", even), Looked("c.", even)]
    said = said_in(["a.", "b.", "a."], looked)
    assert [(one.looked.sentence, one.numbers) for one in said] == [("a.", (1, 3)), ("b.", (2,)), ("c.", ())]


# --- the page


def test_every_finding_carries_its_verdict_in_words(made, few):
    page = page_of(made, few, f"--scores={made.scores}", "--studies=1")
    said = said_by(page)
    assert "8 generated reports; shown are the best and the worst by label agreement (rules)." in said
    assert "Sentences carry the findings that they name (rule-based labels, not CheXbert)" in said
    assert said.count("≠ Pleural Effusion present contradiction") == 2
    assert said.count("≠ Pleural Effusion absent contradiction") == 2
    assert said.count("= Pneumothorax absent match") == 4
    assert said.count("○ Edema uncertain alone") == 2
    kinds = [attrs["class"] for name, attrs in page.tags if name == "li" and "chip" in attrs.get("class", "")]
    assert sorted(set(kinds)) == ["chip alone", "chip contradiction", "chip match"]
    assert "All 9 figures of overlap" in said


def test_the_page_is_well_formed_inert_and_the_same_each_time(made, few):
    options = [f"--scores={made.scores}", "--by=bleu_4"]
    page = page_of(made, few, *options)
    assert not page.open + page.unclosed + page.all("script")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs} <= set(ids)
    assert [one for one in ids if one.startswith("written-") and one != "written-h"] == [
        f"written-{key}" for key in (*made.keys[:-4:-1], *made.keys[:3])
    ]
    assert all(attrs["src"].startswith("data:image/webp;base64,") and attrs["alt"] for attrs in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page_of(made, few, *options).text == page.text


def test_an_earlier_study_is_shown_where_shards_tell_of_one_and_folded_where_it_is_long(made, few, monkeypatch):
    read, (first, second, third, fourth) = ShardFolder.sample, sorted(made.keys)[:4]
    told = {
        first: {"prior_days": 30.0, "prior_findings": f"Old effusion. {EVIL}", "prior_impression": "Stable."},
        second: {"prior_days": 0.5, "prior_findings": "", "prior_impression": "Long ago. " * 50},
        third: {"prior_days": -1.0, "prior_findings": "", "prior_impression": ""},
    }

    def sample(self, key):
        found = read(self, key)
        return replace(found, record=found.record | told.get(key, {}))

    monkeypatch.setattr(ShardFolder, "sample", sample)
    written = written_section(ShardFolder(few), WrittenConfig(made.generated), redact=False)
    seen = {study.key: study.earlier for group in written.groups for study in group.studies}
    assert seen[first].texts == (("findings", f"Old effusion. {EVIL}"), ("impression", "Stable."))
    assert [key for key, earlier in seen.items() if earlier is not None and earlier.is_long] == [second]
    assert seen[third] is None
    assert seen[fourth] is None
    page_of(made, few)
    html = (made.generated.parent / "page.html").read_text(encoding="utf-8")
    assert html.count("<summary>Earlier study") == 2
    assert "<details open><summary>Earlier study, 30 days before</summary>" in html
    assert "<details><summary>Earlier study, 0.5 days before</summary>" in html
    assert EVIL not in html
    assert "Earlier study" not in said_by(page_of(made, few, "--redact"))


def test_texts_of_reports_stay_text(made, few):
    made.write_reports([{"key": key, "reference": EVIL, "text": EVIL} for key in made.keys])
    marked = [{"text": EVIL, "findings": [finding(EVIL, "positive", "match")]}]
    made.write_marks([{"key": key, "reference": marked, "text": marked} for key in made.keys])
    made.write_attention([(key, EVIL) for key in made.keys])
    page = page_of(made, few, f"--scores={made.scores}", "--studies=1")
    assert sum(EVIL in said for said in page.said) == 2 * 5
    assert not page.all("script")
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))


def test_pages_without_scores_references_attention_or_gaze_say_so(made, few):
    with_gaze, alone = made.keys[0], made.keys[-1]
    made.write_reports([{"key": with_gaze, "reference": "", "text": TEXT}, {"key": alone, "reference": "", "text": ""}])
    made.write_attention([(with_gaze, sentence) for sentence in ("No effusion or pneumothorax.", "another text.")])
    page = page_of(made, few)
    said = said_by(page)
    assert "2 generated reports, not scored." in said
    assert "Sentences carry" not in said
    assert said.count("No reading of this image has gaze.") == 1
    assert said.count("No reference.") == 2
    assert said.count("Nothing was written.") == 1
    assert said.count("not among the sentences above") == 1
    assert "Without attention of their own: sentences 2, 3." in said
    alts = [attrs["alt"].split(",")[0] for attrs in page.all("img")]
    assert sum(alt.startswith("Gaze of a whole reading") for alt in alts) == 1
    assert [alt for alt in alts if "ttention" in alt] == ["Attention of sentence 1", "Attention of another sentence"]
    (made.generated / "attention.npz").unlink()
    assert said_by(page_of(made, few)).count("Where its sentences look was not kept.") == 1


def test_very_long_reports_are_cut_and_say_so(made, few):
    texts = [f"sentence number {i} of a long report." for i in range(40)]
    key = made.keys[0]
    made.write_reports([{"key": key, "reference": "", "text": " ".join(texts)}])
    made.write_attention([(key, text) for text in texts])
    page = page_of(made, few)
    assert sum(attrs["alt"].startswith("Attention of sentence") for attrs in page.all("img")) == 16
    assert "The attention of 24 more sentences is not shown." in said_by(page)
    assert "Without attention" not in said_by(page)


def test_gaze_comes_from_another_reading_of_the_image_where_the_sample_has_none(made, few):
    folder = ShardFolder(few)
    index = folder.index.reset_index(drop=True)
    first, own, third = sorted(index[index.groupby("dicom")["key"].transform("size") > 2]["key"])
    made.write_reports([{"key": own, "reference": "", "text": TEXT}])
    made.write_attention([(own, SENTENCES[0])])

    def gaze_shown():
        section = written_section(folder, WrittenConfig(made.generated), redact=False)
        return section.groups[0].studies[0].gaze

    def drawn(key):
        sample = folder.sample(key)
        return map_picture(shrunk(decode(sample.image), PICTURE_PX), sample, 0)

    assert (gaze_shown().picture, gaze_shown().says) == (drawn(own), "one of 3 readings")
    folder.index.loc[own, "has_gaze"] = False
    assert (gaze_shown().picture, gaze_shown().says) == (drawn(first), "one of 2 readings")
    folder.index.loc[first, "has_gaze"] = False
    assert (gaze_shown().picture, gaze_shown().says) == (drawn(third), "whole reading")
    folder.index.loc[third, "has_gaze"] = False
    assert gaze_shown() is None


def test_attention_on_another_grid_is_refused(made, few, capsys):
    grid = (made.grid[0] + 1, made.grid[1])
    made.write_attention([(made.keys[0], TEXT)], mass=np.full((1, *grid), 1 / np.prod(grid), dtype=np.float32))
    assert main(["report", str(few), f"--generated={made.generated}", f"--out={made.scores / 'page.html'}"]) == 1
    assert f"does not lie on the {made.grid[0]} x {made.grid[1]} grid of its maps" in capsys.readouterr().err


def test_redacted_pages_hold_findings_and_no_text(made, few):
    options = [f"--scores={made.scores}", "--studies=1", "--by=bleu_4"]  # the worst is the first, the best the last
    whole, redacted = page_of(made, few, *options), page_of(made, few, *options, "--redact")
    records = [ShardFolder(few).sample(made.keys[place]).record for place in (0, -1)]
    texts = [record[name] for record in records for name in ("indication", "history") if record[name]]
    texts += [*SENTENCES[:2], *(piece["text"] for piece in MARKED["reference"])]
    assert len(texts) > 4
    assert not [text for text in texts if " ".join(text.split()) not in said_by(whole)]
    assert not [text for text in texts if text in redacted.text]
    assert said_by(redacted).count("Edema uncertain alone") == 2


def test_options_about_generated_reports_go_with_them(made, few, capsys):
    wrong = {
        "--scores=x": "--scores and --by are about generated reports",
        "--by=bleu_4": "--scores and --by are about generated reports",
    }
    for option, says in wrong.items():
        assert main(["report", str(few), option]) == 1
        assert says in capsys.readouterr().err
    for option, says in {"--by=bleu_4": "give the folder of scores too", "--studies=-1": "must be 0 or more"}.items():
        assert main(["report", str(few), f"--generated={made.generated}", option]) == 1
        assert says in capsys.readouterr().err


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_a_browser_shows_it_without_errors_overflow_or_faint_text(browser, made, few, width, dark):
    long = "pneumonoultramicroscopicsilicovolcanoconiosis" * 4
    findings = [finding(label, "uncertain", "contradiction") for label in CHEXPERT_LABELS]
    made.write_marks(
        [{"key": key} | MARKED | {"reference": [{"text": long, "findings": findings}]} for key in made.keys]
    )
    page_of(made, few, f"--scores={made.scores}")
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(made.generated.parent / "page.html", width, dark=dark)
    assert browser.complaints == []
    assert all(address.startswith(("file:", "data:")) for address in browser.requests)
    assert browser.ask("[...document.images].every(image => image.naturalWidth > 0 && image.width > 0)")
    assert browser.ask(FAINT) == []
    browser.ask("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    places = browser.ask(
        "[...document.querySelectorAll('.study .sentences li')].filter(one => one.querySelector('img'))"
        ".map(one => [one, one.querySelector('img')].map(part => Math.round(part.getBoundingClientRect().top)))"
    )
    # Pictures of one row begin at one height, however long their sentences are.
    assert len({row for row, _ in places}) == len({tuple(place) for place in places})
