"""Cascade Mask R-CNN with the dense ViT-B on COCO: the twin of ltm_vit_b_cascade.py."""

_base_ = "./vit_b_maskrcnn.py"
box_head = dict(_base_.model.roi_head.bbox_head, reg_class_agnostic=True)
rcnn = dict(_base_.model.train_cfg.rcnn)
# Each stage asks for a higher overlap and refines by smaller steps; the numbers are mmdet's.
overlaps = [0.5, 0.6, 0.7]
stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
coders = [dict(box_head["bbox_coder"], target_stds=std) for std in stds]
assign = [dict(pos_iou_thr=t, neg_iou_thr=t, min_pos_iou=t) for t in overlaps]
assigners = [dict(rcnn["assigner"], match_low_quality=False, **a) for a in assign]
model = dict(
    type="CascadeRCNN",
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[dict(box_head, bbox_coder=coder) for coder in coders],
    ),
    train_cfg=dict(rcnn=[dict(rcnn, assigner=assigner) for assigner in assigners]),
)
