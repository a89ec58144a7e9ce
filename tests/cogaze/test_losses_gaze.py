"""The gaze loss: published numbers, a slow loop over every row, and batches without gaze."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cogaze.losses.gaze import _Cosine, soft_gaze_loss, soft_gaze_loss_sum

LEARNED = ("image_feat", "transcript_feat", "log_logit_scale")


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=False)


def assert_near(actual, expected, tolerance=1e-5):
    """Largest difference within tolerance of the largest expected value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.detach().abs().max().item())


@pytest.mark.parametrize("name", ["topk0.25", "topknone"])
def test_published_values_and_gradients(shared, name):
    saved = np.load(shared / f"parity/cogaze_soft_gaze_{name}.npz")
    given = {key: torch.from_numpy(saved[key]) for key in saved.files}
    learned = [given[key].requires_grad_() for key in LEARNED]
    ratio, weight = given["topk_ratio"].item(), given["t2i_weight"].item()
    loss = soft_gaze_loss(
        learned[0],
        learned[1],
        given["heatmap"],
        given["sentence_image_index"],
        learned[2],
        topk_ratio=ratio,
        t2i_weight=weight,
    )
    assert_near(loss.detach(), given["loss"])
    for key, grad in zip(LEARNED, gradients(loss, learned), strict=True):
        assert_near(grad, given[f"grad_{key}"])


# --- a slow independent statement


