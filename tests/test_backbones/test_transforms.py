"""torch.func's transforms of every family: gradients, those of each image, and forward mode."""

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.test_backbones.conftest import FAMILIES

MERGERS = {"dense": None, "LTM": dict(type="LTM"), "ToMe": dict(type="ToMe")}
BUILT = {name: family for name, family in FAMILIES.items() if family.gridless}


@pytest.fixture(params=MERGERS)
def merger(request):
    return MERGERS[request.param]


@pytest.fixture(params=BUILT)
def loss(request, merger):
    """A scalar of weights and images, and the weights."""
    family = BUILT[request.param]
    options = None if merger is None else {**merger, **family.layouts["later"]}
    model = family.build(options).double().eval()

    def of(weights, images):
        return sum(m.sin().square().mean() for m in functional_call(model, weights, (images,)))

    return of, {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 37, 50, generator=generator, dtype=torch.float64)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def by_autograd(loss, weights, images):
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    found = torch.autograd.grad(loss(weights, images), list(weights.values()), allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), found)}


def test_gradients(loss, images):
    loss, weights = loss
    close(grad(loss)(weights, images), by_autograd(loss, weights, images))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_image(loss, images):
    loss, weights = loss
    each = vmap(grad(lambda w, image: loss(w, image[None])), (None, 0))(weights, images)
    for i in range(len(images)):
        want = by_autograd(loss, weights, images[i : i + 1])
        close({name: g[i] for name, g in each.items()}, want)


def test_forward_mode(loss, images):
    """Within this context, since torch has no forward mode of its fused attention."""
    loss, weights = loss
    along = torch.randn_like(images)
    x = images.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        _, got = jvp(lambda x: loss(weights, x), (images,), (along,))
        (gradient,) = torch.autograd.grad(loss(weights, x), x)
    close(got, (gradient * along).sum())
