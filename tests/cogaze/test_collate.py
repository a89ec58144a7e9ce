import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from cogaze.data.collate import (
    PUBLISHED_TOKENS,
    Batch,
    Collate,
    CollateConfig,
    TextConfig,
    add_special_tokens,
    count_positives,
    label_targets,
)
from cogaze.data.dataset import SECTIONS, Example

PATCHES = 4


def example(key="reflacx-000000000000", **changes):
    """A valid sample without gaze or text."""
    plain = Example(
        key=key,
        valid=True,
        pixels=np.full((8, 8), 51, np.uint8),
        patch_mask=np.array([True, True, False, False]),
        view_position=1,
        study_id=7,
        labels=np.full(14, -2, np.int8),
        sections=dict.fromkeys(SECTIONS, ""),
        transcript="",
        sentences=(),
        maps=np.zeros((0, PATCHES), np.float32),
    )
    sections = plain.sections | changes.pop("sections", {})
    return replace(plain, sections=sections, **changes)


def spoken(sentences=("clear lungs .", "no effusion ."), transcript="clear lungs . no effusion .", first=0):
    """The fields of a sample with gaze: the whole reading's map, then each sentence's, each on a patch of its own."""
    maps = np.roll(np.eye(PATCHES, dtype=np.float32), first, axis=1)[: 1 + len(sentences)]
    return {"sentences": sentences, "transcript": transcript, "maps": maps}


def texts_of(tokenizer, ids, mask):
    """Each row's text without what is masked, white space made single."""
    shown = (tokenizer.decode(row[keep]) for row, keep in zip(ids, mask, strict=True))
    return [re.sub(r"\s+", " ", text).strip() for text in shown]


class TestPrompts:
    def test_are_the_published_ones(self, tokenizer):
        sections = {"findings": "the heart is normal", "indication": "cough", "history": "fever"}
        batch = Collate(tokenizer)([example(sections=sections, **spoken())])
        assert texts_of(tokenizer, batch.report_input_ids, batch.report_mask) == [
            "[CLS] [FINDINGS] the heart is normal"
        ]
        context = texts_of(tokenizer, batch.context_input_ids, batch.context_mask)
        assert context == ["[CLS] [INDICATION] cough [SEP] [HISTORY] fever"]
        assert texts_of(tokenizer, batch.sentence_input_ids, batch.sentence_mask) == [
            "[CLS] [TRANSCRIPT] clear lungs .",
            "[CLS] [TRANSCRIPT] no effusion .",
            "[CLS] [TRANSCRIPT] clear lungs . no effusion .",
        ]

    @pytest.mark.parametrize(
        ("sections", "expected"),
        [
            ({"findings": "clear", "impression": "normal"}, "[CLS] [FINDINGS] clear"),
            ({"impression": "normal", "last_paragraph": "cough"}, "[CLS] [FINDINGS] normal"),
            ({"last_paragraph": "cough"}, "[CLS] [FINDINGS] cough"),
            ({"history": "cough"}, "[CLS] [FINDINGS]"),
        ],
    )
    def test_the_report_is_its_first_section_that_is_there(self, tokenizer, sections, expected):
        batch = Collate(tokenizer)([example(sections=sections)])
        assert texts_of(tokenizer, batch.report_input_ids, batch.report_mask) == [expected]
        assert batch.has_report.tolist() == [expected != "[CLS] [FINDINGS]"]

    def test_findings_alone_as_published(self, tokenizer):
        text = TextConfig(report_sections=("findings",))
        batch = Collate(tokenizer, CollateConfig(text))([example(sections={"impression": "normal"})])
        assert not batch.has_report.any()

    @pytest.mark.parametrize("section", ["indication", "history"])
    def test_context_is_told_by_a_boolean_and_one_of_both_is_enough(self, tokenizer, section):
        batch = Collate(tokenizer)([example(), example(sections={section: "cough"})])
        assert batch.has_context.tolist() == [False, True]
        assert batch.context_mask.sum(dim=1)[0] == 1  # the dummy token: nothing is ever empty
        assert batch.context_input_ids[0, 0] == tokenizer.pad_token_id

    def test_an_earlier_study_fills_in_a_prompt_that_asks_for_it(self, tokenizer):
        asking = CollateConfig(TextConfig(context="[CLS] [INDICATION] {indication} [SEP] {prior}"))
        told = [{"prior": "clear lungs .", "indication": "cough"}, {"prior": "clear lungs ."}, {"prior": ""}]
        examples = [example(sections=sections) for sections in told]
        batch = Collate(tokenizer, asking)(examples)
        assert batch.has_context.tolist() == [True, True, False]
        assert texts_of(tokenizer, batch.context_input_ids, batch.context_mask)[:2] == [
            "[CLS] [INDICATION] cough [SEP] clear lungs .", "[CLS] [INDICATION] [SEP] clear lungs ."
        ]  # fmt: skip
        published = Collate(tokenizer)(examples)
        assert published.has_context.tolist() == [True, False, False]
        assert "clear" not in "".join(texts_of(tokenizer, published.context_input_ids, published.context_mask))

    def test_shards_without_earlier_studies_are_refused_by_a_prompt_that_asks_for_them(self, tokenizer):
        asking = CollateConfig(TextConfig(context="[CLS] {indication} {prior}"))
        with pytest.raises(ValueError, match=r"asks for \{prior\}.*build them with --sample.prior true, or leave"):
            Collate(tokenizer, asking)([example(sections={"indication": "cough"})])

    def test_are_cut_at_max_tokens(self, tokenizer):
        long = {"findings": "clear lungs . " * 50}
        batch = Collate(tokenizer, CollateConfig(TextConfig(max_tokens=20)))([example(sections=long), example()])
        assert batch.report_mask.shape == (2, 20)
        assert batch.report_mask.sum(dim=1)[1] < 4
        assert (batch.report_input_ids[~batch.report_mask] == tokenizer.pad_token_id).all()


