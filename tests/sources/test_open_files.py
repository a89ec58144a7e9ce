"""Real, openly licensed files through the table source; skipped where they are absent."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from gazeprep import InputError, render_batch
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources, collect
from gazeprep.shards import ShardFolder
from gazeprep.sources import open_files, table

REPORT = b"""<eCitation><Abstract>
<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">an  invented
reason</AbstractText><AbstractText Label="FINDINGS">Invented lungs are clear.</AbstractText>
<AbstractText Label="IMPRESSION">Nothing.</AbstractText></Abstract></eCitation>"""


@pytest.fixture
def wheel(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for number in (10, 9):
            info = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
            data = REPORT.replace(b"Nothing", b"Report %d" % number)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "torchxrayvision-1.5.7-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(open_files.REPORTS_IN_WHEEL, packed.getvalue())
    return path


def test_reports_come_in_the_order_of_their_numbers(wheel):
    first, second = open_files.openi_reports(wheel)
    assert (first.impression, second.impression) == ("Report 9.", "Report 10.")
    assert first.indication == "an invented reason"
    assert first.comparison == ""


def test_another_wheel_is_an_error_with_the_cure(tmp_path):
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match=r"pip download --no-deps torchxrayvision==1\.5\.7") as error:
        open_files.openi_reports(path)
    assert str(tmp_path) not in str(error.value)


def test_real_chest_images_become_samples_that_say_what_is_real(shared, wheel, tmp_path):
    nih = shared / "data" / "nih_chestxray"
    source = open_files.write_chest_tables(tmp_path / "tables", nih, (), open_files.openi_reports(wheel))
    report = build(BuildConfig(out=tmp_path / "shards", sources=Sources(table=source), workers=1))
    assert report.samples == len(list(nih.glob("*.png"))) > 0
    folder = ShardFolder(tmp_path / "shards")
    for key in folder.index["key"]:
        record = folder.sample(key).record
        said = json.loads(record["provenance"])["source"]
        assert said.startswith("image real (NIH ChestX-ray14); report real (Open-i, CC BY-NC-ND), of another patient")
        assert not record["synthetic"]
        assert not record["has_gaze"]
        assert record["findings"] == "Invented lungs are clear."
    patients = folder.index.groupby("subject")["split"].nunique()
    assert (patients == 1).all()


def test_osie_readings_render_as_a_gaussian_filter_does(shared, tmp_path):
    source = open_files.write_osie_tables(tmp_path, shared / "data" / "osie" / "fixations.mat")
    readings = table.readings(source)
    assert len(readings) == 700 * 15
    chosen = [r for r in readings if r.dicom_id == readings[0].dicom_id]
    width, height = open_files.OSIE_SIZE
    counts, pooled = np.zeros((height, width)), np.zeros((height, width))
    for reading in chosen:
        seen = reading.load().fixations
        rows, cols = np.rint(seen.y_px).astype(int), np.rint(seen.x_px).astype(int)
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        np.add.at(counts, (rows[inside], cols[inside]), 1 / max(inside.sum(), 1))
        pooled += render_batch(seen, np.ones((1, len(seen))), (width, height), sigma_px=24.0, dtype="float64")[0]
    filtered = gaussian_filter(counts, 24.0, mode="constant", truncate=6)
    assert np.corrcoef(pooled.ravel(), filtered.ravel())[0, 1] > 0.999


def test_osie_never_becomes_a_sample(shared, tmp_path):
    source = open_files.write_osie_tables(tmp_path, shared / "data" / "osie" / "fixations.mat")
    inputs = collect(Sources(table=source))
    assert not inputs.cases
    assert {one.reason for one in inputs.rejected} == {"image_missing"}
