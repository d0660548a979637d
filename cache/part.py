"""What one training run takes from a dataset, whatever it was made of."""

from dataclasses import dataclass

from cache.layout import ALL_FOLDS, SEQUENCE, fold_name
from cache.reader import Dataset, Entry
from configs.errors import UserError


@dataclass(frozen=True)
class Part:
    """Streams by timeframe, base first (of sequences the one of the fold), and which of the windows train and validate.

    Attributes:
        train: ranges of window numbers: of bars one, of sequences those before and after `val`, without empty ones.
        val: the range of the windows that validate.
    """

    windows: Entry
    streams: dict[str, Entry]
    train: tuple[range, ...]
    val: range


def part_of(dataset: Dataset, fold: int | None = None) -> Part:
    """Of bars both splits of the one symbol; of sequences a fold to validate on, and all the others to train on.

    Raises UserError where there are several symbols, where there is no such fold, and for a fold of bars.
    """
    if len(dataset.symbols) > 1:
        first, count = next(iter(dataset.symbols)), len(dataset.symbols)
        raise UserError(
            f"{dataset.name} holds {count} symbols, and training on several at once is not possible yet; build a "
            f"dataset of one, for example with data.source.symbols=[{first}]"
        )
    ((symbol, entries),) = dataset.symbols.items()
    folds = dataset.folds
    if not folds:
        if fold is not None:
            raise UserError(f"{dataset.name} is made of bars, which are split by time and have no folds; leave it out")
        train, val = (range(*dataset.splits[name]["windows"][symbol]) for name in ("train", "val"))
        return Part(entries.windows, entries.streams, (train,), val)
    if fold is None or not 0 <= fold < len(folds):
        what = "say which" if fold is None else f"there is no fold {fold}"
        raise UserError(f"{dataset.name} has folds 0 to {len(folds) - 1}, of which one validates; {what}")
    val = folds[fold]
    around = (range(val.start), range(val.stop, folds[-1].stop))
    stream = entries.streams.get(ALL_FOLDS) or entries.streams[fold_name(fold)]
    return Part(entries.windows, {SEQUENCE: stream}, tuple(part for part in around if part), val)
