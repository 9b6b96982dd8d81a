"""Mask R-CNN with the dense ViT-B/14 of DINOv2 on COCO: the twin of ltm_dinov2_b_maskrcnn.py."""

_base_ = "./_base_/vitdet.py"
strides = [3.5, 7, 14, 28, 56]  # a patch has 14 pixels, and the neck quarters and doubles that
model = dict(
    backbone=dict(
        patch_size=14,
        window_size=15,  # 1024 pixels are 74 patches, so that five windows have one to spare
        pretrain_img_size=518,
        use_rel_pos=False,
        prefix_tokens=5,  # class token and registers
        final_norm=True,
        init_values=1e-5,
        init_cfg=dict(
            checkpoint="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"
        ),
    ),
    rpn_head=dict(anchor_generator=dict(strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=strides[:4]),
        mask_roi_extractor=dict(featmap_strides=strides[:4]),
    ),
)
alone = dict(decay_mult=0.0)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(gamma=alone, prefix_tokens=alone)))
