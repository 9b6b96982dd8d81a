"""Class activation maps (Grad-CAM, arXiv 1610.02391) of layers inside a backbone.

Inside blocks tokens lie in windows, or fewer of them on a smaller map. :func:`token_map` lays them
out; it is what the package pytorch-grad-cam calls a ``reshape_transform``:

    block = "stages.3.blocks.1"
    GradCAM(model, [backbone.get_submodule(f"{block}.norm1")],
            reshape_transform=token_map(backbone, block, image_size))

Shapes: B images, W windows, N tokens in a window, L = H * W tokens of a map, T prefix tokens, C
channels.
"""

from collections.abc import Callable

from torch import Tensor, nn


def token_map(
    backbone: nn.Module, block: str, image_size: tuple[int, int]
) -> Callable[[Tensor], Tensor]:
    """How tokens of a block become a map, for images of one size.

    Args:
        backbone: LTMSwin or LTMViT.
        block: Name of a block inside, such as 'stages.3.blocks.1' or 'blocks.11'.
        image_size: h and w in pixels, as the backbone gets them.

    Returns:
        A function from what the block's ``norm1`` yields, (B, W, N, C) in a Swin, (B, T + L, C) in
        a ViT, or a gradient of it, to (B, C, H, W): the map that the block runs on.

    Raises:
        ValueError: The block's tokens lie on no grid, as those of mergers that match tokens.
    """
    grid = backbone.grid_of_block(block, image_size)

    def reshape(tokens: Tensor) -> Tensor:
        if tokens.ndim == 4:
            tokens = grid.reverse(tokens)
        tokens = tokens[:, tokens.shape[1] - grid.height * grid.width :]
        return tokens.transpose(1, 2).unflatten(2, (grid.height, grid.width))

    return reshape
