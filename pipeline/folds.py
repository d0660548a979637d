"""Which fold validates a sequence: groups are never divided, and classes are spread as evenly as groups allow."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from cache.sequence_recipe import Folds
from configs.errors import UserError


def assign_folds(label: NDArray[np.int32], group: NDArray[np.int32], folds: Folds, named: str) -> NDArray[np.int8]:
    """The fold of every sequence, int8 [n], from its class and its group, both int32 [n].

    That is scikit-learn's StratifiedGroupKFold, shuffled by the seed. `named` is what a group is, for the message.
    Raises UserError where there are fewer groups than folds, or a fold stays empty.
    """
    groups = len(np.unique(group))
    remedy = f"lower data.folds.count = {folds.count}, or add recordings"
    if groups == 1:
        raise UserError(f"there is one {named}, which cannot both train and validate; add recordings of others")
    if groups < folds.count:
        raise UserError(f"there are {groups} {named}s, and every fold needs one of its own; {remedy}")
    splitter = StratifiedGroupKFold(folds.count, shuffle=True, random_state=folds.seed)
    assigned = np.zeros(len(label), np.int8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer members than folds: the dataset's own warnings name them
        try:
            for fold, (_, validation) in enumerate(splitter.split(np.empty(len(label)), label, group)):
                assigned[validation] = fold
        except ValueError as error:
            raise UserError(f"the sequences cannot be dealt into folds ({error}); {remedy}") from None
    if len(empty := np.setdiff1d(np.arange(folds.count), assigned)):
        raise UserError(f"fold {empty[0]} would hold no sequence, because there are too few {named}s; {remedy}")
    return assigned
