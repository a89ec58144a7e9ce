"""Class-balanced binary cross-entropy: published numbers, a formula per cell, unknown labels."""

import math

import numpy as np
import pytest
import torch

from cogaze.losses.labels import class_balanced_bce, class_balanced_bce_sum, class_balanced_weights

LABELS = torch.tensor([[0, 1, 1], [1, 0, 0]])
LOGITS = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -40.0]])
WEIGHTS = torch.tensor([0.5, 1.0, 1.5])


def cell_loss(row, col):
    """Weighted cross-entropy of one cell."""
    chance = 1 / (1 + math.exp(-LOGITS[row, col].item()))
    return -WEIGHTS[col].item() * math.log(chance if LABELS[row, col] else 1 - chance)


def test_published_weights_values_and_gradients(shared):
    saved = np.load(shared / "parity/cogaze_class_balanced.npz")
    weights = class_balanced_weights(torch.from_numpy(saved["positives_per_class"]), saved["beta"].item())
    np.testing.assert_allclose(weights, saved["weights"], rtol=1e-5)
    logits = torch.from_numpy(saved["logits"]).requires_grad_()
    loss = class_balanced_bce(logits, torch.from_numpy(saved["labels"]), weights)
    loss.backward()
    assert loss.item() == pytest.approx(saved["loss"], rel=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), saved["grad_logits"], rtol=1e-5, atol=1e-9)


def test_weights_are_one_over_the_effective_number():
    weights = class_balanced_weights([1, 2, 1000], beta=0.5)
    inverse = [1 / sum(0.5**i for i in range(n)) for n in (1, 2, 1000)]  # 1 + β + ... + βⁿ⁻¹
    assert weights.tolist() == pytest.approx([3 * value / sum(inverse) for value in inverse])
    assert weights.sum() == pytest.approx(3)


def test_weights_of_one_class_and_of_beta_zero_are_one():
    assert class_balanced_weights([7]).tolist() == pytest.approx([1])
    assert class_balanced_weights([7, 70], beta=0).tolist() == [1, 1]


def test_a_class_without_positives_is_as_good_as_left_out():
    weights = class_balanced_weights([3, 0, 50], beta=0.99)
    assert weights[1] == 0
    assert weights.sum() == pytest.approx(3)
    others = class_balanced_weights([3, 50], beta=0.99)
    assert (weights[0] / weights[2]).item() == pytest.approx((others[0] / others[1]).item())
    all_classes = class_balanced_bce(LOGITS, LABELS, weights)
    assert all_classes.item() == pytest.approx(class_balanced_bce(LOGITS[:, ::2], LABELS[:, ::2], others).item())


@pytest.mark.parametrize(
    ("positives", "beta", "message"),
    [
        ([0, 0], 0.9, "none of the 2 classes has a positive case .* set the weight of the disease losses to 0"),
        ([3, math.nan], 0.9, "nan"),
        ([3, -1], 0.9, "-1"),
        ([3], 1.0, "beta is 1.0"),
    ],
)
def test_impossible_weights_are_refused(positives, beta, message):
    with pytest.raises(ValueError, match=message):
        class_balanced_weights(positives, beta)


def test_mean_over_all_cells():
    expected = [cell_loss(row, col) for row in range(2) for col in range(3) if (row, col) != (1, 2)]
    assert class_balanced_bce(LOGITS, LABELS, WEIGHTS).item() == pytest.approx(sum(expected) / 6, rel=1e-6)


def test_unknown_cells_leave_sum_count_and_gradient():
    known = torch.tensor([[True, False, True], [False, True, False]])
    logits = LOGITS.clone().requires_grad_()
    loss = class_balanced_bce_sum(logits, LABELS.masked_fill(~known, -1), WEIGHTS, known)
    assert loss.count == 3
    assert loss.total.item() == pytest.approx(cell_loss(0, 0) + cell_loss(0, 2) + cell_loss(1, 1), rel=1e-6)
    loss.total.backward()
    assert logits.grad[~known].eq(0).all()
    assert logits.grad[known].ne(0).all()


def test_nothing_known_is_zero_with_a_gradient_of_zero():
    logits = LOGITS.clone().requires_grad_()
    loss = class_balanced_bce_sum(logits, LABELS, WEIGHTS, torch.zeros(2, 3, dtype=torch.bool))
    loss.total.backward()
    assert loss.total == loss.count == 0
    assert logits.grad.eq(0).all()


def test_bfloat16_is_computed_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        loss = class_balanced_bce(LOGITS.bfloat16(), LABELS, WEIGHTS)
    assert loss.dtype == torch.float32
    assert loss == class_balanced_bce(LOGITS.bfloat16().float(), LABELS, WEIGHTS)
