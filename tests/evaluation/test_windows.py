"""Windows score every token once, with the longest context their stride allows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regpt import UserError
from regpt.core.data import ArrayDataset
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.evaluation.windows import cut_windows
from regpt.system.distributed import World


def dataset(tokens: list[int]) -> ArrayDataset:
    return ArrayDataset(np.array(tokens, dtype=np.uint16))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int]:
    tokens = draw(st.lists(st.sampled_from([7, 8, 9, END_OF_TEXT_ID]), min_size=2, max_size=60))
    block_size = draw(st.integers(1, 12))
    return tokens, block_size, draw(st.integers(1, block_size))


@given(cases())
def test_every_token_is_scored_once_with_enough_context(case: tuple[list[int], int, int]) -> None:
    tokens, block_size, stride = case
    windows = cut_windows(dataset(tokens), block_size=block_size, stride=stride)
    seen = []
    for start, scored, stop in zip(windows.starts, windows.scored, windows.stops, strict=True):
        assert stop - start <= block_size
        for target in range(scored, stop + 1):
            seen.append(target)
            context = target - start
            assert context >= min(target, block_size - stride + 1)
    assert seen == list(range(1, len(tokens)))


@given(cases())
def test_no_context_crosses_a_document(case: tuple[list[int], int, int]) -> None:
    tokens, block_size, stride = case
    data = dataset(tokens)
    windows = cut_windows(data, block_size=block_size, stride=stride, documents=True)
    scored = []
    for one in range(len(windows)):
        start, first, stop = (int(part[one]) for part in vars(windows).values())
        scored += range(first, stop + 1)
        assert END_OF_TEXT_ID not in tokens[start + 1 : stop], "an end within what is read"
    assert scored == list(range(1, len(tokens)))


@given(cases(), st.integers(1, 40), st.booleans())
def test_batches_read_what_the_windows_say(
    case: tuple[list[int], int, int], size: int, documents: bool
) -> None:
    tokens, block_size, stride = case
    data = dataset(tokens)
    windows = cut_windows(data, block_size=block_size, stride=stride, documents=documents)
    targets = []
    for rows in windows.batches(size, World(device=torch.device("cpu"))):
        batch = windows.take(rows)
        x, y = batch.read(data)
        assert x.numel() <= max(size, block_size)
        for row in range(len(batch)):
            start, first, stop = batch.starts[row], batch.scored[row], batch.stops[row]
            assert x[row, : stop - start].tolist() == tokens[start:stop]
            wanted = (y[row] != -100).nonzero().flatten() + start + 1
            assert wanted.tolist() == list(range(first, stop + 1))
            assert y[row][y[row] != -100].tolist() == tokens[first : stop + 1]
            targets += wanted.tolist()
    assert sorted(targets) == list(range(1, len(tokens)))


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_leaves_tokens_out_is_refused(stride: int) -> None:
    with pytest.raises(UserError, match=f"stride {stride} is not between 1 and the block size 8"):
        cut_windows(dataset([1, 2, 3]), block_size=8, stride=stride)
