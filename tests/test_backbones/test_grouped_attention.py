"""Dynamic group attention in LTMViT's global blocks."""

import pytest
import torch

from ltm_det.backbones.common.windows import WindowGrid
from ltm_det.backbones.vit.grouped import GroupedAttention, alike
from ltm_det.backbones.vit.layers import GlobalAttention, TokenMap
from ltm_det.basics.errors import InputError
from ltm_det.measure.flops import attention_macs
from ltm_det.merging import SHUT
from tests.test_backbones.harness import difference
from tests.test_backbones.vit_cases import build

GRID = dict(use_rel_pos=False)


def images(height=61, width=37):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def twins(groups, keys, merger=None, **options):
    """One whose global blocks are grouped, and one of the same weights where they are not."""
    own = build(merger, query_groups=groups, group_keys=keys, **GRID, **options)
    other = build(merger, **GRID, **options)
    other.load_state_dict(own.state_dict())
    return own, other


@pytest.mark.parametrize("length, groups", [(12, 3), (13, 3), (5, 5), (3, 7), (1, 2), (50, 1)])
def test_every_query_is_in_a_group_of_equal_size(length, groups) -> None:
    found = alike(torch.randn(2, 3, length, 4), groups)
    size = -(-length // groups)
    assert found.shape == (2, 3, groups, size)
    for order in found.flatten(2).flatten(0, 1):
        assert sorted(order[:length].tolist()) == list(range(length))
        assert (order[length:] == order[length - 1]).all()


def test_groups_are_of_queries_that_are_alike() -> None:
    centres = 10 * torch.eye(4)
    kind = torch.arange(32).roll(3) // 8  # each lies together, but for three
    found = alike((centres[kind] + 0.1 * torch.randn(32, 4))[None, None], 4)
    assert (kind[found[0, 0]] == kind[found[0, 0]][:, :1]).all()


@pytest.mark.parametrize("merger", [None, dict(type="LTM"), dict(type="ToMe")])
@pytest.mark.parametrize("prefix", [0, 2])
def test_with_all_keys_it_is_global_attention(merger, prefix) -> None:
    own, other = twins(3, 10_000, merger, prefix_tokens=prefix)
    assert list(own.state_dict()) == list(other.state_dict())
    assert any(isinstance(block.attn, GroupedAttention) for block in own.blocks)
    assert difference(own(images()), other(images())) < 1e-9


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("groups", [1, 4, 11])
def test_each_query_attends_to_its_groups_keys(groups, prefix) -> None:
    dim, heads, (height, width) = 8, 2, (5, 7)
    total = height * width + prefix
    own = GroupedAttention(dim, heads, groups=groups, keys=6, rel_pos_size=None)
    x, grid = torch.randn(2, total, dim), WindowGrid(height, width, 4)
    qkv = own.qkv(x)
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    found = own.mix(qkv, *own.place(x, TokenMap(grid, grid)))
    torch.testing.assert_close(found, expected_by_hand(own, q, k, v, prefix))


def expected_by_hand(own, q, k, v, prefix):
    """Query by query, with the keys of the group that it is in."""
    out = torch.zeros_like(q)
    members = alike(q[:, :, prefix:], own.groups)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for group in members[b, h].flip(0):  # who stands in several is of the first
                mean = q[b, h, prefix + group].mean(0)
                best = (k[b, h] @ mean).topk(own.keys).indices
                for i in prefix + group:
                    share = (own.scale * k[b, h, best] @ q[b, h, i]).softmax(0)
                    out[b, h, i] = share @ v[b, h, best]
            for i in range(prefix):
                out[b, h, i] = (own.scale * k[b, h] @ q[b, h, i]).softmax(0) @ v[b, h]
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("merger", [None, dict(type="LTM"), dict(type="ToMe"), dict(type="Pool")])
@pytest.mark.parametrize("options", [{}, dict(rope_base=100.0, num_heads=2, embed_dims=16)])
def test_it_learns_with_every_merger_at_any_size(merger, options) -> None:
    model = build(merger, query_groups=4, group_keys=9, **GRID, **options).train()
    for size in ((61, 37), (16, 16), (4, 90)):
        (found,) = model(images(*size))
        assert found.isfinite().all()
    found.square().mean().backward()
    for name, parameter in model.blocks.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(block.attn.qkv.weight.grad.abs().max() > 0 for block in model.blocks)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_token_that_stands_for_nothing_is_no_ones_key(groups) -> None:
    """As merged windows at the border have some: of as many keys as there are others, none is."""
    shut = torch.arange(16) < 3
    own = GroupedAttention(8, 2, groups=groups, keys=13, rel_pos_size=None)
    other = GlobalAttention(8, 2, rel_pos_size=None)
    other.load_state_dict(own.state_dict())
    grid = WindowGrid(4, 4, 4)
    tokens = TokenMap(grid, grid, key_bias=shut[None] * SHUT)
    x = torch.randn(2, 16, 8)
    torch.testing.assert_close(own(x, tokens), other(x, tokens))


def test_it_costs_fewer_products() -> None:
    grouped, full = (attention_macs(model, (256, 256)) for model in twins(8, 64))
    assert grouped < 0.2 * full


def test_fast_and_plain_are_the_same() -> None:
    own, _ = twins(4, 9)
    x = images()
    with torch.no_grad():
        fast = own.float()(x.float())
        plain = own.double()(x.double())
    assert difference([m.double() for m in fast], plain) < 1e-3


def test_it_compiles_to_one_graph() -> None:
    own, _ = twins(4, 9, dict(type="LTM"))
    with torch.no_grad():
        found = torch.compile(own, fullgraph=True, backend="eager")(images())
        assert difference(found, own(images())) < 1e-9


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(query_groups=4), "query_groups=4 and group_keys=None: give both"),
        (dict(group_keys=4), "give both, or neither"),
        (dict(query_groups=4, group_keys=0), "group_keys"),
        (dict(query_groups=4, group_keys=9, use_rel_pos=True), "use_rel_pos=True: set it to"),
        (dict(query_groups=4, group_keys=9, use_rel_pos=False, global_blocks=()), "names none"),
    ],
)
def test_arguments_that_do_not_go_together(options, words) -> None:
    with pytest.raises(InputError, match=words):
        build(None, **{**GRID, **options})
