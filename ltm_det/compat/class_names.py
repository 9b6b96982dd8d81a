"""Classes of COCO files by their names.

mmdet gives the n-th class of a config the n-th category of a file that has any of the names, in the
file's order: labels shift without a word where the orders differ or a name is missing. Its data
sets and metrics all ask ``COCO.get_cat_ids`` of mmdet's wrapper, so that is the one place to mend.
"""

from collections import Counter
from collections.abc import Sequence
from functools import wraps
from typing import Any

import numpy as np

from ltm_det.basics.errors import InputError

Asked = str | int | Sequence[Any]


def match_classes_by_name() -> None:
    """Lets mmdet's data sets and metrics find categories by name, and COCO count annotation 0."""
    from mmdet.datasets.api_wrappers import COCO
    from mmdet.evaluation.metrics import coco_metric, ov_coco_metric

    if not hasattr(COCO.get_cat_ids, "__wrapped__"):
        COCO.get_cat_ids = by_name(COCO.get_cat_ids)
        COCO.createIndex = without_zero(COCO.createIndex)
        for name in ("COCOeval", "COCOevalMP"):
            globals()[name] = in_order(getattr(coco_metric, name))  # where pickles find it
            for module in (coco_metric, ov_coco_metric):
                setattr(module, name, globals()[name])


def by_name(get_cat_ids: Any) -> Any:
    @wraps(get_cat_ids)
    def category_ids(
        self: Any, cat_names: Asked = (), sup_names: Asked = (), cat_ids: Asked = ()
    ) -> list:
        """Ids of categories.

        Where names alone are given there is one id for each, in their order. A name that the file
        lacks gets an id which no annotation has, and a category without objects.

        Raises:
            InputError: A name given twice, or in the file twice; no categories at all.
        """
        names = [cat_names] if isinstance(cat_names, str) else list(cat_names)
        if not names or _some(sup_names) or _some(cat_ids):
            return get_cat_ids(self, names, sup_names, cat_ids)
        _refuse_twins(names, "the classes that are asked for")
        if not isinstance(self.dataset.get("categories"), list):
            raise InputError("the annotation file has no list of categories: is it one of COCO's?")
        asked = set(names)
        there = [entry for entry in self.dataset["categories"] if entry.get("name") in asked]
        _refuse_twins([entry["name"] for entry in there], "the categories of the annotation file")
        ids = {entry["name"]: entry["id"] for entry in there}
        for name in names:
            if name not in ids:
                ids[name] = _add_category(self, name)
        return [ids[name] for name in names]

    return category_ids


def without_zero(create_index: Any) -> Any:
    """Annotation ids from 1 on: COCO's evaluation takes a match with object 0 for none at all."""

    @wraps(create_index)
    def index(self: Any) -> None:
        annotations = self.dataset.get("annotations") or ()
        ids = [annotation["id"] for annotation in annotations if "id" in annotation]
        if 0 in ids:
            free = max(number for number in ids if isinstance(number, int)) + 1
            annotations[[a.get("id") for a in annotations].index(0)]["id"] = free
        create_index(self)

    return index


def in_order(evaluation: type) -> type:
    """COCO's evaluation with its results in the order of the categories asked for.

    COCO sorts the ids, and mmdet reads the results of single classes in its own order.
    """

    class Ordered(evaluation):
        def evaluate(self) -> None:
            self.asked = list(self.params.catIds)
            super().evaluate()

        def accumulate(self, p: Any = None) -> None:
            super().accumulate(p)
            if self.params.useCats and self.eval:
                order = np.searchsorted(np.unique(self.asked), self.asked)
                for name, axis in (("precision", 2), ("scores", 2), ("recall", 1)):
                    self.eval[name] = np.take(self.eval[name], order, axis)

    Ordered.__name__ = Ordered.__qualname__ = evaluation.__name__
    return Ordered


def _some(asked: Asked) -> bool:
    return not isinstance(asked, Sequence) or len(asked) > 0


def _refuse_twins(names: Sequence[str], where: str) -> None:
    twins = [name for name, times in Counter(names).items() if times > 1]
    if twins:
        raise InputError(
            f"{where} have names twice: {', '.join(map(repr, twins))}\n"
            "Give each class one name of its own; ltm-det check-data --fix merges categories"
        )


def _add_category(coco: Any, name: str) -> int:
    taken = [*coco.cats, *coco.catToImgs]
    new = max((number for number in taken if isinstance(number, int)), default=0) + 1
    # What stands in other entries is read of all of them: by panoptic tables, by supercategory.
    entry = dict(id=new, name=name, supercategory=name, isthing=1)
    coco.cats[new] = entry
    coco.dataset["categories"].append(entry)
    return new
