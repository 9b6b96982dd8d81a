"""Mask R-CNN with a small ViT on the demo data, pooled where LTM's demo merges."""

_base_ = "./demo_vit_maskrcnn.py"
model = dict(backbone=dict(merger=dict(type="Pool", merge_at=4, compression_ratio=0.51)))
