from dataclasses import replace

import numpy as np
import pytest
from recorded import SMALL

from cogaze.data.dataset import DatasetConfig, ShardDataset, read_table
from cogaze.data.plan import PlanItem
from cogaze.data.transforms import View, ViewConfig, gaze_maps, stored_content, view_draws, view_of
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.fixations import Filters
from gazeprep.images import Resize
from gazeprep.samples import MapConfig, PictureConfig, SampleConfig
from gazeprep.shards import ShardFolder
from gazeprep.transcripts import Alignment

SIZE, GRID = 96, (8, 8)  # of the canvas, px and patches
VIEWS = {
    "letterbox": ViewConfig(size_px=SIZE),
    "center_crop": ViewConfig("center_crop", SIZE),
    "random_resized_crop": ViewConfig("random_resized_crop", SIZE, min_area=0.3),
    "flip": ViewConfig(size_px=SIZE, flip=1.0),
    "shift": ViewConfig(size_px=SIZE, shift=0.3),
    "all at once": ViewConfig("random_resized_crop", SIZE, flip=0.5, shift=0.2),
}


def record_of(width=30, height=40, **changes):
    """The geometry of a picture stored at full resolution."""
    plain = {
        "image_width_px": width,
        "image_height_px": height,
        "resize_scale_x": 1.0,
        "resize_scale_y": 1.0,
        "resize_offset_x": 0.0,
        "resize_offset_y": 0.0,
    }
    return plain | changes


@pytest.fixture(params=["short_edge", "letterbox"])
def marked(request, tables, inline, tmp_path):
    """Shards of wide and tall images with one bright mark each, and a single fixation on it."""
    rng = np.random.default_rng(0)
    for i in range(12):
        width, height = (500, 380) if i % 2 else (340, 520)
        x, y = int(rng.integers(8, width - 8)), int(rng.integers(8, height - 8))
        pixels = np.full((height, width), 40, np.uint8)
        pixels[y - 4 : y + 5, x - 4 : x + 5] = 255
        tables.image(f"i{i}", pixels=pixels)
        tables.reading(f"r{i}", f"i{i}", points=[(x, y)])
    picture = PictureConfig(Resize(request.param, 256))
    config = SampleConfig(picture=picture, maps=MapConfig(sigma_px=2.0))
    out = tmp_path / "shards"
    build(BuildConfig(out, Sources(table=tables.source()), sample=config, workers=1))
    return out


def patches(pixels):
    """The pixels of each patch (P, pixels)."""
    rows, cols = GRID
    cut = pixels.reshape(rows, SIZE // rows, cols, SIZE // cols).transpose(0, 2, 1, 3)
    return cut.reshape(rows * cols, -1)


@pytest.mark.parametrize("name", VIEWS)
def test_a_mark_and_the_fixation_on_it_fall_into_the_same_patch(marked, name):
    dataset = ShardDataset(marked, read_table(marked, "train"), GRID, DatasetConfig(VIEWS[name]))
    seen = 0
    for row in range(len(dataset)):
        for epoch in range(4):
            example = dataset[PlanItem(row, True, True, epoch)]
            whole = example.maps[0]
            bright = (patches(example.pixels) > 100).sum(axis=1)
            if bright.max() < 0.9 * bright.sum() or not bright.any():
                continue  # on an edge between patches, or outside this view
            seen += 1
            assert bright.argmax() == whole.argmax()
            assert example.patch_mask[whole.argmax()]
            assert (example.maps.argmax(axis=1) == whole.argmax()).all()  # its sentences looked there too
    assert seen >= 15


@pytest.mark.parametrize("name", VIEWS)
def test_padding_shows_nothing_and_takes_no_gaze(marked, name):
    dataset = ShardDataset(marked, read_table(marked, "train"), GRID, DatasetConfig(VIEWS[name]))
    for row in range(len(dataset)):
        example = dataset[PlanItem(row, True, True, 1)]
        pixels, mask = patches(example.pixels), example.patch_mask
        assert (pixels[~mask] == 0).all()
        assert (pixels[mask].max(axis=1) > 0).all()
        assert (example.maps[:, ~mask] == 0).all()
        mass = example.maps.sum(axis=1)
        assert (np.isclose(mass, 1, atol=1e-5) | (mass == 0)).all()


def test_a_view_of_the_whole_image_renders_the_stored_maps(shards):
    assert compare_with_stored(shards) >= 10


def test_also_under_other_rules_and_with_fixations_left_out(config_of, inline, tmp_path):
    rule = Alignment(start="previous_end", end="first_mention", mentions=("heart", "lungs"), membership="whole_overlap")
    sample = replace(SMALL, alignment=rule, filters=Filters(min_duration_s=0.2, off_image=True))
    build(config_of(tmp_path / "out", sample=sample))
    assert compare_with_stored(tmp_path / "out") >= 10


def compare_with_stored(root):
    """Render every reading over its whole image, plain and mirrored, and return how many agree with what is stored."""
    folder = ShardFolder(root)
    keys = folder.index.query("has_gaze")["key"]
    for key in keys:
        sample = folder.sample(key)
        for flip_x in (False, True):
            view = View(74, stored_content(sample.record), (74, 74), flip_x=flip_x)
            again = gaze_maps(sample.gaze, sample.record, view, (37, 37)).reshape(sample.maps.shape)
            assert np.abs((again[:, :, ::-1] if flip_x else again) - sample.maps).max() < 1e-6
    return len(keys)


class TestLetterbox:
    def test_keeps_all_of_a_wide_picture_in_the_middle(self):
        view = view_of(ViewConfig(size_px=8), record_of(8, 4), view_draws(0, 0, "k"))
        canvas = view.draw(np.full((4, 8), 9, np.uint8))
        assert canvas.tolist() == [[0] * 8] * 2 + [[9] * 8] * 4 + [[0] * 8] * 2
        assert view.content == (0, 2, 8, 6)
        assert view.patch_mask((4, 4)).reshape(4, 4).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]

    def test_a_patch_that_shows_a_sliver_counts(self):
        view = view_of(ViewConfig(size_px=8), record_of(8, 6), view_draws(0, 0, "k"))
        assert view.patch_mask((4, 4)).all()  # one pixel of padding above and below, patches of two


