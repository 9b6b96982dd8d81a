"""Mask R-CNN with the dense ViT-B/16 of DINOv3 on COCO: the twin of ltm_dinov3_b_maskrcnn.py."""

_base_ = "./_base_/vitdet.py"
model = dict(
    backbone=dict(
        window_size=16,  # 1024 pixels are 64 patches
        use_abs_pos=False,
        use_rel_pos=False,
        rope_base=100,
        prefix_tokens=5,  # class token and registers
        final_norm=True,
        norm_eps=1e-5,
        init_values=1e-5,
        # Given to those who accept its licence (ai.meta.com/resources/models-and-libraries), under
        # this name. Of timm's vit_base_patch16_dinov3 set qkv_bias=False.
        init_cfg=dict(checkpoint="weights/dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth"),
    ),
)
alone = dict(decay_mult=0.0)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(gamma=alone, prefix_tokens=alone)))
