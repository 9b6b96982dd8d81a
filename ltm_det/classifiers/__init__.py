"""Classifiers with merged tokens, registered with timm on import.

    import timm, ltm_det.classifiers
    model = timm.create_model("ltm_vit_small_patch16_224", compression_ratio=0.5)

``python -m ltm_det.classifiers train.py ...`` runs timm's own scripts with them.
"""

from ltm_det.classifiers.classifier import Classifier, TokenClassifier
from ltm_det.classifiers.loss import IBLoss
from ltm_det.classifiers.registered import MODELS

__all__ = ["MODELS", "Classifier", "IBLoss", "TokenClassifier"]
