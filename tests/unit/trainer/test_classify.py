"""The task on a small store of simulated recordings: batches, model, losses, and the mask of what is padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor

from cache.part import part_of
from cache.reader import Dataset
from configs.errors import UserError
from tests.unit.trainer.making_imu import AUGMENTED, DATA, PAD, RECONSTRUCT, build, opened, settings, simulate
from trainer.average import WeightAverage
from trainer.carried import carry_rows
from trainer.classifier import Classifier
from trainer.classify import Classify, classify_task
from trainer.data import Batch, WindowSource
from trainer.folds import chosen_fold
from trainer.reconstruct import reconstruct_task
from trainer.task import Task

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imu")
    data = simulate(folder / "data")
    build(data, folder / "store", *DATA)
    build(data, folder / "store", *PAD)
    return folder / "store"


@pytest.fixture(params=["imu", "padded"])
def dataset(request: pytest.FixtureRequest, store: Path) -> Dataset:
    return opened(store, request.param)


def made(dataset: Dataset, *overrides: Any, fold: int = 1) -> tuple[Classify, WindowSource, Classifier]:
    config = settings(*overrides)
    task, source = classify_task(config, dataset, CPU, fold), WindowSource(dataset, CPU, fold=fold)
    return task, source, task.build_model()


def test_a_batch_is_what_the_store_holds(dataset: Dataset) -> None:
    part = part_of(dataset, 1)
    source = WindowSource(dataset, CPU, fold=1)
    windows = zarr.open_group(part.windows.path, mode="r")
    (stream,), (length,) = part.streams.values(), dataset.seq_lens.values()
    values = zarr.open_group(stream.path, mode="r")["values"][:]
    index = torch.tensor([source.val[0], source.train[0], source.train[-1], source.val[-1], 7])
    batch = source.gather(index)
    (x,) = batch.x
    for row, number in enumerate(index.tolist()):
        end = int(windows["ends"][number, 0])
        np.testing.assert_array_equal(x[row].numpy(), values[end - length : end])
        assert batch.labels[row].tolist() == windows["label"][number].tolist()
        if dataset.name == "padded":
            first = int(windows["starts"][number, 0]) - (end - length)
            assert batch.padding[0][row].tolist() == [place < first for place in range(length)]
    assert (batch.close_time, batch.log_before) == ([], [])
    assert bool(batch.padding) == (dataset.name == "padded")


def test_a_fold_trains_on_all_it_does_not_validate_on(dataset: Dataset) -> None:
    every = set()
    for fold in range(3):
        source = WindowSource(dataset, CPU, fold=fold)
        assert sorted([*source.train, *source.val]) == list(range(160))
        every |= set(source.val)
        groups = part_of(dataset, fold).windows.array("group")
        assert not set(groups[list(source.train)].tolist()) & set(groups[list(source.val)].tolist())
    assert every == set(range(160))


def test_both_tasks_are_tasks(dataset: Dataset) -> None:
    tasks: list[Task] = [
        classify_task(settings(), dataset, CPU, 0),
        reconstruct_task(settings(*RECONSTRUCT), dataset, CPU, 0),
    ]
    assert [list(task.monitors) for task in tasks] == [
        ["loss", "score", "accuracy", "macro_f1", "binary_f1"],
        ["loss", "correlation"],
    ]


def test_losses_and_gradients_of_a_batch(dataset: Dataset) -> None:
    task, source, model = made(dataset, *AUGMENTED, "classify.label_smoothing=0.1", "classify.class_weights=balanced")
    batch = source.gather(torch.arange(16))
    losses = task.training_losses(model, batch, task.drawn(batch, 0))
    assert list(losses) == ["loss", "gesture", "target"]
    assert losses["loss"].item() == pytest.approx((losses["gesture"].item() + losses["target"].item()) / 2)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_a_batch_is_augmented_in_training_only(dataset: Dataset) -> None:
    task, source, model = made(dataset, *AUGMENTED)
    index = torch.arange(16)

    def inputs(epoch: int) -> Tensor:
        return task.drawn(source.gather(index), epoch)[0].clone()

    assert torch.equal(inputs(0), inputs(0))
    assert not torch.equal(inputs(0), inputs(1))
    plain, _, _ = made(dataset)
    for one in (task.predict(model, source, index, int), plain.predict(model, source, index, int)):
        torch.testing.assert_close(one.logits[0], task.predict(model, source, index, int).logits[0])


def test_mixed_windows_have_mixed_labels(dataset: Dataset) -> None:
    task, source, _ = made(dataset, "classify.augment.mixup=0.4")
    index = torch.arange(16)
    mixed, *targets = task.drawn(source.gather(index), 0)
    plain = task.targets(source.gather(index).labels)
    for found, one in zip(targets, plain, strict=True):
        torch.testing.assert_close(found.sum(dim=1), torch.ones(16))
        other = one.roll(1, 0)
        told = (one != other).any(dim=1)
        share = ((found - other) * (one - other)).sum(dim=1) / (one - other).square().sum(dim=1)
        torch.testing.assert_close(found[told], (share[:, None] * one + (1 - share[:, None]) * other)[told])
        assert len(share[told].unique()) > 3
    x = source.gather(index).x[0]
    share = ((mixed[..., :-1] - x.roll(1, 0)) * (x - x.roll(1, 0))).sum(dim=(1, 2)) / (x - x.roll(1, 0)).square().sum(
        dim=(1, 2)
    )
    torch.testing.assert_close(mixed[..., :-1], share[:, None, None] * x + (1 - share[:, None, None]) * x.roll(1, 0))


def test_what_is_padding_changes_no_class(store: Path) -> None:
    task, source, model = made(opened(store, "padded"))
    model.eval()
    batch = source.gather(torch.arange(160))
    padded = batch.padding[0].sum(dim=1) > 4  # a latent and more
    assert 4 < int(padded.sum()) < 160
    x, padding = batch.x[0].clone(), batch.padding[0].clone()
    other = x.masked_fill(padding[..., None], 5.0)
    for one, changed in zip(model(task.inputs(x, padding)), model(task.inputs(other, padding)), strict=True):
        assert torch.equal(one, changed)
    # but the model is told which rows these are
    seen = model(task.inputs(x, torch.zeros_like(padding)))
    assert not torch.allclose(seen[0][padded], model(task.inputs(x, padding))[0][padded])


def test_pooling_leaves_out_latents_of_padding_only() -> None:
    config = settings("model.latent_stride=4")
    model = Classifier(3, (10,), (1,), config.model, (2,)).eval()
    x = torch.randn(1, 10, 4)
    latents = torch.randn(1, 3, 16)
    model.latents = lambda _: [latents]  # type: ignore[method-assign]
    for hidden, kept in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2]), (5, [1, 2]), (6, [2]), (9, [2])):
        x[..., 3] = (torch.arange(10) < hidden).float()  # latents hold rows 0–1, 2–5 and 6–9
        pooled = torch.cat([latents[:, kept].mean(dim=1), latents[:, kept].amax(dim=1)], dim=1)
        torch.testing.assert_close(model([x])[0], model.heads[0](model.norm(pooled)))


def test_the_majority_class_is_that_of_training(dataset: Dataset) -> None:
    task, source, _ = made(dataset)
    labels = part_of(dataset, 1).windows.array("label")
    trained, validated = labels[list(source.train)], labels[list(source.val)]
    common = np.bincount(trained[:, 0]).argmax()
    found = task.baseline(source, int)
    assert found["majority_accuracy"] == pytest.approx((validated[:, 0] == common).mean())
    assert found.keys() == {f"majority_{name}" for name in ("accuracy", "macro_f1", "binary_f1", "score")}
    for count, column in zip(task.counts, trained.T, strict=True):
        assert count.tolist() == np.bincount(column, minlength=len(count)).tolist()


def test_validation_is_what_the_predictions_say(dataset: Dataset) -> None:
    task, source, model = made(dataset, "training.batch_size=7")
    found = task.validate(model, source, int)
    index = source.val.all()
    predictions = task.predict(model, source, index, int)
    truth = torch.from_numpy(part_of(dataset, 1).windows.array("label")[index.numpy()].astype(np.int64))
    assert torch.equal(predictions.truth, truth)
    losses = [torch.nn.functional.cross_entropy(logits, truth[:, k]) for k, logits in enumerate(predictions.logits)]
    assert found["loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)
    assert found["accuracy"] == pytest.approx(
        float((predictions.logits[0].argmax(dim=1) == truth[:, 0]).float().mean())
    )


def test_a_model_that_tells_no_number_is_an_error(dataset: Dataset) -> None:
    task, source, model = made(dataset)
    name = bytes(part_of(dataset, 1).windows.array("id")[source.val[0]]).rstrip(b"\0").decode()
    with torch.no_grad():
        model.heads[0].bias[0] = torch.inf
    with pytest.raises(UserError, match=rf"no number of (\d+) of \1 sequences, {name} the first: either training has"):
        task.validate(model, source, lambda done: None)


def test_every_channel_of_a_recording_is_reconstructed(dataset: Dataset) -> None:
    task = reconstruct_task(settings(*RECONSTRUCT), dataset, CPU, 1)
    source, model = WindowSource(dataset, CPU, fold=1), task.build_model()
    batch = source.gather(torch.arange(32))
    masks = task.masks(0, batch)
    (seen,), (predicted,) = task.inputs(batch, masks), task.reconstruct(model, batch, masks)
    assert predicted.shape == (32, *task.seq_lens, len(task.features)) == (32, *task.seq_lens, 8)
    assert seen.shape == (32, *task.seq_lens, 9)
    hidden = masks.hidden[0]
    if batch.padding:
        assert not (hidden & batch.padding[0]).any()  # there is nothing to tell there
        assert torch.equal(seen[..., 8] > 0, hidden | batch.padding[0])
    else:
        assert torch.equal(seen[..., 8] > 0, hidden)
    assert seen[hidden][:, :8].abs().max() == 0
    losses = task.training_losses(model, batch, task.drawn(batch, 0))
    assert list(losses) == ["loss", "huber", "stft", "amplitude_phase"]
    assert 0 < task.baseline(source, int)["last_value_loss"] < 10


def test_cross_timeframe_needs_several_streams(dataset: Dataset) -> None:
    task = reconstruct_task(settings(*RECONSTRUCT, "loss.weights.cross_timeframe=0.1"), dataset, CPU, 1)
    with pytest.raises(ValueError, match="compares timeframes, and there is only one; set it to 0"):
        task.check(WindowSource(dataset, CPU, fold=1))


def test_carried_rows_are_the_last_visible_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x, hidden = torch.randn(9, 12, 3, generator=generator), torch.rand(9, 12, generator=generator) < 0.5
    found = carry_rows(x, hidden)
    for row in range(9):
        last = torch.zeros(3)
        for place in range(12):
            last = last if hidden[row, place] else x[row, place]
            assert torch.equal(found[row, place], last)


def test_the_average_is_that_of_a_plain_loop() -> None:
    model = torch.nn.Linear(3, 2)
    average, expected = WeightAverage(model, 0.8), model.weight.detach().clone()
    for number in range(60):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        average.update(torch.tensor(number))
        decay = min(0.8, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    live = model.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, live)


def test_class_weights_follow_training_windows(dataset: Dataset) -> None:
    task, _, _ = made(dataset, "classify.class_weights=balanced")
    for count, weight in zip(task.counts, task.class_weights, strict=True):
        total = weight * count
        torch.testing.assert_close(total[count > 0], total.max().expand(int((count > 0).sum())))
    assert all((weight == 1).all() for weight in made(dataset)[0].class_weights)


def test_folds_that_are_not_there(store: Path, test_store: Path) -> None:
    imu, bars = opened(store), opened(test_store, "test")
    assert (chosen_fold(None, imu), chosen_fold("2", imu), chosen_fold(None, bars)) == (0, 2, None)
    for asked, dataset, words in (
        ("3", imu, "--fold 3: imu has the folds 0 to 2; name one of them, or all"),
        ("one", imu, "--fold one: imu has the folds 0 to 2"),
        ("0", bars, "--fold 0: test is made of bars, which are split by time; leave it out"),
    ):
        with pytest.raises(UserError) as failure:
            chosen_fold(asked, dataset)
        assert words in str(failure.value)


def test_bars_have_no_classes(test_store: Path) -> None:
    with pytest.raises(UserError, match=r"training\.task = classify needs labels, and test has none; set it to recons"):
        classify_task(settings(), opened(test_store, "test"), CPU)


def test_batches_of_bars_have_neither_labels_nor_padding(test_store: Path) -> None:
    batch: Batch = WindowSource(opened(test_store, "test"), CPU).gather(torch.arange(3))
    assert batch.padding == [] and batch.labels.shape == (3, 0)
