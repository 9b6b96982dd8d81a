"""mmdet's SSD head, which in mmdet 3.3 trains but does not predict."""

from mmdet.models import SSDHead
from mmdet.registry import MODELS


@MODELS.register_module()
class PredictingSSDHead(SSDHead):
    """mmdet's, with the attribute that prediction asks for.

    ``BaseDenseHead`` of mmdet 3.3 asks each head's ``loss_cls`` how scores become probabilities; a
    SSDHead, whose loss is a function, has none. None stands for the usual softmax.
    """

    loss_cls = None
