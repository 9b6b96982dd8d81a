"""Sizes of a small Swin, and its costs worked out by hand."""

C, HEIGHT, WIDTH, WINDOW = 8, 64, 96, 4
DEPTHS, HEADS = (2, 1, 1, 1), (2, 2, 2, 2)


def swin_by_hand(height: int, width: int, channels: int, depths: tuple, window: int) -> dict:
    """Macs of each part of a Swin Transformer; height and width in multiples of 4."""
    h, w = height // 4, width // 4
    macs = {"patch_embed": h * w * 3 * 4 * 4 * channels}
    for i, depth in enumerate(depths):
        c = channels * 2**i
        padded = -(-h // window) * window * -(-w // window) * window
        linear = padded * 4 * c * c  # queries, keys, values and projection
        attention = 2 * padded * window**2 * c  # scores and their use
        mlp = 2 * h * w * 4 * c * c
        macs[f"stages.{i}"] = depth * (linear + attention + mlp)
        if i < 3:
            h, w = -(-h // 2), -(-w // 2)
            macs[f"stages.{i}"] += h * w * 4 * c * 2 * c
    return macs