class TestSentences:
    def test_each_lies_beside_its_image_and_map_and_the_transcript_is_one_more(self, tokenizer):
        batch = Collate(tokenizer)([example(**spoken()), example(), example(**spoken(("clear lungs .",), "cough", 1))])
        assert batch.sentence_image.tolist() == [0, 0, 0, 2, 2]
        assert batch.heatmap.argmax(dim=1).tolist() == [1, 2, 0, 2, 1]
        assert batch.sentence_weight.tolist() == [1.0] * 5
        assert batch.has_gaze.tolist() == [True, False, True]

    def test_without_any_there_is_a_dummy_of_weight_zero(self, tokenizer):
        batch = Collate(tokenizer)([example(), example()])
        assert batch.heatmap.tolist() == [[0.0] * PATCHES]
        assert (batch.sentence_weight.tolist(), batch.sentence_image.tolist()) == ([0.0], [0])
        assert batch.sentence_mask.any()
        assert not batch.has_gaze.any()

    def test_a_reading_without_words_has_none(self, tokenizer):
        batch = Collate(tokenizer)([example(**spoken((), ""))])
        assert batch.sentence_weight.tolist() == [0.0]
        assert not batch.has_gaze.any()

    def test_a_missing_transcript_is_its_sentences(self, tokenizer):
        batch = Collate(tokenizer)([example(**spoken(transcript=""))])
        assert texts_of(tokenizer, batch.sentence_input_ids, batch.sentence_mask)[2] == (
            "[CLS] [TRANSCRIPT] clear lungs . no effusion ."
        )

    def test_gaze_that_the_view_cut_away_is_no_gaze(self, tokenizer):
        seen = spoken()
        batch = Collate(tokenizer)([example(**seen | {"maps": seen["maps"] * 0})])
        assert len(batch.heatmap) == 3
        assert not batch.has_gaze.any()


