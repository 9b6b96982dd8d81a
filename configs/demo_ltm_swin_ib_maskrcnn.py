"""Mask R-CNN with a small LTM-Swin on the demo data, trained on the bottleneck's bound as well."""

_base_ = "./demo_ltm_swin_maskrcnn.py"
# New centroids every 70 of the 700 iterations; the bound counts from 30 % of them on.
custom_hooks = [
    *_base_.custom_hooks,
    dict(type="IBHook", weight=0.1, begin=0.3, interval=70),
]
