"""What torch.compile has made, kept in the store, so that the next start need not make it again.

PyTorch reads these artefacts with pickle: they never leave the machine, as neither export nor push takes them along.
"""

from pathlib import Path

import numpy as np
import torch

from cache.entries import entry_exists, open_entry
from cache.keys import Components
from cache.layout import ArraySpec
from cache.locks import entry_lock
from cache.reader import Dataset
from cache.writer import EntryWriter
from trainer.config import TrainerConfig
from trainer.described import told_task

VERSION = 1


class CompiledEntry:
    """The artefacts for a configuration on a GPU, an entry of the dataset's store, or yet to become one."""

    def __init__(self, dataset: Dataset, config: TrainerConfig, gpu: str) -> None:
        training = {name: getattr(config.training, name) for name in ("batch_size", "precision", "accumulate")}
        training["task"] = told_task(config.training.task)
        sections = {name: getattr(config, name).model_dump() for name in ("model", "masking", "loss", "classify")}
        stream = next(iter(next(iter(dataset.symbols.values())).streams.values()))
        shapes = {"seq_lens": dataset.seq_lens, "features": len(stream.manifest["features"])}
        fields = {"torch": torch.__version__, "gpu": gpu, "training": training, **sections, **shapes}
        self._store: Path = dataset.entry.path.parents[1]
        self._components = Components("compiled", VERSION, fields, {})

    def load(self) -> None:
        """Give PyTorch what an earlier run has compiled, if one has."""
        if entry_exists(self._store, "compiled", self._components.key):
            entry = open_entry(self._store, "compiled", self._components.key)
            torch.compiler.load_cache_artifacts(entry.array("artifacts").tobytes())

    def save(self) -> None:
        """Keep what this run has compiled, unless it is there."""
        made = torch.compiler.save_cache_artifacts()
        if made is None:
            return
        with entry_lock(self._store, self._components) as wanted:
            if wanted:
                with EntryWriter(self._store, self._components) as entry:
                    artifacts = entry.array(ArraySpec("artifacts", "|u1", ("byte",)))
                    artifacts.append(np.frombuffer(made[0], np.uint8))
                    entry.publish()