def divergence(p, q):
    """Jensen–Shannon divergence of two vectors, 1e-8 inside the logarithms."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        mean = torch.log((a + b) / 2 + 1e-8)
        total = total + 0.5 * a * (torch.log(a + 1e-8) - mean) + 0.5 * b * (torch.log(b + 1e-8) - mean)
    return total


def target_of(row, ratio):
    """A row of the heatmap cut to its strongest cells and normalised, or None where there is no mass."""
    strongest = sorted((i for i in range(len(row)) if row[i] > 1e-8), key=lambda i: -row[i])
    if ratio:
        strongest = strongest[: max(1, math.floor(ratio * len(strongest)))]
    mass = sum(float(row[i]) for i in strongest)
    if not strongest:
        return None
    return [float(row[i]) / (mass + 1e-8) if i in strongest else 0.0 for i in range(len(row))]


def weighted_mean(rows, maps, weights, ratio):
    total, count = 0.0, 0.0
    for row, cells, weight in zip(rows, maps, weights, strict=True):
        target = target_of(cells, ratio)
        if target is not None:
            total, count = total + weight * divergence(torch.tensor(target), torch.softmax(row, 0)), count + weight
    return total / count if count else total


def slow_loss(case, ratio, t2i_weight):
    """Sum over images, each patch and sentence on its own, in float64; images with gaze beside it."""
    total, images = torch.zeros(()), 0
    for i in range(len(case["image_feat"])):
        own = [s for s, image in enumerate(case["sentence_image_index"].tolist()) if image == i]
        own = [s for s in own if case["sentence_weight"][s] > 0]
        if not own:
            continue
        shown = case["patch_mask"][i].nonzero().flatten()
        text = torch.stack([case["transcript_feat"][s] / case["transcript_feat"][s].norm() for s in own])
        patches = torch.stack([v / v.norm() for v in case["image_feat"][i, 1:][shown]])
        logits = torch.exp(case["log_logit_scale"]) * torch.stack([torch.stack([t @ v for v in patches]) for t in text])
        heatmap = case["heatmap"][own][:, shown]
        weights = case["sentence_weight"][own].tolist()
        to_image = weighted_mean(logits, heatmap, weights, ratio)
        to_text = weighted_mean(logits.T, heatmap.T, [1.0] * len(shown), ratio)
        total, images = total + t2i_weight * to_image + (1 - t2i_weight) * to_text, images + 1
    return total, images


def ragged_case(seed):
    """Five images of 12 patches with 0 to 6 sentences each in random order, empty rows and empty patches."""
    rng = np.random.default_rng(seed)
    images, patches, dim = 5, 12, 6
    index = rng.permutation(np.repeat(np.arange(images), rng.integers(0, 7, images)))
    heatmap = rng.uniform(0.1, 5, (len(index), patches)) * (rng.random((len(index), patches)) < 0.6)
    heatmap[rng.random(len(index)) < 0.2] = 0
    case = {
        "image_feat": rng.normal(size=(images, 1 + patches, dim)),
        "transcript_feat": rng.normal(size=(len(index), dim)),
        "heatmap": heatmap,
        "sentence_image_index": index,
        "log_logit_scale": np.array(1.3),
        "sentence_weight": rng.choice([0.0, 0.2, 0.5, 1.0], len(index)),
        "patch_mask": rng.random((images, patches)) < 0.8,
    }
    return {key: torch.from_numpy(value) for key, value in case.items()}


def loss_sum(case, **options):
    return soft_gaze_loss_sum(*(case[key] for key in (*LEARNED[:2], "heatmap", "sentence_image_index")),
                              case["log_logit_scale"], sentence_weight=case["sentence_weight"],
                              patch_mask=case["patch_mask"], **options)  # fmt: skip


def single(case):
    """The same in float32, with gradients."""
    floats = {key: value.float() if value.is_floating_point() else value for key, value in case.items()}
    return floats | {key: floats[key].requires_grad_() for key in LEARNED}


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, None])
@pytest.mark.parametrize("seed", range(4))
def test_a_slow_loop_gives_the_same(seed, ratio):
    exact, fast = ragged_case(seed), single(ragged_case(seed))
    for key in LEARNED:
        exact[key].requires_grad_()
    total, images = slow_loss(exact, ratio, 0.3)
    loss = loss_sum(fast, topk_ratio=ratio, t2i_weight=0.3)
    assert loss.count == images
    assert_near(loss.total.double(), total, 1e-6)
    expected = gradients(total, [exact[key] for key in LEARNED])
    for grad, slow in zip(gradients(loss.total, [fast[key] for key in LEARNED]), expected, strict=True):
        assert_near(grad.double(), slow, 3e-6)


def test_the_mean_is_the_sum_over_images_with_gaze():
    case = single(ragged_case(0))
    case["sentence_weight"] = torch.ones(len(case["heatmap"]))
    case["patch_mask"] = torch.ones_like(case["patch_mask"])
    loss = loss_sum(case)
    assert loss.count == len(case["sentence_image_index"].unique())
    mean = soft_gaze_loss(*(case[key] for key in (*LEARNED[:2], "heatmap", "sentence_image_index")),
                          case["log_logit_scale"])  # fmt: skip
    assert mean == loss.total / loss.count


def test_order_of_sentences_and_scale_of_the_map_change_nothing():
    case = single(ragged_case(1))
    order = torch.randperm(len(case["heatmap"]), generator=torch.Generator().manual_seed(0))
    per_sentence = ("transcript_feat", "heatmap", "sentence_image_index", "sentence_weight")
    shuffled = case | {key: case[key][order] for key in per_sentence}
    assert_near(loss_sum(shuffled).total, loss_sum(case).total, 1e-6)
    assert_near(loss_sum(case | {"heatmap": case["heatmap"] * 1000}).total, loss_sum(case).total, 1e-6)


def test_letterbox_patches_do_not_exist():
    case = single(ragged_case(2))
    hidden = torch.cat([torch.ones(5, 1, dtype=torch.bool), ~case["patch_mask"]], dim=1)  # CLS takes no part either
    other = case["image_feat"].detach().masked_fill(hidden[..., None], 7.0).requires_grad_()
    loss = loss_sum(case | {"image_feat": other}).total
    assert_near(loss, loss_sum(case).total, 1e-6)
    assert gradients(loss, [other])[0][hidden].eq(0).all()


@pytest.mark.parametrize("width", [3, 1])
def test_of_equal_cells_some_stay_and_nothing_breaks(width):
    heatmap = torch.ones(width, 8)
    feat = torch.ones(1, 9, 4).requires_grad_()
    loss = soft_gaze_loss(feat, torch.ones(width, 4), heatmap, torch.zeros(width, dtype=torch.int64), torch.tensor(0.0))

    # Text to image: two of eight cells at 1/2 against 1/8; image to text: one of `width` against 1/width.
    def js(p, q):
        p, q = torch.tensor(p), torch.tensor(q)
        mean = (p + q) / 2
        return (torch.xlogy(p, p / mean) + torch.xlogy(q, q / mean)).sum() / 2

    expected = 0.2 * js([0.5] * 2 + [0.0] * 6, [0.125] * 8) + 0.8 * js([1.0] + [0.0] * (width - 1), [1 / width] * width)
    assert_near(loss.detach(), expected, 1e-6)


# --- without gaze


def without_sentences(case):
    per_sentence = ("transcript_feat", "heatmap", "sentence_image_index", "sentence_weight")
    return case | {key: case[key][:0].detach() for key in per_sentence}


def with_a_dummy(case):
    per_sentence = ("transcript_feat", "heatmap", "sentence_image_index", "sentence_weight")
    one = case | {key: case[key][:1].detach() for key in per_sentence}
    return one | {"sentence_weight": torch.zeros(1), "heatmap": torch.zeros(1, 12)}


def with_empty_maps(case):
    return case | {"heatmap": torch.zeros_like(case["heatmap"])}


def with_no_patch(case):
    return case | {"patch_mask": torch.zeros_like(case["patch_mask"])}


@pytest.mark.parametrize("change", [without_sentences, with_a_dummy, with_empty_maps, with_no_patch])
def test_no_gaze_is_zero_with_gradients_of_zero(change):
    case = change(single(ragged_case(3)))
    learned = [case[key].detach().requires_grad_() for key in LEARNED]
    loss = loss_sum(case | dict(zip(LEARNED, learned, strict=True)))
    assert loss.total == 0
    assert (loss.count == 0) == (change in (without_sentences, with_a_dummy))
    for tensor, grad in zip(learned, gradients(loss.total, learned), strict=True):
        assert grad.shape == tensor.shape
        assert grad.eq(0).all()


def test_the_mean_without_gaze_is_zero_too():
    case = without_sentences(single(ragged_case(3)))
    scale = torch.tensor(2.0, requires_grad=True)
    loss = soft_gaze_loss(case["image_feat"], case["transcript_feat"], case["heatmap"],
                          case["sentence_image_index"], scale)  # fmt: skip
    assert loss == 0
    assert gradients(loss, [scale])[0] == 0


# --- precision


def test_bfloat16_is_computed_in_float32():
    case = single(ragged_case(1))
    half = {key: case[key].detach().bfloat16() for key in LEARNED[:2]}
    learned = [half[key].requires_grad_() for key in LEARNED[:2]]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_sum(case | half).total
    assert loss.dtype == torch.float32
    assert loss == loss_sum(case | {key: value.detach().float() for key, value in half.items()}).total
    assert all(grad.dtype == torch.bfloat16 and grad.isfinite().all() for grad in gradients(loss, learned))


def test_cosine_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    image = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(_Cosine.apply(text, image), text @ F.normalize(image, dim=-1).mT)
    assert torch.autograd.gradcheck(_Cosine.apply, (text, image))


def test_a_zero_patch_has_a_finite_gradient():
    image = torch.zeros(1, 3, 4, requires_grad=True)
    loss = soft_gaze_loss(image, torch.ones(1, 4), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), torch.tensor(1))
    assert gradients(loss, [image])[0].isfinite().all()


def test_a_map_on_another_grid_is_refused():
    case = single(ragged_case(0))
    with pytest.raises(ValueError, match="12 cells and the image 11 patches"):
        loss_sum(case | {"image_feat": case["image_feat"][:, 1:]})