class TestCenterCrop:
    def test_cuts_the_long_side_alike_at_both_ends(self):
        picture = np.repeat(np.arange(8, dtype=np.uint8)[None], 4, axis=0)
        view = view_of(ViewConfig("center_crop", 4), record_of(8, 4), view_draws(0, 0, "k"))
        assert view.draw(picture)[0].tolist() == [2, 3, 4, 5]
        assert view.patch_mask((2, 2)).all()
        assert view.content == (0, 0, 4, 4)


class TestRandomViews:
    def test_depend_on_seed_epoch_and_key_alone(self):
        found = {
            args: view_of(VIEWS["all at once"], record_of(300, 400), view_draws(*args))
            for args in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))
        }
        assert len(set(found.values())) == 4
        assert found[0, 0, "a"] == view_of(VIEWS["all at once"], record_of(300, 400), view_draws(0, 0, "a"))

    def test_draws_are_uniform_and_independent(self):
        draws = np.array([view_draws(0, epoch, f"key-{i}") for i in range(300) for epoch in range(3)])
        assert draws.shape == (900, 8)
        assert (np.abs(draws.mean(axis=0) - 0.5) < 0.04).all()
        off_diagonal = np.corrcoef(draws.T) - np.eye(8)
        assert np.abs(off_diagonal).max() < 0.12

    def test_crops_keep_to_area_aspect_and_picture(self):
        config = ViewConfig("random_resized_crop", 64, min_area=0.25, max_aspect=1.5)
        for i in range(200):
            left, top, right, bottom = view_of(config, record_of(400, 400), view_draws(0, 0, f"{i}")).crop
            assert 0 <= left < right <= 400
            assert 0 <= top < bottom <= 400
            width, height = right - left, bottom - top
            assert 1 / 1.51 < width / height < 1.51
            assert width * height > 0.25 * 400 * 400 * 0.66  # the picture's edge may cut one side

    def test_a_whole_flip_share_mirrors_all_and_none_mirrors_none(self):
        flips = [view_of(ViewConfig(flip=0.5), record_of(), view_draws(0, 0, f"{i}")).flip_x for i in range(200)]
        assert 70 < sum(flips) < 130
        assert not any(view_of(ViewConfig(), record_of(), view_draws(0, 0, f"{i}")).flip_x for i in range(50))

    @pytest.mark.parametrize(
        ("config", "random"),
        [
            (ViewConfig(), False),
            (ViewConfig("center_crop"), False),
            (ViewConfig(flip=1.0), False),
            (ViewConfig(flip=0.5), True),
            (ViewConfig(shift=0.1), True),
            (ViewConfig("random_resized_crop"), True),
        ],
    )
    def test_say_that_they_are_random(self, config, random):
        assert config.is_random is random


def test_the_affine_says_where_pixels_go():
    view = View(canvas_px=12, crop=(2, 1, 8, 5), resized=(12, 8), left=3, top=-2, flip_x=True)
    picture = np.zeros((6, 9), np.uint8)
    picture[2, 4] = 200
    canvas = view.draw(picture)
    x, y = view.affine.points([4], [2])
    rows, cols = np.nonzero(canvas > 60)
    assert np.allclose([cols.mean(), rows.mean()], [x[0], y[0]], atol=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "stretch"}, "rule is 'stretch', must be one of letterbox, center_crop, random_resized_crop"),
        ({"size_px": 0}, "size_px is 0, must be at least 1"),
        ({"min_area": 0}, "min_area is 0 "),
        ({"max_aspect": 0.5}, "max_aspect 0.5"),
        ({"flip": 2}, "flip is 2"),
        ({"shift": 0.5}, "shift 0.5"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ViewConfig(**values)
