"""The decoder against independent statements: teacher forcing word by word, greedy and exhaustive search."""

import itertools
import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config

from cogaze.generate import BeamConfig
from cogaze.losses.words import IGNORED, token_nll_sum
from cogaze.models.decoder import CrossAttentionDecoder

BEGIN, END, PAD, WORDS, LONGEST = 0, 1, 2, 5, 3
ENDS = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}


@pytest.fixture(scope="module")
def decoder():
    """Five tokens, sharp enough that no two texts are about as probable."""
    torch.manual_seed(3)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": WORDS}
    made = CrossAttentionDecoder(GPT2Config(add_cross_attention=True, is_decoder=True, **sizes, **ENDS), 8).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.6)
    return made


@pytest.fixture(scope="module")
def latents():
    return torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


def log_probability(decoder, latents, tokens):
    """Of one row's tokens after the beginning, one at a time."""
    total, shown = 0.0, [BEGIN]
    for token in tokens:
        ids = torch.tensor([shown])
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            logits = decoder(latents[None], ids, mask, torch.zeros_like(mask))[0, -1]
        total += float(logits.log_softmax(dim=0)[token])
        shown.append(token)
    return total


def written(decoder, latents, search):
    begun = torch.full((len(latents), 1), BEGIN)
    mask = torch.ones_like(begun, dtype=torch.bool)
    rows = decoder.write(latents, begun, mask, torch.zeros_like(mask), **ENDS, **search.options(LONGEST)).tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def texts():
    """Every text: of words, ended, or cut at the longest."""
    words = [token for token in range(WORDS) if token != END]
    for length in range(LONGEST):
        for said in itertools.product(words, repeat=length):
            yield [*said, END]
    yield from (list(said) for said in itertools.product(words, repeat=LONGEST))


def test_one_beam_says_the_most_probable_word_each_time(decoder, latents):
    for row, found in zip(latents, written(decoder, latents, BeamConfig(beams=1)), strict=True):
        said = []
        while len(said) < LONGEST and END not in said:
            said.append(max(range(WORDS), key=lambda token: log_probability(decoder, row, [*said, token])))
        assert found == said


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
def test_as_many_beams_as_there_are_texts_find_the_best_of_all(decoder, latents, penalty):
    search = BeamConfig(beams=WORDS**LONGEST, length_penalty=penalty, to_the_end=True)
    for row, found in zip(latents[:2], written(decoder, latents[:2], search), strict=True):
        score = {tuple(one): log_probability(decoder, row, one) / len(one) ** penalty for one in texts()}
        assert score[tuple(found)] == pytest.approx(max(score.values()), abs=1e-5)


def test_latents_of_its_own_row_alone_change_what_is_said(decoder, latents):
    ids = torch.tensor([[BEGIN, 3, 4]]).expand(4, -1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        whole = decoder(latents, ids, mask, torch.zeros_like(mask))
        alone = decoder(latents[1:2], ids[1:2], mask[1:2], torch.zeros_like(mask[1:2]))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_padding_after_a_text_changes_nothing_before_it(decoder, latents):
    short = torch.tensor([[BEGIN, 3]])
    long = torch.tensor([[BEGIN, 3, PAD, PAD]])
    mask = long != PAD
    with torch.no_grad():
        one = decoder(latents[:1], short, short >= 0, torch.zeros_like(short, dtype=torch.bool))
        other = decoder(latents[:1], long, mask, torch.zeros_like(mask))
    torch.testing.assert_close(other[:, :2], one, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_sum_of_what_each_word_costs(decoder, latents):
    said = [3, 4, END]
    ids = torch.tensor([[BEGIN, 3, 4], [PAD, PAD, PAD]])
    labels = torch.tensor([said, [IGNORED] * 3])
    mask = torch.tensor([[True] * 3, [True, False, False]])
    with torch.no_grad():
        loss = token_nll_sum(decoder(latents[:2], ids, mask, torch.zeros_like(mask)), labels)
    assert float(loss.total) == pytest.approx(-log_probability(decoder, latents[0], said), rel=1e-5)
    assert float(loss.count) == 3
    assert math.isfinite(float(loss.total))
