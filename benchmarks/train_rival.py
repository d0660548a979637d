"""A Lightning Trainer with our model, masks and loss, and a DataLoader with workers over the same memory maps."""

from collections.abc import Callable, Iterator
from typing import Any

WORKERS = 8


def lightning_step(session: Any, dataset: Any) -> Callable[[int], None]:
    """Steps of a Lightning Trainer, which is let go on for `count` steps at a time."""
    import lightning
    import torch

    from trainer.data import WindowSource

    rows = WindowSource(dataset, torch.device("cpu"))
    windows, batch = RivalWindows(rows, len(rows.train)), session.config.batch_size
    loader = torch.utils.data.DataLoader(
        windows, batch, shuffle=True, num_workers=WORKERS, pin_memory=True, drop_last=True, persistent_workers=True
    )
    source, task, config = session.source, session.task, session.config

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = session.model

        def training_step(self, fetched: list[Any], number: int) -> Any:
            batch = source.batch(fetched)
            losses = task.training_losses(self.model, batch, task.drawn(batch, 0))
            self.log_dict(losses, prog_bar=False)
            return losses["loss"]

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), config.lr, fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, 100_000)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Module()
    batches = endless(loader)
    trainer = lightning.Trainer(
        max_steps=-1, accelerator="gpu", devices=1, precision="bf16-mixed", gradient_clip_val=None, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return Fit(trainer, module, batches)


class Fit:
    """`trainer.fit` in portions: it stays in the loop, in a thread, and is fed so many batches."""

    def __init__(self, trainer: Any, module: Any, batches: Iterator[Any]) -> None:
        import queue
        import threading

        self.wanted: queue.Queue[int] = queue.Queue()
        self.done: queue.Queue[int] = queue.Queue()

        def feed() -> Iterator[Any]:
            while True:
                count = self.wanted.get()
                for _ in range(count):
                    yield next(batches)
                self.done.put(count)

        class Endless:
            def __iter__(self) -> Iterator[Any]:
                return feed()

        threading.Thread(target=lambda: trainer.fit(module, Endless()), daemon=True).start()

    def __call__(self, count: int) -> None:
        self.wanted.put(count)
        self.done.get()


class RivalWindows:
    """A map-style dataset of windows, one slice of each memory map a window."""

    def __init__(self, source: Any, count: int) -> None:
        self.source, self.count = source, count
        (self.train,) = source.train.ranges

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> list[Any]:
        import torch

        index = torch.tensor([self.train[place]])
        return [one[0].clone() for one in self.source.fetch(index)]


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader
