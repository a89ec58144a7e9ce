"""EGMA's losses: published numbers, a loop over images, what does not exist, and that many processes are one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import in_processes

from cogaze.losses.egma import (
    batch_contrastive,
    batch_contrastive_sum,
    cross_modal_mapping,
    cross_modal_mapping_sum,
    gaze_mlce,
    gaze_mlce_sum,
)

LOSSES = ("batch_contrastive", "gaze_mlce", "sparc", "gaze_sparc")


def loss_of(name, given, **options):
    inputs = [given[one] for one in ("patch_embed", "sentence_embed", "sentences_per_image")]
    gaze = {"heatmap": given["heatmap_7x7"], "has_gaze": given["has_gaze"]}
    scale = given["log_logit_scale"]
    if name == "batch_contrastive":
        return batch_contrastive(*inputs, scale, **options).loss
    if name == "gaze_mlce":
        return gaze_mlce(*inputs, *gaze.values(), scale, **options)
    if name == "sparc":
        return cross_modal_mapping(*inputs, scale, threshold=2 / 7, text_weight=0.3)
    return cross_modal_mapping(*inputs, scale, **gaze)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["equal", "ragged"])
def test_published_values_and_gradients(shared, kind, name):
    saved = np.load(shared / f"parity/egma_{kind}_sentences.npz")
    given = {key: torch.from_numpy(saved[key]) for key in saved.files}
    learned = [given[one].requires_grad_() for one in ("patch_embed", "sentence_embed")]
    options = {"pad_with_zeros": True} if name == "batch_contrastive" else {}
    loss = loss_of(name, given, **options)
    assert loss.item() == pytest.approx(given[name].item(), rel=1e-5)
    for grad, side in zip(torch.autograd.grad(loss, learned), ("patch", "sentence"), strict=True):
        expected = given[f"grad_{side}_{name}"]
        assert (grad[: len(expected)] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_published_similarities(shared):
    saved = np.load(shared / "parity/egma_ragged_sentences.npz")
    given = {key: torch.from_numpy(saved[key]) for key in saved.files}
    inputs = [given[one] for one in ("patch_embed", "sentence_embed", "sentences_per_image", "log_logit_scale")]
    found = batch_contrastive(*inputs, pad_with_zeros=True)
    torch.testing.assert_close(found.patch_similarity, given["patch_similarity"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sentence_similarity, given["sentence_similarity"], rtol=1e-5, atol=1e-6)
    assert found.loss != batch_contrastive(*inputs).loss  # padding is masked by default


# --- a loop over images

COUNTS = (3, 1, 0, 2, 5)
PATCHES, DIM = 9, 6


def drawn(seed=0, counts=COUNTS):
    """Random unit embeddings with maps that have zeros; image 3 has no gaze, image 2 nothing to say."""
    draw = torch.Generator().manual_seed(seed)
    sentences = sum(counts)
    heatmap = torch.rand(sentences, PATCHES, generator=draw)
    return {
        "patch_embed": F.normalize(torch.randn(len(counts), PATCHES, DIM, generator=draw), dim=-1),
        "sentence_embed": F.normalize(torch.randn(sentences, DIM, generator=draw), dim=-1),
        "sentences_per_image": torch.tensor(counts),
        "heatmap_7x7": heatmap * (heatmap > 0.4),
        "has_gaze": torch.tensor([True, True, True, False, True])[: len(counts)],
        "log_logit_scale": torch.tensor(1.3),
    }


def one_by_one(given):
    """(patches, sentences, map, has gaze) of each image that has sentences."""
    parts = [given[name].split(given["sentences_per_image"].tolist()) for name in ("sentence_embed", "heatmap_7x7")]
    rows = zip(given["patch_embed"], *parts, given["has_gaze"].tolist(), strict=True)
    return [row for row in rows if len(row[1])]


def contrastive_loop(given):
    images = one_by_one(given)
    rows = []
    for patch, *_ in images:
        similar = [sentence @ patch.T for _, sentence, *_ in images]
        rows.append([(one.amax(0).mean(), one.amax(1).mean()) for one in similar])
    logits = torch.tensor(rows) * given["log_logit_scale"].exp()
    target = torch.arange(len(images))
    return (F.cross_entropy(logits[..., 0], target) + F.cross_entropy(logits[..., 1], target)) / 2


def multi_label(scores, positive):
    """log of 1 + the sums over pairs of Su et al., written with plain sums."""
    return torch.log1p((-scores[positive]).exp().sum()) + torch.log1p(scores[~positive].exp().sum())


def mlce_loop(given):
    found = []
    for patch, sentence, heatmap, has_gaze in one_by_one(given):
        if has_gaze:
            scores, looked = sentence @ patch.T * given["log_logit_scale"].exp(), heatmap > 0
            rows = [multi_label(*pair) for pair in zip(scores, looked, strict=True)]
            columns = [multi_label(*pair) for pair in zip(scores.T, looked.T, strict=True)]
            found.append(0.8 * sum(rows) / len(rows) + 0.2 * sum(columns) / len(columns))
    return sum(found) / len(found)


def mapping_loop(given):
    found = []
    for patch, sentence, heatmap, has_gaze in one_by_one(given):
        scale, share = given["log_logit_scale"].exp(), 0.3 if has_gaze else 0.5
        term = {}
        for side, own, other, looked in (
            ("text", sentence, patch, heatmap / 2),
            ("image", patch, sentence, heatmap.T / 2),
        ):
            pooled = []
            for item, seen in zip(own, looked, strict=True):
                similar = other @ item
                spread = similar.max() - similar.min()
                weight = (similar - similar.min()) / spread if spread > 0 else torch.zeros_like(similar)
                if has_gaze:
                    weight = (weight / 2 if side == "text" else weight) + seen
                weight = torch.where(weight < (3 if has_gaze else 1) / 7, 0, weight) + 0.01
                pooled.append(weight / weight.sum() @ other)
            logits = scale * torch.stack(pooled) @ own.T
            same = torch.arange(len(own))
            term[side] = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
            if len(sentence) == 1:
                term[side] = ((pooled[0] - sentence[0]) ** 2).sum() if side == "text" else torch.tensor(0.0)
        found.append(share * term["text"] + (1 - share) * term["image"])
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("name", "loop"),
    [("batch_contrastive", contrastive_loop), ("gaze_mlce", mlce_loop), ("gaze_sparc", mapping_loop)],
)
def test_the_same_as_a_loop_over_images(name, loop):
    given = drawn()
    assert loss_of(name, given).item() == pytest.approx(loop(given).item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_without_sentences_does_not_count(name):
    given = drawn()
    spoken = given["sentences_per_image"] > 0
    less = {
        key: value[spoken] if len(value.shape) and len(value) == len(COUNTS) else value for key, value in given.items()
    }
    assert loss_of(name, less).item() == pytest.approx(loss_of(name, given).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_said_or_looked_at_is_zero_with_gradients_of_zero(name):
    given = drawn(counts=(0, 0))
    given["sentence_embed"] = F.normalize(torch.ones(1, DIM), dim=-1)  # the dummy that a text tower needs
    given["heatmap_7x7"] = torch.zeros(1, PATCHES)
    learned = [given[one].requires_grad_() for one in ("patch_embed", "sentence_embed", "log_logit_scale")]
    loss = loss_of(name, given)
    assert loss == 0
    assert all(grad.eq(0).all() for grad in torch.autograd.grad(loss, learned))


def test_a_patch_equally_similar_to_every_sentence_divides_by_nothing():
    given = drawn(counts=(3, 2))
    given["sentence_embed"][:3] = given["sentence_embed"][0].clone()
    given["patch_embed"].requires_grad_()
    loss = loss_of("gaze_sparc", given)
    (grad,) = torch.autograd.grad(loss, given["patch_embed"])
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_a_map_without_gaze_or_the_reverse_is_refused():
    given = drawn()
    inputs = [given[one] for one in ("patch_embed", "sentence_embed", "sentences_per_image", "log_logit_scale")]
    with pytest.raises(ValueError, match="go together"):
        cross_modal_mapping(*inputs, heatmap=given["heatmap_7x7"])


def sums_of(given, **options):
    inputs = [given[one] for one in ("patch_embed", "sentence_embed", "sentences_per_image")]
    gaze = {"heatmap": given["heatmap_7x7"], "has_gaze": given["has_gaze"]}
    scale = given["log_logit_scale"]
    return [
        batch_contrastive_sum(*inputs, scale, **options),
        gaze_mlce_sum(*inputs, *gaze.values(), scale, **options),
        cross_modal_mapping_sum(*inputs, scale, **gaze, **options),
    ]


def test_patches_outside_the_image_do_not_exist():
    given = drawn()
    shown = torch.arange(PATCHES) < PATCHES - 3
    cut = {**given, "patch_embed": given["patch_embed"][:, shown], "heatmap_7x7": given["heatmap_7x7"][:, shown]}
    masked = sums_of(given, patch_mask=shown.expand(len(COUNTS), -1))
    for whole, part in zip(sums_of(cut), masked, strict=True):
        assert part.total.item() == pytest.approx(whole.total.item(), rel=1e-5)
        assert part.count == whole.count


# --- many processes are one

SPLIT = ((2, 1, 0, 3), (0, 0, 0, 0), (1, 0, 4, 0))  # uneven over two processes; nothing; gaze in one only


def batch_of(counts):
    given = drawn(seed=len(SPLIT), counts=counts) if sum(counts) else drawn(seed=9, counts=(1, *counts[1:]))
    given["sentences_per_image"] = torch.tensor(counts)
    given["has_gaze"] = torch.tensor([True, True, False, False])
    return given


def share_of(given, rank):
    """What process `rank` of two has; a process where nobody speaks gets a dummy sentence."""
    rows = slice(rank * 2, rank * 2 + 2)
    before, here = given["sentences_per_image"][: rank * 2].sum(), given["sentences_per_image"][rows].sum()
    own = slice(before, before + max(1, here)) if before < len(given["sentence_embed"]) else slice(0, 1)
    sentences = {name: given[name][own] for name in ("sentence_embed", "heatmap_7x7")}
    images = {name: given[name][rows] for name in ("patch_embed", "sentences_per_image", "has_gaze")}
    return {**sentences, **images, "log_logit_scale": given["log_logit_scale"]}


def learn(given, share, world):
    """Mean losses over the world, and the gradient of a linear map of all embeddings."""
    towers = torch.eye(DIM).requires_grad_()
    scale = given["log_logit_scale"].clone().requires_grad_()
    mapped = {
        **share,
        "patch_embed": F.normalize(share["patch_embed"] @ towers, dim=-1),
        "sentence_embed": F.normalize(share["sentence_embed"] @ towers.mT, dim=-1),
        "log_logit_scale": scale,
    }
    losses = []
    for loss in sums_of(mapped):
        count = loss.count.clone()
        if world > 1:
            dist.all_reduce(count)
        losses.append(world * loss.total / count.clamp(min=1))
    grads = torch.cat([grad.flatten() for grad in torch.autograd.grad(sum(losses), [towers, scale])])
    return {"losses": torch.stack(losses).detach(), "grad": grads}


def process(folder):
    rank = dist.get_rank()
    found = []
    for counts in SPLIT:
        given = batch_of(counts)
        one = learn(given, share_of(given, rank), 2)
        for value in one.values():
            dist.all_reduce(value)
            value /= 2
        found.append(one)
    torch.save(found, folder / f"{rank}.pt")


def test_two_processes_are_one(tmp_path):
    in_processes(process, tmp_path)
    both = torch.load(tmp_path / "0.pt")
    for counts, found in zip(SPLIT, both, strict=True):
        given = batch_of(counts)
        whole = learn(given, given, 1)
        torch.testing.assert_close(found["losses"], whole["losses"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["grad"], whole["grad"], rtol=1e-4, atol=1e-6)
