import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogaze.data.plan import MicroBatches, PlanColumns, PlanConfig, Position, Share, epoch_plan, gaze_choice


def columns_of(shard_sizes, gaze_share=0.4):
    """Samples of shards of these sizes; every so many of them have gaze."""
    shards = [f"train/train-{i:05d}.tar" for i, size in enumerate(shard_sizes) for _ in range(size)]
    total = len(shards)
    has_gaze = np.floor(np.arange(1, total + 1) * gaze_share) > np.floor(np.arange(total) * gaze_share)
    return PlanColumns.of([f"mimic-cxr-{i:012x}" for i in range(total)], shards, has_gaze)


def digest(plan):
    return hashlib.sha256(plan.rows.astype("<i8").tobytes() + plan.use_gaze.tobytes()).hexdigest()[:16]


GOLDEN = "44be8add391792d7"  # of the first run ever: no library and no machine may change it
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=7)
SHARES = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
WORLDS = st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 3), (4, 2)])


class TestEveryEpoch:
    @given(SIZES, SHARES, st.integers(1, 4), st.integers(0, 3))
    def test_holds_each_sample_once_and_fills_only_the_last_global_batch(self, sizes, share, size, epoch):
        columns = columns_of(sizes, share)
        plan = epoch_plan(columns, PlanConfig(global_batch=size * 3, window_shards=2), epoch)
        assert sorted(plan.rows[plan.valid]) == list(range(sum(sizes)))
        assert len(plan) == -(-sum(sizes) // (size * 3))
        assert plan.valid[:-1].all()
        assert plan.valid[-1].any()
        fillers = plan.rows[~plan.valid]
        assert len(set(fillers)) == len(fillers)
        assert not plan.use_gaze[~plan.valid].any()

    @given(SIZES, SHARES, WORLDS, st.integers(1, 3))
    def test_is_shared_without_overlap_in_equally_many_batches(self, sizes, share, world, micro):
        processes, accumulation = world
        columns, size = columns_of(sizes, share), micro * processes * accumulation
        config = PlanConfig(global_batch=size)
        plan = epoch_plan(columns, config, 0)
        ranks = [list(MicroBatches(columns, config, Share(r, processes, accumulation))) for r in range(processes)]
        for batches in ranks:
            assert len(batches) == len(plan) * accumulation
            assert all(len(batch) == micro for batch in batches)
        for step in range(len(plan)):
            window = slice(step * accumulation, (step + 1) * accumulation)
            delivered = [item.row for batches in ranks for batch in batches[window] for item in batch]
            assert sorted(delivered) == sorted(plan.rows[step])

    @given(SIZES, SHARES, WORLDS)
    def test_gives_no_process_more_than_one_gaze_sample_more_than_another(self, sizes, share, world):
        processes, accumulation = world
        columns, config = columns_of(sizes, share), PlanConfig(global_batch=2 * processes * accumulation)
        ranks = [list(MicroBatches(columns, config, Share(r, processes, accumulation))) for r in range(processes)]
        for micro_step in range(len(ranks[0])):  # and so in every step
            counts = [sum(item.use_gaze for item in batches[micro_step]) for batches in ranks]
            assert max(counts) - min(counts) <= 1
        for step in range(0, len(ranks[0]), accumulation):
            counts = [sum(i.use_gaze for batch in b[step : step + accumulation] for i in batch) for b in ranks]
            assert max(counts) - min(counts) <= 1

    @given(SIZES, SHARES)
    def test_spreads_gaze_over_its_batches_in_proportion(self, sizes, share):
        columns = columns_of(sizes, share)
        plan = epoch_plan(columns, PlanConfig(global_batch=4), 0)
        expected = plan.valid.sum(axis=1) * columns.has_gaze.mean()
        assert (np.abs(plan.use_gaze.sum(axis=1) - expected) < 1).all()
        assert set(plan.rows[plan.use_gaze]) == set(np.flatnonzero(columns.has_gaze))


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    columns = columns_of([7, 5, 9])
    plans = {(s, e): digest(epoch_plan(columns, PlanConfig(4, seed=s), e)) for s in (0, 1) for e in (0, 1, 2)}
    assert len(set(plans.values())) == len(plans)
    assert plans[0, 0] == digest(epoch_plan(columns_of([7, 5, 9]), PlanConfig(4), 0)) == GOLDEN


def test_another_process_makes_the_same_plan():
    code = (
        "import sys; sys.path.insert(0, 'tests/cogaze')\n"
        "from test_plan import columns_of, digest, epoch_plan, PlanConfig\n"
        "print(digest(epoch_plan(columns_of([7, 5, 9]), PlanConfig(4), 0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert done.stdout.strip() == GOLDEN, done.stderr


def test_a_position_in_the_index_does_not_matter():
    columns = columns_of([7, 5, 9])
    back = slice(None, None, -1)
    mirrored = PlanColumns(columns.key_hash[back], columns.shard_hash[back], columns.has_gaze[back])
    plan, other = (epoch_plan(one, PlanConfig(21), 3) for one in (columns, mirrored))
    assert (columns.key_hash[plan.rows] == mirrored.key_hash[other.rows]).all()


def test_reads_stay_within_a_window_of_shards():
    shard = np.repeat(np.arange(10), 6)
    plan = epoch_plan(columns_of([6] * 10, gaze_share=0.0), PlanConfig(4, window_shards=2), 0)
    windows = shard[plan.rows.reshape(5, 12)]
    assert [len(set(window)) for window in windows] == [2] * 5
    assert any((np.diff(window) != 0).sum() > 1 for window in windows)  # mixed, not one shard after the other


def test_without_shuffling_the_order_is_the_index():
    plan = epoch_plan(columns_of([5, 4], gaze_share=0.0), PlanConfig(4, shuffle=False), 0)
    assert plan.rows[plan.valid].tolist() == list(range(9))


class TestGazeRatio:
    def chosen(self, ratio, seed=0):
        return set(np.flatnonzero(gaze_choice(columns_of([500] * 8), PlanConfig(seed=seed, gaze_ratio=ratio))))

    def test_a_larger_share_holds_a_smaller_one(self):
        one, ten, half = (self.chosen(ratio) for ratio in (0.01, 0.1, 0.5))
        assert one < ten < half
        for found, ratio in ((one, 0.01), (ten, 0.1), (half, 0.5)):
            assert abs(len(found) - 4000 * ratio) < 4 * (4000 * ratio * (1 - ratio)) ** 0.5

    def test_zero_is_none_and_one_is_all(self):
        assert self.chosen(0.0) == set()
        assert self.chosen(1.0) == set(range(4000))

    def test_another_seed_chooses_others(self):
        assert self.chosen(0.1, seed=1) != self.chosen(0.1)

    def test_what_is_not_chosen_is_delivered_without_gaze_in_every_epoch(self):
        columns, config = columns_of([20, 20], gaze_share=0.5), PlanConfig(8, gaze_ratio=0.5)
        plans = [epoch_plan(columns, config, epoch) for epoch in range(3)]
        used = [set(plan.rows[plan.use_gaze]) for plan in plans]
        assert used[0] == used[1] == used[2]
        assert 0 < len(used[0]) < 20
        assert all(plan.valid.sum() == 40 for plan in plans)


class TestPosition:
    def delivered(self, batches):
        """The global batch's rows of each step that a rank alone, or all ranks together, deliver."""
        return [sorted(item.row for batch in batches for item in batch[step]) for step in range(len(batches[0]))]

    def test_resuming_at_every_step_on_another_number_of_processes_gives_the_same_global_batches(self):
        columns, config = columns_of([7, 5, 9, 2]), PlanConfig(4)
        unbroken = self.delivered([list(MicroBatches(columns, config, position=Position(1, 0)))])
        for first in range(len(unbroken)):
            for second in range(first, len(unbroken)):
                got = []
                for world, start, end in ((1, 0, first), (2, first, second), (1, second, len(unbroken))):
                    if start == end:
                        continue
                    ranks = [MicroBatches(columns, config, Share(rank, world)) for rank in range(world)]
                    for rank in ranks:
                        rank.seek(Position(1, start))
                    got += self.delivered([list(rank)[: end - start] for rank in ranks])
                assert got == unbroken

    def test_accumulation_cuts_the_same_global_batches(self):
        columns = columns_of([7, 5, 9, 2])
        whole = self.delivered([list(MicroBatches(columns, PlanConfig(4)))])
        micro = list(MicroBatches(columns, PlanConfig(4), Share(accumulation=2)))
        joined = [a + b for a, b in zip(micro[::2], micro[1::2], strict=True)]
        assert self.delivered([joined]) == whole

    def test_length_is_what_is_left(self):
        batches = MicroBatches(columns_of([7, 5, 9]), PlanConfig(4), Share(0, 1, 2))
        batches.seek(Position(0, 4))
        assert len(batches) == len(list(batches)) == 4
        assert (batches.batch_size, batches.drop_last) == (2, False)

    def test_next_goes_through_epochs(self):
        found = [Position(0, 0)]
        for _ in range(3):
            found.append(found[-1].next(2))
        assert found == [Position(0, 0), Position(0, 1), Position(1, 0), Position(1, 1)]

    @pytest.mark.parametrize("position", [Position(0, 6), Position(0, -1), Position(-1, 0)])
    def test_outside_the_data_is_refused(self, position):
        with pytest.raises(ValueError, match="6 steps; resume with the shards and the global batch"):
            MicroBatches(columns_of([7, 5, 9]), PlanConfig(4)).seek(position)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: epoch_plan(columns_of([]), PlanConfig(4), 0), "no samples to plan; choose a split"),
        (
            lambda: MicroBatches(columns_of([9]), PlanConfig(8), Share(0, 3)),
            "batch of 8 .* 3 processes .* multiple of 3",
        ),
        (lambda: Share(2, 2), "rank must be 0 to world - 1"),
        (lambda: PlanConfig(0), "global_batch is 0, must be at least 1"),
        (lambda: PlanConfig(window_shards=0), "window_shards is 0"),
        (lambda: PlanConfig(gaze_ratio=10), "gaze_ratio is 10, must be a share from 0 to 1"),
    ],
)
def test_bad_values_name_the_cure(make, message):
    with pytest.raises(ValueError, match=message):
        make()
