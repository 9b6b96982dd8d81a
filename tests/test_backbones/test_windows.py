"""WindowGrid against loops and against mmdet's own shift mask."""

import pytest
import torch
from mmdet.models.backbones.swin import ShiftWindowMSA

from ltm_det.backbones.common.windows import SHIFT_MASK, WindowGrid, _shift_mask, _valid
from ltm_det.merging.pooling import alive_cells, pooling_matrix

CPU = torch.device("cpu")
SIZES = [(7, 7, 7), (8, 13, 7), (1, 1, 7), (14, 21, 7), (3, 50, 4), (9, 2, 5), (24, 13, 12)]
SIZES += [(5, 4, 1), (10, 15, 5)]


def tokens(grid):
    """Yields (window, index in the window, y, x) of every token, padded ones included."""
    m = grid.window
    for y in range(grid.rows * m):
        for x in range(grid.columns * m):
            yield y // m * grid.columns + x // m, y % m * m + x % m, y, x


@pytest.fixture(params=SIZES, ids=str)
def grid(request):
    return WindowGrid(*request.param)


def test_every_token_lands_in_its_window(grid):
    x = torch.randn(2, grid.height * grid.width, 3)
    layout = grid.partition(x)
    assert layout.shape == (2, grid.rows * grid.columns, grid.window**2, 3)
    seen = 0
    for w, n, i, j in tokens(grid):
        if i < grid.height and j < grid.width:
            assert torch.equal(layout[:, w, n], x[:, i * grid.width + j])
            seen += 1
        else:
            assert (layout[:, w, n] == 0).all()
    assert seen == grid.height * grid.width
    assert torch.equal(grid.reverse(layout), x)


def test_reverse_cuts_off_what_is_padded(grid):
    layout = torch.randn(2, grid.rows * grid.columns, grid.window**2, 3)
    x = grid.reverse(layout).reshape(2, grid.height, grid.width, 3)
    for w, n, i, j in tokens(grid):
        if i < grid.height and j < grid.width:
            assert torch.equal(x[:, i, j], layout[:, w, n])


@pytest.mark.parametrize("shift", [0, 1, -1, -3, 6])
def test_roll(grid, shift):
    layout = torch.randn(2, grid.rows * grid.columns, grid.window**2, 3)
    height, width = grid.rows * grid.window, grid.columns * grid.window
    rolled = grid.roll(layout, shift)
    at = {(i, j): (w, n) for w, n, i, j in tokens(grid)}
    for (i, j), (w, n) in at.items():
        to = at[(i + shift) % height, (j + shift) % width]
        assert torch.equal(rolled[:, to[0], to[1]], layout[:, w, n])
    assert torch.equal(grid.roll(rolled, -shift), layout)


def test_valid_tells_real_tokens(grid):
    valid = grid.valid(CPU)
    real = {(w, n): i < grid.height and j < grid.width for w, n, i, j in tokens(grid)}
    if valid is None:
        assert all(real.values())
    else:
        assert valid.dtype == torch.bool and not all(real.values())
        assert all(valid[w, n] == r for (w, n), r in real.items())
        assert valid.any(1).all()  # no window of padding alone


def test_no_merging_drops_padded_tokens(grid):
    layout = torch.randn(2, grid.rows * grid.columns, grid.window**2, 3)
    merging = grid.no_merging()
    back = merging.unmerge(merging.merge(layout) + 1)
    valid = grid.valid(CPU)
    assert merging.key_bias is None
    if valid is None:
        assert torch.equal(back, layout + 1)
    else:
        assert merging.merge(layout).shape[:-1] == (2, grid.height * grid.width)
        assert torch.equal(back[:, valid], layout[:, valid] + 1) and (back[:, ~valid] == 0).all()


@pytest.mark.parametrize("side", [1, 2, 5])
def test_merged_grid_has_the_same_windows_and_no_padding(grid, side):
    merged = grid.merged(side)
    assert (merged.rows, merged.columns, merged.window) == (grid.rows, grid.columns, side)
    assert merged.valid(CPU) is None


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
def test_shrunk_grid_ends_with_the_last_cell_that_holds_a_real_token(grid, side):
    """Every token cut into as many strips as there are cells, a cell is as many as tokens."""
    m, shrunk = grid.window, grid.shrunk(side)
    assert (shrunk.rows, shrunk.columns, shrunk.window) == (grid.rows, grid.columns, side)
    for length, cells in ((grid.height, shrunk.height), (grid.width, shrunk.width)):
        assert set(range(cells)) == {strip // m for strip in range(length * side)}


def test_shrunk_again(grid):
    """What the second merging finds is what is left by the first."""
    for once, twice in ((5, 2), (3, 1), (2, 1)):
        first = grid.shrunk(once)
        valid = _valid(first.shrunk(twice), CPU)
        alive = alive_cells(pooling_matrix(once, twice**2), _valid(first, CPU))
        assert torch.equal(valid, alive)


def test_shift_mask_parts_what_only_the_roll_made_neighbours(grid):
    shift = grid.window // 2
    mask = grid.shift_mask(shift, CPU)
    assert mask.shape == (grid.rows * grid.columns, grid.window**2, grid.window**2)
    # two tokens of a rolled window attend to each other where they are in one window without a
    # roll, the first of which begins `shift` tokens into the map
    height, width = grid.rows * grid.window, grid.columns * grid.window
    home = {}
    for w, n, i, j in tokens(grid):
        y, x = (i + shift) % height, (j + shift) % width
        home[w, n] = (y - shift) // grid.window, (x - shift) // grid.window
    for w in range(len(mask)):
        for n in range(grid.window**2):
            expected = [
                0 if home[w, n] == home[w, m] else SHIFT_MASK for m in range(grid.window**2)
            ]
            assert mask[w, n].tolist() == expected


@pytest.mark.parametrize("height, width, window", [s for s in SIZES if s[2] > 1])
def test_shift_mask_is_mmdets(height, width, window):
    """Taken from what mmdet's attention hands to its window attention: the same pairs, and the same
    shares in attention, less mmdet's of 1e-44, denormal numbers that slow a CPU down."""
    msa = ShiftWindowMSA(2, 1, window, shift_size=window // 2)
    masks = []

    def take(module, args, kwargs):
        masks.append(kwargs["mask"])

    msa.w_msa.register_forward_pre_hook(take, with_kwargs=True)
    msa(torch.randn(1, height * width, 2), (height, width))
    mask = WindowGrid(height, width, window).shift_mask(window // 2, CPU)
    assert torch.equal(mask < 0, masks[0] < 0)
    logits = 5 * torch.randn(mask.shape, dtype=torch.float32)
    shares, theirs = ((logits + m.float()).softmax(-1) for m in (mask, masks[0]))
    torch.testing.assert_close(shares, theirs, rtol=0, atol=1e-30)
    assert not ((shares > 0) & (shares < torch.finfo(torch.float32).tiny)).any()


def test_masks_are_made_once_and_outside_of_inference_mode():
    grid = WindowGrid(9, 11, 7)
    _valid.cache_clear()
    _shift_mask.cache_clear()
    with torch.inference_mode():
        valid, mask = grid.valid(CPU), grid.shift_mask(3, CPU)
    assert not valid.is_inference() and not mask.is_inference()
    assert grid.valid(CPU) is valid
    assert WindowGrid(9, 11, 7).shift_mask(3, CPU) is mask
    assert grid.shift_mask(2, CPU) is not mask
