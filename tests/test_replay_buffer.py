"""The replay buffer: which slots chains start from, and which they go back to."""

from collections import Counter

import pytest
import torch

from losses import ReplayBuffer

SHAPE = (3, 2, 2)


def numbered(size: int, classes: int, reinit_freq: float = 0.0) -> ReplayBuffer:
    """Return a buffer whose slot i holds 10 + i everywhere, while fresh starts are in [-1, 1]."""
    buffer = ReplayBuffer(size, SHAPE, reinit_freq, classes)
    buffer.images.copy_((10 + torch.arange(size))[:, None, None, None].expand_as(buffer.images))
    return buffer


def test_slots_are_distinct_uniform_and_all_may_be_drawn():
    buffer, counts = numbered(20, 10), Counter[int]()
    for _ in range(1000):
        slots = buffer.draw(4)[1].tolist()
        assert len(set(slots)) == 4
        counts.update(slots)
    assert len(counts) == 20 and all(140 < count < 260 for count in counts.values())  # 200 +- 13
    assert sorted(buffer.draw(20)[1].tolist()) == list(range(20))


def test_conditional_slots_are_of_the_class_distinct_and_uniform_within_it():
    """The first chain of a class, and the third, may use any of its slots."""
    buffer, labels = numbered(30, 3), torch.tensor([2, 0, 2, 1, 2])
    drawn = torch.stack([buffer.draw(5, labels)[1] for _ in range(1000)])
    assert (drawn // 10 == labels).all() and (drawn.sort(1).values.diff(dim=1) > 0).all()
    for chain, label in [(0, 2), (4, 2), (1, 0)]:
        counts = Counter(drawn[:, chain].tolist())
        assert set(counts) == set(range(10 * label, 10 * label + 10))
        assert all(60 < count < 140 for count in counts.values())
    labels = torch.full((10,), 1)  # as many as the class has
    assert sorted(buffer.draw(10, labels)[1].tolist()) == list(range(10, 20))


@pytest.mark.parametrize("labels", [None, torch.arange(2000) % 2], ids=["free", "conditional"])
@pytest.mark.parametrize(("share", "slack"), [(0.0, 0.0), (0.05, 0.015), (0.8, 0.03), (1.0, 0.0)])
def test_reinit_freq_is_the_share_of_uniform_starts(labels, share, slack):
    buffer = numbered(4000, 2, reinit_freq=share)
    start, slots = buffer.draw(2000, labels)
    fresh = start.abs().amax((1, 2, 3)) <= 1
    assert abs(fresh.float().mean() - share) <= slack
    assert torch.equal(start[~fresh], buffer.images[slots][~fresh])
    if share:
        assert abs(start[fresh].mean()) < 0.06 and abs(start[fresh].var() - 1 / 3) < 0.04


@pytest.mark.parametrize("skip", [False, True])
def test_staged_samples_are_stored_by_the_commit_unless_the_step_is_skipped(skip):
    buffer, slots = numbered(20, 10), torch.tensor([7, 2])
    before = buffer.images.clone()
    buffer.stage(slots, before[slots], torch.zeros(2, *SHAPE))
    buffer.stage(slots[:1] + 1, before[slots[:1] + 1], torch.ones(1, *SHAPE))
    assert torch.equal(buffer.images, before)
    buffer.commit(None, torch.tensor(skip))
    if not skip:
        before[slots], before[8] = 0, 1
    assert torch.equal(buffer.images, before) and buffer.staged == []


def test_ages_count_the_updates_since_a_chain_began():
    """Chains of slots 3 and 4 go on, 4 begins anew, a step is skipped, both go on."""
    buffer, slots = numbered(20, 10), torch.tensor([3, 4])

    def step(restarts: tuple[bool, bool], skip: bool) -> list[int]:
        kept = buffer.images[slots]
        start = torch.where(torch.tensor(restarts)[:, None, None, None], kept - 0.5, kept)
        ages = buffer.stage(slots, start, kept + 1)
        buffer.commit(None, torch.tensor(skip))
        return ages.tolist()

    for restarts, skip, ages in (
        *(((False, False), False, [0, 0]), ((False, False), False, [1, 1])),
        *(((False, True), False, [2, 0]), ((True, False), True, [0, 1])),
        *(((False, False), False, [3, 1]), ((False, False), False, [4, 2])),
    ):
        assert step(restarts, skip) == ages
    assert buffer.updates == 5 and buffer.began[slots].tolist() == [0, 2]
    buffer.images.div_(100)[4] = torch.nan
    assert buffer.renew() == 1 and buffer.began.tolist() == [0, 0, 0, 0, 5, *15 * [0]]
    buffer.fill()
    assert buffer.began.tolist() == 20 * [5]


def test_more_chains_than_slots_and_sizes_that_classes_do_not_divide_are_refused():
    buffer = numbered(20, 10)
    with pytest.raises(ValueError, match="21 chains"):
        buffer.draw(21)
    with pytest.raises(ValueError, match="3 chains"):
        buffer.draw(3, torch.tensor([4, 4, 4]))
    for size in (25, 5, 0):
        with pytest.raises(ValueError, match=f"{size} is not divisible by 10"):
            ReplayBuffer(size, SHAPE, 0.05, 10)
