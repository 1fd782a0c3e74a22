"""batch = f(dataset, seed, step): its order, that nothing is lost, and that no split changes it."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regpt.core.data import (
    IGNORE_INDEX,
    ArrayDataset,
    BatchPlan,
    Loader,
    describe_batch,
    read_windows,
)
from regpt.core.permutation import permute
from regpt.core.tokenizer import get_tokenizer
from regpt.system.errors import UserError

exact = settings(deadline=None, derandomize=True)


def counting(num_tokens: int) -> ArrayDataset:
    """A stream whose tokens are their own positions, so that a batch shows where it was read."""
    return ArrayDataset(np.arange(num_tokens, dtype=np.uint32), vocab_size=num_tokens)


def make_loader(num_tokens, *, block_size=5, sequences=3, order="shuffled", seed=0) -> Loader:
    plan = BatchPlan(
        num_tokens=num_tokens, block_size=block_size, sequences=sequences, order=order, seed=seed
    )
    return Loader(counting(num_tokens), plan)


@st.composite
def loaders(draw) -> Loader:
    block_size = draw(st.integers(1, 9))
    sequences = draw(st.integers(1, 12))
    extra = draw(st.integers(1, 300))
    return make_loader(
        block_size * sequences + extra,
        block_size=block_size,
        sequences=sequences,
        seed=draw(st.integers(0, 2**64 - 1)),
    )


# ---- the order ----


@exact
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**40))
def test_each_epoch_is_a_permutation(size, seed, epoch):
    images = permute(np.arange(size), size=size, seed=seed, epochs=np.full(size, epoch))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_a_permutation_of_many_windows_is_seekable():
    """Ten billion windows: nothing of that size is ever built, and the images stay inside."""
    size = 10_000_000_019
    positions = np.array([0, 1, size - 2, size - 1])
    epochs = np.zeros(4, dtype=np.int64)
    images = permute(positions, size=size, seed=3, epochs=epochs)
    one_by_one = [
        permute(positions[i : i + 1], size=size, seed=3, epochs=epochs[:1])[0] for i in range(4)
    ]
    assert images.tolist() == one_by_one
    assert len(set(one_by_one)) == 4
    assert all(0 <= image < size for image in one_by_one)


def test_order_looks_random():
    """Every position goes everywhere about equally often: chi-square over the epochs."""
    size, trials = 7, 4000
    positions, epochs = np.tile(np.arange(size), trials), np.repeat(np.arange(trials), size)
    images = permute(positions, size=size, seed=0, epochs=epochs)
    counts = np.zeros((size, size))
    np.add.at(counts, (positions, images), 1)
    expected = trials / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # (7-1)^2 = 36 degrees of freedom: 36 +- 8.5, and the draw is fixed.
    assert chi_square < 36 + 4 * 8.5


def test_the_order_is_pinned():
    """A run resumed with a later version must go on in the order it began with."""
    epochs = np.repeat([0, 1], 10)
    images = permute(np.tile(np.arange(10), 2), size=10, seed=1337, epochs=epochs)
    assert images.tolist() == PINNED


PINNED = [0, 6, 2, 1, 9, 3, 4, 7, 8, 5, 0, 4, 6, 2, 9, 7, 8, 3, 1, 5]


# ---- shuffled ----


@exact
@given(loader=loaders(), epoch=st.integers(0, 3), data=st.data())
def test_every_target_of_an_epoch_exactly_once(loader, epoch, data):
    """Over sizes, world sizes and splits: the windows of an epoch partition the targets."""
    plan = loader.plan
    world_size = data.draw(st.integers(1, plan.sequences))
    first, last = epoch * plan.windows_per_epoch, (epoch + 1) * plan.windows_per_epoch
    seen = Counter()
    for step in range(first // plan.sequences, -(-last // plan.sequences)):
        parts = [loader.batch(step, plan.rows(rank, world_size)) for rank in range(world_size)]
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        real = y != IGNORE_INDEX
        assert torch.equal(y[real], x[real] + 1)
        assert int(real.sum()) == loader.plan.num_targets(step)
        for row in range(plan.sequences):
            if first <= step * plan.sequences + row < last:
                seen.update(y[row][real[row]].tolist())
    assert seen == Counter(range(1, plan.num_tokens))


@exact
@given(loader=loaders(), step=st.integers(0, 10**6), data=st.data())
def test_rows_reassemble_the_batch(loader, step, data):
    x, y = loader.batch(step)
    cuts = data.draw(st.lists(st.integers(0, loader.plan.sequences)))
    edges = [0, *sorted(cuts), loader.plan.sequences]
    slices = [slice(a, b) for a, b in pairwise(edges)]
    parts = [loader.batch(step, rows) for rows in slices]
    assert torch.equal(torch.cat([part[0] for part in parts]), x)
    assert torch.equal(torch.cat([part[1] for part in parts]), y)
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape == (loader.plan.sequences, loader.plan.block_size)


@exact
@given(
    loader=loaders(),
    steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True),
    seed=st.randoms(use_true_random=False),
)
def test_a_batch_does_not_depend_on_what_was_asked_before(loader, steps, seed):
    before = {step: loader.batch(step) for step in steps}
    seed.shuffle(steps)
    for step in steps:
        for then, now in zip(before[step], loader.batch(step), strict=True):
            assert torch.equal(then, now)


@exact
@given(loader=loaders(), accumulation=st.integers(1, 4))
def test_the_order_does_not_depend_on_the_batch_size(loader, accumulation):
    """k steps of B windows are one step of k*B windows: only the seed decides the order."""
    plan = loader.plan
    if plan.num_tokens <= accumulation * plan.tokens_per_batch:
        accumulation = 1
    large = BatchPlan(
        num_tokens=plan.num_tokens,
        block_size=plan.block_size,
        sequences=accumulation * plan.sequences,
        order="shuffled",
        seed=plan.seed,
    )
    small = np.concatenate([plan.windows(7 * accumulation + i) for i in range(accumulation)])
    assert np.array_equal(large.windows(7), small)


def test_epochs_and_seeds_differ():
    plans = [make_loader(1000, sequences=199, seed=seed).plan for seed in (0, 1)]
    epochs = [plan.windows(step).tolist() for plan in plans for step in (0, 1)]
    assert len({tuple(windows) for windows in epochs}) == 4


def test_last_short_window_is_padded():
    loader = make_loader(9, block_size=5, sequences=1)
    batches = {tuple(loader.batch(step)[1][0].tolist()) for step in (0, 1)}
    assert batches == {(1, 2, 3, 4, 5), (6, 7, 8, IGNORE_INDEX, IGNORE_INDEX)}
    assert sorted(loader.plan.num_targets(step) for step in (0, 1)) == [3, 5]


# ---- sequential: the lecture ----


def test_sequential_walks_and_wraps_as_the_lecture():
    loader = make_loader(100, block_size=5, sequences=3, order="sequential")
    position = 0
    for step in range(20):
        buffer = torch.arange(position, position + 16)
        x, y = loader.batch(step)
        assert torch.equal(x, buffer[:-1].view(3, 5))
        assert torch.equal(y, buffer[1:].view(3, 5))
        assert loader.plan.num_targets(step) == 15
        position += 15
        if position + 16 > 100:
            position = 0


def test_sequential_x_and_y_are_views_of_one_buffer():
    x, y = make_loader(100, order="sequential").batch(2)
    assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    assert y.storage_offset() == x.storage_offset() + 1


def test_exact_fit_has_one_batch():
    plan = make_loader(16, block_size=5, sequences=3, order="sequential").plan
    assert plan.steps_per_epoch == 1
    assert plan.windows(5).tolist() == [0, 5, 10]


def test_tiny_shakespeare(shakespeare):
    tokens = np.array(get_tokenizer().encode(shakespeare.read_text(encoding="utf-8")), "uint16")
    plan = BatchPlan(num_tokens=len(tokens), block_size=32, sequences=4, order="sequential", seed=0)
    loader = Loader(ArrayDataset(tokens), plan)
    assert len(tokens) == 338_025
    assert plan.steps_per_epoch == 2640
    assert loader.batch(0)[0][0, :6].tolist() == [5962, 22307, 25, 198, 8421, 356]
    assert torch.equal(loader.batch(2640)[0], loader.batch(0)[0])


# ---- windows without a plan, prefetch, show ----


@exact
@given(num_tokens=st.integers(2, 200), block_size=st.integers(1, 30), rows=st.integers(1, 7))
def test_read_windows_covers_a_validation_set(num_tokens, block_size, rows):
    data = counting(num_tokens)
    offsets = np.arange(0, num_tokens - 1, block_size)
    parts = [
        read_windows(data, offsets[i : i + rows], block_size) for i in range(0, len(offsets), rows)
    ]
    y = torch.cat([part[1] for part in parts]).flatten()
    assert y[y != IGNORE_INDEX].tolist() == list(range(1, num_tokens))


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_batches_are_the_batches_of_their_steps(order):
    loader = make_loader(101, order=order)
    batches = list(loader.batches(4, 12, rows=slice(1, 3)))
    assert [batch.step for batch in batches] == list(range(4, 12))
    for batch in batches:
        x, y = loader.batch(batch.step, slice(1, 3))
        assert torch.equal(batch.x, x)
        assert torch.equal(batch.y, y)
        assert batch.num_targets == loader.plan.num_targets(batch.step)


@pytest.mark.parametrize("order", ["sequential", "shuffled", "shifted"])
def test_overfitting_gives_every_step_the_first_batch(order):
    loader = make_loader(101, order=order)
    again = Loader(loader.dataset, replace(loader.plan, overfit=True))
    batches = list(again.batches(4, 7))
    assert [batch.step for batch in batches] == [4, 5, 6]
    x, y = loader.batch(0)
    assert all(torch.equal(batch.x, x) and torch.equal(batch.y, y) for batch in batches)
    assert not torch.equal(loader.batch(4)[0], x)
    assert [batch.num_targets for batch in batches] == [loader.plan.num_targets(0)] * 3


def test_batches_without_end_can_be_left():
    iterator = make_loader(101).batches(0)
    assert [next(iterator).step for _ in range(40)] == list(range(40))
    iterator.close()


def test_the_next_batch_is_read_while_the_caller_works():
    loader = make_loader(101)
    iterator = loader.batches(0, 3)
    next(iterator)
    # The thread owes the batch of step 1 without another call.
    asked, original = [], loader.batch
    loader.batch = lambda step, rows=None: (asked.append(step), original(step, rows))[1]
    next(iterator)
    iterator.close()
    assert 2 in asked


def test_an_error_in_the_thread_reaches_the_caller():
    loader = make_loader(101)

    def broken(start, stop):
        raise UserError("shard gone")

    loader.dataset.read = broken
    with pytest.raises(UserError, match="shard gone"):
        next(loader.batches(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_cuda():
    loader = make_loader(101)
    for batch in loader.batches(0, 5, device=torch.device("cuda")):
        assert batch.x.device.type == "cuda"
        assert torch.equal(batch.x.cpu(), loader.batch(batch.step)[0])


def test_describe_batch_shows_the_texts():
    tokenizer = get_tokenizer()
    tokens = np.array(tokenizer.encode("The quick brown fox jumps over the lazy dog"), "uint16")
    plan = BatchPlan(num_tokens=len(tokens), block_size=2, sequences=2, order="sequential", seed=0)
    assert describe_batch(Loader(ArrayDataset(tokens), plan), 0, tokenizer) == [
        "sequence 0, tokens 0 to 2\nThe quick brown",
        "sequence 1, tokens 2 to 4\n brown fox jumps",
    ]


# ---- wrong input ----


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_short_text_says_both_numbers(order):
    with pytest.raises(UserError, match=r"has 128 tokens, but a batch of 4 x 32 needs 129"):
        make_loader(128, block_size=32, sequences=4, order=order)
    make_loader(129, block_size=32, sequences=4, order=order).batch(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 0}, "at least 1, got 0 and 3"),
        ({"sequences": 0}, "at least 1, got 5 and 0"),
        ({"order": "random"}, "order 'random' is not one of sequential, shuffled"),
    ],
)
def test_wrong_plan(change, message):
    with pytest.raises(UserError, match=message):
        make_loader(100, **change)


def test_wrong_step_world_and_dataset():
    loader = make_loader(100)
    with pytest.raises(UserError, match="step must be at least 0, got -1"):
        loader.batch(-1)
    with pytest.raises(UserError, match="3 sequences cannot be shared by 4 processes"):
        loader.plan.rows(0, 4)
    with pytest.raises(UserError, match="the plan is for 100 tokens, the dataset has 99"):
        Loader(counting(99), loader.plan)


@pytest.mark.parametrize("tokens", [np.array([1, 50257]), np.array([-1, 3])])
def test_ids_outside_the_vocabulary(tokens):
    with pytest.raises(UserError, match="the vocabulary from 0 to 50256"):
        ArrayDataset(tokens)


def test_tokens_that_are_no_tokens():
    with pytest.raises(UserError, match="1-D integers, not 1-D float64"):
        ArrayDataset(np.zeros(3))


def test_fingerprint_is_of_the_tokens():
    tokens = np.arange(50)
    same = ArrayDataset(tokens.astype("uint16")).fingerprint
    assert ArrayDataset(tokens.astype("int64")).fingerprint == same
    assert ArrayDataset(tokens[:-1].astype("uint16")).fingerprint != same


@pytest.mark.parametrize("num_tokens", [65, 70, 79, 80, 81])
def test_shifted_windows_cover_the_stream_in_every_epoch(num_tokens):
    shared = {"num_tokens": num_tokens, "block_size": 8, "sequences": 1, "seed": 3}
    plan = BatchPlan(order="shifted", **shared)
    cuts = set()
    for epoch in range(20):
        first = epoch * plan.windows_per_epoch
        steps = range(first, first + plan.windows_per_epoch)
        starts = sorted(int(plan.windows(step)[0]) for step in steps)
        assert len(set(starts)) == len(starts)
        assert 0 <= starts[0] < 8
        assert starts[-1] < num_tokens - 1
        assert starts[-1] + 8 >= num_tokens - 1, "the end is read"
        inner = [start for start in starts if start]
        assert {one - other for one, other in zip(inner[1:], inner, strict=False)} == {8}
        cuts.add(inner[0] % 8)
    assert len(cuts) > 4
    again = BatchPlan(order="shifted", **shared)
    assert (again.windows(17) == plan.windows(17)).all()