class TestSpecialTokens:
    @pytest.mark.parametrize("kind", ["wordpiece", "bytepair"])
    def test_a_tokenizer_without_them_is_refused_with_the_cure(self, bare_tokenizers, kind):
        bare = AutoTokenizer.from_pretrained(bare_tokenizers[kind])
        with pytest.raises(ValueError, match=r"lacks .*\[FINDINGS\].*add_special_tokens .* embedding to len"):
            Collate(bare)

    def test_each_is_one_token_and_they_stand_in_the_published_order(self, bare_tokenizers):
        bare = AutoTokenizer.from_pretrained(bare_tokenizers["bytepair"])
        before = len(bare)
        assert add_special_tokens(bare) == len(PUBLISHED_TOKENS) == 8
        assert bare.convert_tokens_to_ids(list(PUBLISHED_TOKENS)) == list(range(before, before + 8))
        for token in PUBLISHED_TOKENS:
            assert len(bare(token, add_special_tokens=False)["input_ids"]) == 1
        assert (bare.pad_token, bare.sep_token, bare.cls_token) == ("[PAD]", "[SEP]", "[CLS]")

    def test_only_those_that_lack_are_added(self, bare_tokenizers):
        bare = AutoTokenizer.from_pretrained(bare_tokenizers["wordpiece"])
        pad = bare.pad_token_id
        assert add_special_tokens(bare) == 5
        assert add_special_tokens(bare) == 0
        assert bare.pad_token_id == pad

    def test_prompts_decide_which_are_needed(self, bare_tokenizers):
        bare = AutoTokenizer.from_pretrained(bare_tokenizers["wordpiece"])
        plain = TextConfig("[CLS] {report}", "[CLS] {indication} [SEP] {history}", "[CLS] {sentence}")
        Collate(bare, CollateConfig(plain))([example()])


class TestLabels:
    CODES = np.array([[1, 0, -1, -2] + [-2] * 10, [-2] * 14], np.int8)

    @pytest.mark.parametrize(
        ("policy", "values", "counts"),
        [
            ("published", [1, 0, 1, 0], [1, 1, 1, 1]),
            ("mask_uncertain", [1, 0, 1, 0], [1, 1, 0, 1]),
            ("mentioned", [1, 0, 1, 0], [1, 1, 0, 0]),
        ],
    )
    def test_policies(self, policy, values, counts):
        targets = label_targets(self.CODES, policy)
        assert targets.values[0, :4].tolist() == values
        assert targets.mask[0, :4].tolist() == [bool(count) for count in counts]
        assert not targets.mask[1].any()  # no label row at all

    def test_positives_are_counted_where_labels_count(self):
        assert count_positives(self.CODES, "published").tolist() == [1, 0, 1] + [0] * 11
        assert count_positives(self.CODES, "mask_uncertain").tolist() == [1] + [0] * 13

    def test_no_labels_at_all_stops_with_the_cure(self):
        with pytest.raises(ValueError, match=r"none of the 1 samples has labels .*sources.labels.* weight .* to 0"):
            count_positives(self.CODES[1:], "published")

    def test_an_unknown_policy_is_refused(self):
        with pytest.raises(ValueError, match="labels is 'maybe', must be one of published, mask_uncertain, mentioned"):
            CollateConfig(labels="maybe")


