"""Names and numbers of the tiny detectors whose bottleneck is measured."""

import numpy as np

MEAN = np.array([123.675, 116.28, 103.53])  # of red, green and blue, as in mmdet's Mask R-CNN
STD = np.array([58.395, 57.12, 57.375])
BLOCK = "model.backbone.merger.scope"
STAGE_POINTS = ("stages.1.blocks.1", "stages.3.blocks.1")
