"""Mask R-CNN with a small dense Swin on the demo data: the twin of demo_ltm_swin_maskrcnn.py."""

_base_ = "./_base_/demo.py"