class TestAllSentences:
    CONFIG = CollateConfig(
        text=TextConfig("[CLS] {report}", "[CLS] {indication} {history}", "[CLS] {sentence}"), sentences="all"
    )
    REPORT = "1. Clear lungs, 1.5 cm. No effusion. ___"

    def batch(self, tokenizer, *examples) -> Batch:
        return Collate(tokenizer, self.CONFIG)(list(examples))

    def texts(self, tokenizer, batch):
        return [
            text.removeprefix("[CLS] ") for text in texts_of(tokenizer, batch.sentence_input_ids, batch.sentence_mask)
        ]

    def test_with_gaze_those_dictated_without_those_of_the_report(self, bare_tokenizers):
        tokenizer = AutoTokenizer.from_pretrained(bare_tokenizers["bytepair"])
        add_special_tokens(tokenizer)
        read, told = (
            example(**spoken(), sections={"findings": "not read."}),
            example(sections={"impression": self.REPORT}),
        )
        silent, filler = example(), example(valid=False)
        batch = self.batch(tokenizer, read, told, silent, filler)
        assert self.texts(tokenizer, batch) == [
            "clear lungs .", "no effusion .", "Clear lungs, 1.5 cm.", "No effusion.",
        ]  # fmt: skip
        assert batch.sentence_image.tolist() == [0, 0, 1, 1]
        assert batch.sentences_per_image.tolist() == [2, 2, 0, 0]
        assert batch.heatmap.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0] * 4, [0] * 4]
        assert batch.has_gaze.tolist() == [True, False, False, False]

    def test_a_sentence_without_gaze_of_its_own_has_the_whole_reading_s(self, tokenizer):
        given = spoken()
        given["maps"][2] = 0
        batch = self.batch(tokenizer, example(**given))
        assert batch.heatmap.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]

    def test_dictation_without_sentences_falls_back_to_the_report(self, tokenizer):
        batch = self.batch(tokenizer, example(**spoken(sentences=()), sections={"findings": "clear lungs ."}))
        assert batch.sentences_per_image.tolist() == [1]
        assert batch.has_gaze.tolist() == [False]

    def test_nothing_to_say_is_a_dummy_that_counts_nowhere(self, tokenizer):
        batch = self.batch(tokenizer, example(), example(valid=False))
        assert batch.sentence_weight.tolist() == [0]
        assert batch.sentence_mask.any()
        assert batch.sentences_per_image.tolist() == [0, 0]

    def test_an_unknown_rule_is_refused(self):
        with pytest.raises(ValueError, match="sentences is 'some', must be gaze or all"):
            CollateConfig(sentences="some")


class TestBatch:
    def batch(self, tokenizer) -> Batch:
        return Collate(tokenizer)([example(**spoken()), example("reflacx-000000000001", study_id=-3)])

    def test_shapes_and_kinds(self, tokenizer):
        batch = self.batch(tokenizer)
        assert batch.keys == ("reflacx-000000000000", "reflacx-000000000001")
        assert batch.study_id.tolist() == [7, -3]
        assert batch.patch_mask.tolist() == [[True, True, False, False]] * 2
        for mask in (batch.patch_mask, batch.report_mask, batch.context_mask, batch.valid, batch.label_mask):
            assert mask.dtype == torch.bool
        for ids in (batch.view_position, batch.study_id, batch.report_input_ids, batch.sentence_image):
            assert ids.dtype == torch.int64
        assert batch.labels.shape == batch.label_mask.shape == (2, 14)
        assert len(batch) == 2

    def test_pixel_values_are_normalised_in_three_channels(self, tokenizer):
        config = CollateConfig(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.25, 1.0))
        pixels = Collate(tokenizer, config)([example()]).pixel_values
        assert (pixels.shape, pixels.dtype) == ((1, 3, 8, 8), torch.float32)
        torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.1]))  # 51 / 255 = 0.2

    def test_to_moves_every_tensor(self, tokenizer):
        moved = self.batch(tokenizer).to("meta")
        tensors = [value for one in fields(moved) if isinstance(value := getattr(moved, one.name), torch.Tensor)]
        assert len(tensors) == len(fields(moved)) - 3  # keys, faults, and no stored tokens
        assert {tensor.device.type for tensor in tensors} == {"meta"}

    def test_padding_is_at_the_end_of_every_row(self, tokenizer):
        batch = self.batch(tokenizer)
        for mask in (batch.report_mask, batch.context_mask, batch.sentence_mask):
            assert (mask.long().diff(dim=1) <= 0).all()
            assert mask[:, 0].all()
