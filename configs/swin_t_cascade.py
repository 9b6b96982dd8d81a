"""Cascade Mask R-CNN with the dense Swin-T on COCO: the twin of ltm_swin_t_cascade.py.

Heads as in the published Swin results (arXiv 2103.14030): four convolutions, SyncBN, GIoU loss.
"""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py"
custom_imports = dict(imports=["ltm_det"])
custom_hooks = [dict(type="ExplosionGuardHook")]
head = dict(
    type="Shared4Conv1FCBBoxHead",
    in_channels=256,
    num_classes=80,
    reg_decoded_bbox=True,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
)
coder = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4)
stds = [[s, s, 2 * s, 2 * s] for s in (1 / 10, 1 / 20, 1 / 30)]  # narrower from stage to stage
bbox_heads = [dict(head, bbox_coder=dict(coder, target_stds=s)) for s in stds]
sampler = dict(type="RandomSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1)
assigners = [
    dict(
        type="MaxIoUAssigner", pos_iou_thr=t, neg_iou_thr=t, min_pos_iou=t, match_low_quality=False
    )
    for t in (0.5, 0.6, 0.7)
]
more = dict(sampler=sampler, mask_size=28, pos_weight=-1, debug=False)
rcnn = [dict(assigner=assigner, **more) for assigner in assigners]
stages = dict(num_stages=3, stage_loss_weights=[1, 0.5, 0.25])
model = dict(
    type="CascadeRCNN",
    roi_head=dict(type="CascadeRoIHead", bbox_head=bbox_heads, **stages),
    train_cfg=dict(rpn_proposal=dict(max_per_img=2000), rcnn=rcnn),
)
default_hooks = dict(checkpoint=dict(type="SafeCheckpointHook"))
