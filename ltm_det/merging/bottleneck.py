"""The step of LTM's mask module as the bound's analytic gradient prescribes it.

Shapes: ``*`` any leading dimensions, N tokens in a window, P kept tokens, C channels, K clusters,
Y classes.
"""

import torch
from torch import Tensor, nn

from ltm_det.basics.arguments import checked, number, whole
from ltm_det.ib import assign, bound_gradient, class_cost, class_posterior, full_precision

# A merged token that draws on next to nothing would get a step without bounds. m counts from here
# on, and a window's U is scaled down as a whole, so that it still lowers the bound and Z U is
# finite in float16.
LEAST_SIZE = 1e-6
LARGEST_ENTRY = 10.0


class BottleneckStep(nn.Module):
    """U = rate * (dIBB/dG's right factor) of a window, for S = S_prev - Z U.

    The merged tokens X~ of the mask so far are assigned to learnable centroids, and each is a
    sample of the bound. Its class is unknown in use, so the model's own posterior p(y|x~), by Bayes
    from Q(a|y), stands in its place: cost(a) = -sum_y p(y|x~) log Q(a|y), taken as given. X~ are
    weighted means with column sums m of G, so that dIBB/dG_np = Z_n . dIBB/dX~_p / m_p: the term
    X~_p . dIBB/dX~_p vanishes, since assignments don't depend on length. Sources: arXiv 2407.15219
    for the bound, the gradient as in :func:`ltm_det.ib.bound_gradient`.

    Centroids and Q start at random; :class:`ltm_det.engine.IBHook` sets them to those it measures.
    The rate starts at zero, so that merging starts as pooling. A positive rate lowers the bound.

    Args:
        dim: C.
        clusters: K.
        classes: Y; to be set by IBHook, the detector's number of classes and one for background.
        beta: Inverse temperature of the assignment, see :func:`ltm_det.ib.assign`.
    """

    @checked(clusters=whole(2), classes=whole(2), beta=number(above=0))
    def __init__(self, dim: int, clusters: int = 32, classes: int = 11, beta: float = 10.0) -> None:
        super().__init__()
        self.beta = beta
        self.centroids = nn.Parameter(torch.randn(clusters, dim))
        self.log_q = nn.Parameter(torch.randn(classes, clusters))  # up to a constant in each row
        self.log_prior = nn.Parameter(torch.zeros(classes))  # up to a constant
        self.rate = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def set_bottleneck(self, centroids: Tensor, q: Tensor, prior: Tensor, beta: float) -> None:
        """Sets what is learned but the rate: (K, C), Q(a|y) as (Y, K), and p(y) as (Y,).

        Args:
            beta: Of the assignment that Q was counted with.

        Raises:
            ValueError: If sizes or beta differ; it names the options to change.
        """
        if beta != self.beta:
            raise ValueError(
                f"update='gradient' has beta={self.beta}, but Q was counted with beta={beta}: "
                "set the merger's beta to that"
            )
        given, own = (centroids, q, prior), (self.centroids, self.log_q, self.log_prior)
        if [x.shape for x in given] != [x.shape for x in own]:
            raise ValueError(
                f"update='gradient' has clusters={len(self.centroids)}, "
                f"classes={len(self.log_q)} in {self.centroids.shape[1]} channels, but was given "
                f"{len(centroids)} clusters, {len(q)} classes in {centroids.shape[-1]} channels "
                f"(Q is {tuple(q.shape)}, the prior {tuple(prior.shape)}): "
                "set the merger's clusters and classes to these"
            )
        self.centroids.copy_(centroids)
        tiny = torch.finfo(torch.float32).tiny
        self.log_q.copy_(q.clamp(min=tiny).log())
        self.log_prior.copy_(prior.clamp(min=tiny).log())

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """U, (*, C, P), from tokens (*, N, C) and their mask (*, N, P), zero for padded tokens."""
        with full_precision(z):
            size = mask.sum(-2).unsqueeze(-1)  # m, (*, P, 1)
            size = size.clamp(min=LEAST_SIZE)
            merged = mask.transpose(-1, -2) @ z.to(mask.dtype) / size  # X~
            log_q = self.log_q.to(mask.dtype).log_softmax(-1)
            phi = assign(merged, self.centroids, self.beta)
            posterior = class_posterior(phi, log_q, self.log_prior.to(mask.dtype))
            cost = class_cost(log_q, posterior)
            gradient = bound_gradient(merged, self.centroids, cost, self.beta)
            step = (self.rate * gradient / size).transpose(-1, -2)
            largest = step.detach().abs().amax((-2, -1), keepdim=True)
            return (step * (LARGEST_ENTRY / largest).clamp(max=1)).to(z.dtype)

    def extra_repr(self) -> str:
        return f"clusters={len(self.centroids)}, classes={len(self.log_q)}, beta={self.beta}"
