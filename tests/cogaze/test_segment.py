"""Masks on canvases, Dice and IoU by hand, and a decoder that finds what the features hold and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cogaze.data.transforms import View, ViewConfig, view_of
from cogaze.evaluate.records import EvalImage, LabelledBox
from cogaze.evaluate.segment import (
    METRICS,
    MaskedFeatures,
    Overlap,
    SegmentConfig,
    dice_mean,
    mask_of,
    mask_on_canvas,
    overlaps,
    same_mask_overlap,
    segmentation_loss,
    shown_on_canvas,
    train_segmenter,
)
from cogaze.models.segmenter import SegmentationDecoder
from gazeprep.schema import ImageRef

PICTURE = ImageRef(root="", path="a.png", kind="raster", source="made")


def mask(*rows):
    return np.array([[char == "#" for char in row] for row in rows])


TRUTH = np.stack([mask("##..", "##.."), mask("....", "...."), mask("#...", "...."), mask("....", "....")])
PREDICTED = np.stack([mask("##..", "...."), mask("....", "...."), mask("..#.", "...."), mask("...#", "....")])


def test_dice_and_iou_of_four_images_by_hand():
    overlap = Overlap.of(PREDICTED.astype(float), TRUTH, 0.5)
    assert overlap.dice()[:, 0].tolist() == [pytest.approx(2 / 3), 1, 0, 0]  # half found, both empty, beside, invented
    assert overlap.iou()[:, 0].tolist() == [0.5, 1, 0, 0]
    found = {name: metric(overlap) for name, metric in METRICS.items()}
    assert found == {
        "Dice": pytest.approx((2 / 3 + 1) / 4),
        "IoU": pytest.approx(1.5 / 4),
        "Dice of positives": pytest.approx(1 / 3),
        "IoU of positives": pytest.approx(1 / 4),
        "Dice of pooled pixels": pytest.approx(2 * 2 / (4 + 5)),
        "Dice, mean of batches": pytest.approx((2 / 3 + 1) / 4),  # one batch
    }


def test_the_mask_without_a_pixel_scores_the_share_of_empty_images():
    truth = np.zeros((4003, 1, 1), dtype=bool)
    truth[:902] = True  # RSNA's test part
    empty = Overlap.of(truth.astype(float), truth, 0.5).empty()
    assert dice_mean(empty) == pytest.approx(0.7747, abs=1e-4)
    assert METRICS["Dice of positives"](empty) == METRICS["Dice of pooled pixels"](empty) == 0


def test_the_mean_of_batches_weighs_a_short_last_batch_as_much_as_a_full_one():
    truth = np.zeros((9, 1, 1), dtype=bool)
    predicted = np.zeros((9, 1, 1))
    predicted[-1] = 1  # the ninth is wrong
    overlap = Overlap.of(predicted, truth, 0.5)
    assert METRICS["Dice, mean of batches"](overlap) == 0.5
    assert METRICS["Dice"](overlap) == pytest.approx(8 / 9)


def test_the_truth_itself_scores_one():
    overlap = Overlap.of(TRUTH.astype(float), TRUTH, 0.5)
    assert {metric(overlap) for metric in METRICS.values()} == {1.0}


def test_no_positives_have_no_dice():
    overlap = Overlap.of(PREDICTED[1:2].astype(float), TRUTH[1:2], 0.5)
    assert np.isnan(METRICS["Dice of positives"](overlap))


def test_the_threshold_with_the_highest_mean_dice_is_chosen():
    probability = np.array([[[0.9, 0.6, 0.3]]])
    truth = np.array([[[True, True, False]]])
    assert Overlap.of(probability, truth, [0.2, 0.5, 0.7]).best_threshold() == 1


def test_run_lengths_and_boxes_of_an_image_are_one_mask():
    image = EvalImage("1", PICTURE, (1,), boxes=(LabelledBox((3.0, 0.0, 4.0, 1.0)),), runs=("4 2 1 1",))
    assert np.argwhere(mask_of(image, 4, 3)).tolist() == [[0, 3], [1, 1], [1, 2], [2, 1]]


def test_a_mask_goes_where_the_picture_goes():
    record = {
        "image_width_px": 40, "image_height_px": 80,
        "resize_scale_x": 1.0, "resize_offset_x": 0.0, "resize_scale_y": 1.0, "resize_offset_y": 0.0,
    }  # fmt: skip
    view = view_of(ViewConfig(size_px=40), record, np.zeros(8))
    box = np.zeros((80, 40), dtype=bool)
    box[20:60, 10:30] = True
    moved = mask_on_canvas(box, view)  # halved, ten columns of padding left and right
    assert np.array_equal(moved, view.draw(box.astype(np.uint8)) > 0)
    assert (moved.sum(), moved[10:30, 15:25].sum()) == (200, 200)
    shown = shown_on_canvas(view)
    assert (shown.sum(), shown[:, 10:30].sum()) == (800, 800)


def test_a_canvas_pixel_belongs_to_the_mask_where_half_of_it_does():
    column = np.zeros((4, 4), dtype=bool)
    column[:, 1:] = True  # cuts the first pixel of the halved canvas in two
    view = View(canvas_px=2, crop=(0, 0, 4, 4), resized=(2, 2))
    assert mask_on_canvas(column, view).all()
    assert not mask_on_canvas(np.eye(4, dtype=bool)[::-1] * [True, False, False, False], view).any()


def squares(count, seed, *, told=True):
    """Images of 4 x 4 patches whose features say which of them the mask covers, or say nothing."""
    rng = np.random.default_rng(seed)
    covered = rng.random((count, 4, 4)) < 0.3
    covered[::3] = False
    patches = rng.normal(size=(count, 16, 6)).astype(np.float32)
    if told:
        patches[..., 0] = 3 * covered.reshape(count, 16)
    pixels = covered.repeat(2, axis=1).repeat(2, axis=2)
    latents = rng.normal(size=(count, 2, 5)).astype(np.float32)
    return MaskedFeatures(patches, latents, pixels, np.ones_like(pixels))


CONFIG = SegmentConfig(width=16, heads=2, doublings=1, batch=8, epochs=20, lr=0.02, patience=20)


def test_a_decoder_finds_what_the_features_say_and_does_so_again():
    train, validate, test = squares(48, 1), squares(16, 2), squares(16, 3)
    made = train_segmenter(train, validate, (4, 4), CONFIG)
    found = overlaps(made.decoder, test, [made.threshold], batch=8)
    assert dice_mean(found) > 0.8 > dice_mean(found.empty()) + 0.3
    assert made.validation_dice[made.best_epoch] == max(made.validation_dice)
    again = train_segmenter(train, validate, (4, 4), replace(CONFIG, epochs=2))
    assert again.validation_dice == made.validation_dice[:2]


def test_a_decoder_without_information_is_no_better_than_the_empty_mask():
    train, validate, test = (squares(24, seed, told=False) for seed in (1, 2, 3))
    made = train_segmenter(train, validate, (4, 4), SegmentConfig(width=16, heads=2, doublings=2, epochs=6, patience=2))
    found = overlaps(made.decoder, test, [made.threshold], batch=8)
    assert dice_mean(found) < dice_mean(found.empty()) + 0.15


def test_the_mean_training_mask_finds_what_is_always_there():
    train, test = squares(4, 0), squares(6, 1)
    corner = np.zeros_like(train.mask)
    corner[:, :2, :2] = True
    corner[:1, 7, 7] = True  # in one of four
    truth = np.zeros_like(test.mask)
    truth[:, :2, :2] = True
    train, test = replace(train, mask=corner), replace(test, mask=truth)
    found = same_mask_overlap(train, test, test, batch=3)
    assert found.dice().tolist() == [[1.0]] * 6
    assert found.predicted.tolist() == [[4.0]] * 6


def test_padding_is_predicted_by_nobody_and_teaches_nothing():
    images = squares(2, 0)
    shown = images.shown.copy()
    shown[:, :, 4:] = False
    images = MaskedFeatures(images.patches, images.latents, images.mask, shown)

    class Everything(torch.nn.Module):
        def forward(self, patches, latents):
            return torch.full((len(patches), 8, 8), 9.0)

    assert overlaps(Everything(), images, [0.5], batch=2).predicted.tolist() == [[32.0], [32.0]]
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    segmentation_loss(logits, torch.ones(1, 8, 8), torch.from_numpy(shown[:1])).backward()
    assert logits.grad[0, :, 4:].abs().max() == 0 < logits.grad[0, :, :4].abs().min()


def test_the_loss_of_a_perfect_mask_is_nothing_and_of_its_opposite_much():
    truth = torch.from_numpy(TRUTH)
    shown = torch.ones_like(truth)
    right, wrong = 40 * (2 * truth.float() - 1), 40 * (1 - 2 * truth.float())
    assert segmentation_loss(right, truth, shown) == pytest.approx(0, abs=1e-6)
    assert segmentation_loss(wrong, truth, shown) == pytest.approx(40 + 1 - 1 / 33, rel=1e-5)


def test_the_decoder_sees_the_latents_and_each_image_alone():
    torch.manual_seed(0)
    decoder = SegmentationDecoder(6, 5, (4, 4), 18, width=16, heads=2, doublings=2)
    patches, latents = torch.randn(2, 16, 6), torch.randn(2, 3, 5)
    both = decoder(patches, latents)
    assert both.shape == (2, 18, 18)
    assert torch.allclose(decoder(patches[:1], latents[:1])[0], both[0], atol=1e-6)
    assert not torch.allclose(decoder(patches, latents + 1 * torch.arange(5.0)), both)


def test_widths_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        SegmentationDecoder(6, 5, (4, 4), 16, width=24, heads=4, doublings=2)
    with pytest.raises(ValueError, match="epochs"):
        SegmentConfig(epochs=0)
