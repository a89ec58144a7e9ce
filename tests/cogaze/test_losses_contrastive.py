"""Multi-positive InfoNCE: published numbers, a loop, masks; and for all losses, that many processes are one."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cogaze.losses.contrastive import multi_positive_loss, multi_positive_loss_sum
from cogaze.losses.gaze import soft_gaze_loss_sum
from cogaze.losses.labels import class_balanced_bce_sum

DIM = 6


def assert_near(actual, expected, tolerance=1e-5):
    """Largest difference within tolerance of the largest expected value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.detach().abs().max().item())


def test_published_values_and_gradients(shared):
    saved = np.load(shared / "parity/cogaze_multi_positive.npz")
    given = {key: torch.from_numpy(saved[key]) for key in saved.files}
    names = ("image_embed", "text_embed", "log_logit_scale")
    learned = [given[name].requires_grad_() for name in names]
    loss = multi_positive_loss(learned[0], learned[1], given["study_id"], learned[2])
    assert_near(loss.detach(), given["loss"])
    for name, grad in zip(names, torch.autograd.grad(loss, learned), strict=True):
        assert_near(grad, given[f"grad_{name}"])


def embeddings(rows, seed=0):
    return torch.randn(2, rows, DIM, generator=torch.Generator().manual_seed(seed))


def loop_loss(image, text, study, scale):
    """Mean over rows and directions, one pair at a time, in float64."""
    image = [row / np.linalg.norm(row) for row in image.double().numpy()]
    text = [row / np.linalg.norm(row) for row in text.double().numpy()]
    total = 0.0
    for queries, keys in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            weights = [math.exp(scale * query @ key) for key in keys]
            positive = [j for j in range(len(keys)) if study[j] == study[i]]
            total -= sum(math.log(weights[j] / sum(weights)) for j in positive) / len(positive)
    return total / 2 / len(image)


def test_a_loop_over_pairs_gives_the_same():
    image, text = embeddings(7)
    study = torch.tensor([4, -1, 4, 2**40, 4, -2, 2**40])
    loss = multi_positive_loss(image, text, study, torch.tensor(3.0).log())
    assert loss.item() == pytest.approx(loop_loss(image, text, study.tolist(), 3.0), rel=1e-6)


def test_masked_rows_are_neither_rows_nor_columns():
    image, text = embeddings(5).requires_grad_()
    study, keep = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([True, True, False, True, False])
    scale = torch.tensor(1.0)
    loss = multi_positive_loss_sum(image, text, study, scale, row_mask=keep)
    alone = multi_positive_loss(image[keep], text[keep], study[keep], scale)
    assert loss.count == 3
    assert_near(loss.total / 3, alone, 1e-6)
    for grad in torch.autograd.grad(loss.total, (image, text)):
        assert grad[~keep].eq(0).all()


def test_all_rows_masked_is_zero_with_gradients_of_zero():
    image, text = (tensor.detach().requires_grad_() for tensor in embeddings(3))
    scale = torch.tensor(1.0, requires_grad=True)
    loss = multi_positive_loss_sum(image, text, torch.arange(3), scale, row_mask=torch.zeros(3, dtype=torch.bool))
    assert loss.total == loss.count == 0
    assert all(grad.eq(0).all() for grad in torch.autograd.grad(loss.total, (image, text, scale)))


def test_bfloat16_is_computed_in_float32():
    image, text = embeddings(4).bfloat16()
    study, scale = torch.tensor([0, 0, 1, 2]), torch.tensor(2.6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = multi_positive_loss(image, text, study, scale)
    assert loss.dtype == torch.float32
    assert loss == multi_positive_loss(image.float(), text.float(), study, scale)


# --- many processes are one

PROCESSES, ROWS, PATCHES, CLASSES = 2, 8, 5, 3
STUDY = torch.tensor([0, 1, 2, 3, 0, 2, 0, -5])  # 0 and 2 on both processes
# Sentences of each image at each step: uneven over the processes, one process without gaze, none at all.
SENTENCES = ([0, 2, 1, 0, 3, 1, 0, 1], [0, 0, 0, 0, 2, 1, 0, 0], [0] * 8)
MASKED_ROWS: tuple[list[int], ...] = ([], [1, 5, 6], [4, 5, 6, 7])


class Towers(nn.Module):
    """Linear towers with the three losses; every loss is divided by its count over all processes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text, self.head = nn.Linear(4, DIM), nn.Linear(4, DIM), nn.Linear(DIM, CLASSES)
        self.scale, self.gaze_scale = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(1.0))

    def forward(self, batch, losses, gather=True):
        image, text = self.image(batch["image"]), self.text(batch["text"])
        sums = {
            "align": lambda: multi_positive_loss_sum(
                image[:, 0], text, batch["study"], self.scale, row_mask=batch["valid"], gather=gather
            ),
            "gaze": lambda: soft_gaze_loss_sum(
                image,
                self.text(batch["sentence"]),
                batch["heatmap"],
                batch["sentence_image"],
                self.gaze_scale,
                sentence_weight=batch["sentence_weight"],
            ),
            "labels": lambda: class_balanced_bce_sum(
                self.head(image[:, 0]), batch["label"], torch.tensor([0.5, 1.0, 1.5]), batch["known"]
            ),
        }
        total = torch.zeros(())
        for name in losses:
            loss = sums[name]()
            total = total + loss.total * world_size() / global_sum(loss.count).clamp(min=1)
        return total


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def global_sum(value):
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def batch_of(step, rows):
    """The rows of a global batch: same-study rows in both halves, masked rows and unknown labels unevenly."""
    rng = torch.Generator().manual_seed(step)
    image = torch.randn(ROWS, 1 + PATCHES, 4, generator=rng)
    text = torch.randn(ROWS, 4, generator=rng)
    owners = torch.tensor([i for i, n in enumerate(SENTENCES[step]) for _ in range(n)], dtype=torch.int64)
    sentence = torch.randn(len(owners), 4, generator=rng)
    heatmap = torch.rand(len(owners), PATCHES, generator=rng)
    valid = torch.ones(ROWS, dtype=torch.bool)
    valid[MASKED_ROWS[step]] = False
    known = torch.rand(ROWS, CLASSES, generator=rng) < torch.linspace(0.1, 1, ROWS)[:, None]
    label = (torch.rand(ROWS, CLASSES, generator=rng) < 0.5).float()
    own = (owners >= rows.start) & (owners < rows.stop)
    weight = torch.ones(int(own.sum()))
    if not own.any():  # the tower still sees one sentence, of weight 0
        sentence, heatmap, weight = torch.ones(1, 4), torch.zeros(1, PATCHES), torch.zeros(1)
        owners, own = torch.tensor([rows.start]), torch.tensor([True])
    return {
        "image": image[rows],
        "text": text[rows],
        "study": STUDY[rows],
        "valid": valid[rows],
        "sentence": sentence[own],
        "heatmap": heatmap[own],
        "sentence_image": owners[own] - rows.start,
        "sentence_weight": weight,
        "label": label[rows],
        "known": known[rows],
    }


def steps_of(model, rows, losses, gather=True):
    """Three steps of plain gradient descent; each step's loss, averaged over processes, and gradients."""
    done = []
    for step in range(len(SENTENCES)):
        model.zero_grad()
        loss = model(batch_of(step, rows), losses, gather)
        loss.backward()
        grads = [torch.zeros(1) if p.grad is None else p.grad.flatten().clone() for p in model.parameters()]
        done.append({"loss": global_sum(loss) / world_size(), "grad": torch.cat(grads)})
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    return done


CASES = {
    "align": (("align",), True),
    "gaze": (("gaze",), True),
    "labels": (("labels",), True),
    "total": (("align", "gaze", "labels"), True),
    "own columns": (("align",), False),
}


def run_process(folder):
    rank = dist.get_rank()
    share = ROWS // PROCESSES
    rows = slice(rank * share, (rank + 1) * share)
    results = {}
    for name, (losses, gather) in CASES.items():
        # Only the whole model uses every parameter, so only there may a missing gradient be an error.
        model = DistributedDataParallel(Towers(), find_unused_parameters=name != "total")
        results[name] = steps_of(model, rows, losses, gather)
    image, text = embeddings(ROWS)
    results["mean"] = multi_positive_loss(image[rows], text[rows], STUDY[rows], torch.tensor(1.0))
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes found: {case: steps}."""
    folder = tmp_path_factory.mktemp("two")
    in_processes(run_process, folder, processes=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("name", ["align", "gaze", "labels", "total"])
def test_two_processes_are_one(two_processes, name):
    whole = steps_of(Towers(), slice(0, ROWS), CASES[name][0])
    for own in two_processes:
        for step, expected in zip(own[name], whole, strict=True):
            assert step["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5, abs=1e-7)
            if expected["grad"].any():
                assert cosine(step["grad"], expected["grad"]) >= 0.999999
                assert step["grad"].norm().item() == pytest.approx(expected["grad"].norm().item(), rel=1e-5)
            else:
                assert not step["grad"].any()


def test_own_columns_only_would_differ(two_processes):
    whole = steps_of(Towers(), slice(0, ROWS), ("align",))
    assert cosine(two_processes[0]["own columns"][0]["grad"], whole[0]["grad"]) < 0.999


def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(two_processes):
    image, text = embeddings(ROWS)
    whole = multi_positive_loss(image, text, STUDY, torch.tensor(1.0))
    assert_near(sum(own["mean"] for own in two_processes) / 2, whole, 1e-6)
