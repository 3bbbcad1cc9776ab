"""The training loop: the same in one process and on each worker of Ray Train.

Whatever it needs to go on lies in the run's folder after every epoch, and every so many batches where that is asked
for. Taken up again, with as many workers, it comes to the same weights as if it had never stopped: every random number
comes from the seed, the epoch and the place of a sample, or from generators whose state is kept.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from train import state
from train.clips import Batch, batches
from train.config import Run
from train.context import Context
from train.distill import Teachers
from train.finish import keep_best, write_summary
from train.history import History, write_tensorboard
from train.losses import Loss
from train.material import Material
from train.network import Network, accumulating, average, describe_size, optimiser, prepared, set_phase, wrapped
from train.precision import choose
from train.samplers import Batches, epoch_plan
from train.schedules import Course, rate
from train.state import LAST, Progress
from train.validation import HIGHER_IS_BETTER, Validated, validate
from unmask.errors import StorageError, TrainingError, UsageError
from unmask.models import build
from unmask.storage import Store

__all__ = ["Training"]

Say = Callable[[str], None]
_TELL_S = 15.0


def _silent(_: str) -> None:
    return None


@dataclass(slots=True)
class _Meter:
    """Sums over the batches of an epoch. What lies on a GPU is added up there."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def plain(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.sums.items()}


class Training:
    """Trains one model to its end, from wherever its folder says that it is.

    Args:
        run: What.
        material: On what.
        store: The run's folder.
        context: The workers.
        say: Tells a person how it goes.
        loader_workers: Processes that load data for this worker.

    Raises:
        UsageError: The configuration does not fit the device or the data.
        ModelError: The backbone or its weights cannot be had.
    """

    def __init__(
        self,
        run: Run,
        material: Material,
        store: Store,
        context: Context,
        *,
        say: Say = _silent,
        loader_workers: int = 0,
    ) -> None:
        self.run, self.config, self.material, self.store, self.context = run, run.config, material, store, context
        self._say = say if context.leads else _silent
        self._loader_workers = loader_workers
        loop = self.config.loop
        torch.manual_seed(run.seed * 1000 + context.rank)
        weights = Path(self.config.weights).expanduser() if self.config.weights else None
        model = build(
            self.config.model, pretrained=self.config.pretrained and not weights and material.kept is None,
            weights=weights, seed=run.seed,
        )  # fmt: skip
        if material.kept is not None:
            material.kept.start(model)
        self.network = Network(
            prepared(model, loop, context.device), material.preprocessing, channels_last=loop.channels_last
        )
        self.precision = choose(loop, context.device)
        self.scaler = self.precision.scaler()
        self.optimiser = optimiser(self.network.model, self.config.optim)
        self.teachers: Teachers | None = None
        if self.config.distill.teachers:
            self.teachers = Teachers.load(self.config, material.preprocessing, context.device)
        self.average: AveragedModel | None = average(self.network, loop.ema) if loop.ema else None
        labels_U = material.train.pool.label_U
        self.loss = Loss(self.config.loss, reals=int((labels_U == 0).sum()), fakes=int((labels_U == 1).sum()))
        self.course = Course(
            higher_is_better=HIGHER_IS_BETTER[loop.select],
            patience=self.config.optim.patience,
            stop_after=loop.early_stopping,
        )
        self.history = History(store)
        self.progress = Progress()
        self._wrapped: nn.Module = self.network
        self._resume()

    def _resume(self) -> None:
        found = state.load(self.store, LAST, self.context)
        if found is None:
            return
        parts, self.progress = found
        try:
            self.network.model.load_state_dict(parts["model"])
            self.optimiser.load_state_dict(parts["optimiser"])
            if parts["scaler"]:  # none from a device that needs no scaler
                self.scaler.load_state_dict(parts["scaler"])
            if self.average is not None:
                self.average.load_state_dict(parts["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise StorageError(
                f"{self.store.shown}/{LAST} was written by another version of timm or Unmask; choose another --out"
            ) from error
        self.course.restore(self.progress.course)
        self._say(f"{self.run.name}: goes on from epoch {self.progress.epoch + 1}, batch {self.progress.step + 1}")

    def save(self) -> None:
        """Write the state; every worker calls this."""
        self.progress.course = self.course.state()
        parts = {
            "model": self.network.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        state.save(self.store, LAST, parts, self.progress, self.context)

    def fit(self) -> None:
        """Train to the end: all epochs, or until validation stands still for too long.

        Raises:
            TrainingError: The loss is not finite; the message names the samples of the batch.
            UsageError: Crops that cannot be read, and more.
        """
        set_phase(self.network.model, self.config.loop, self.progress.epoch)
        self._say(f"{self.run.name}: {describe_size(self.config, self.network)}, {self.precision.name}")
        while self.progress.epoch < self.config.loop.epochs and not self.course.is_over:
            self._epoch()
        if self.context.leads:
            write_summary(self)
        self.context.barrier()

    def _batches(self) -> Batches:
        loop, progress, pool = self.config.loop, self.progress, self.material.train.pool
        is_mos = self.config.model.task == "mos"
        plan = epoch_plan(
            pool, self.material.catalogue, self.config.data, seed=self.run.seed, epoch=progress.epoch, mos=is_mos
        )
        return Batches(
            plan,
            loop.batch,
            rank=self.context.rank,
            workers=self.context.workers,
            steps=loop.steps_per_epoch,
            start=progress.step,
        )

    def _epoch(self) -> None:
        began = time.perf_counter()
        todo = self._batches()
        set_phase(self.network.model, self.config.loop, self.progress.epoch)
        self.network.train()
        self._wrapped = wrapped(self.network, self.config.loop, self.context)
        meter = _Meter(dict(self.progress.sums))
        self._train(todo, meter)
        trained_s = time.perf_counter() - began
        validated = self._validate()
        self._book(todo, meter, validated, trained_s)

    def _train(self, todo: Batches, meter: _Meter) -> None:
        loop = self.config.loop
        steps = todo.steps
        updates = math.ceil(steps / loop.accumulate) * loop.epochs
        loaded = batches(
            self.material.train, todo, workers=self._loader_workers, pinned=self.context.device.type == "cuda"
        )
        pending: tuple[Tensor, Batch, int] | None = None
        told = time.monotonic()
        for step, batch in enumerate(loaded, todo.start):
            # The last group of an epoch may be a smaller one.
            first = step - step % loop.accumulate
            group = min(loop.accumulate, steps - first)
            is_last = step == first + group - 1
            with accumulating(self._wrapped, is_last=is_last):
                loss = self._forward(batch)
                self.scaler.scale(loss / group).backward()  # type: ignore[no-untyped-call]
            # On a GPU a number is ready when the next batch is under way: asking for it sooner would wait.
            if pending is not None:
                self._check(*pending)
            pending = (loss.detach(), batch, step)
            if is_last:
                self._update(updates)
            meter.add(loss=loss.detach() * len(batch), samples=float(len(batch)), substituted=float(batch.substituted),
                      unchanged=float(batch.unchanged))  # fmt: skip
            self.progress.step = step + 1
            if is_last and self._is_time_to_save(step, steps):
                self._check(*pending)
                self.progress.sums = meter.plain()
                self.save()
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                done = (self.progress.epoch * steps + step + 1) / (steps * loop.epochs)
                where = f"epoch {self.progress.epoch + 1}, batch {step + 1} of {steps}"
                self._say(f"{self.run.name}: {where}, {done:.0%} of all")
        if pending is not None:
            self._check(*pending)

    def _forward(self, batch: Batch) -> Tensor:
        device = self.context.device
        wants_features = bool(self.config.loss.alignment or self.config.loss.uniformity)
        with self.precision.autocast():
            valid_BT, pixels = batch.valid_BT.to(device, non_blocking=True), batch.pixels.to(device, non_blocking=True)
            logits_B, features_MD, where_Mhw = self._wrapped(pixels, valid_BT)
            said = None if self.teachers is None else self.teachers(pixels, valid_BT)
        # Outside: autocast would multiply the features in few bits again.
        loss = self.loss(logits_B, batch.label_B.to(device), features_MD if wants_features else None)
        if self.teachers is not None and said is not None:
            loss = self.teachers.loss(loss, logits_B, features_MD, said)
        if where_Mhw is not None and batch.mask is not None:
            mask_Mhw = batch.mask.to(device, non_blocking=True)[valid_BT].float() / 255.0
            loss = loss + self.config.loss.mask * F.binary_cross_entropy_with_logits(where_Mhw.float(), mask_Mhw)
        return loss

    def _is_time_to_save(self, step: int, steps: int) -> bool:
        every = self.config.loop.save_every_steps
        # Between two steps of the optimiser, and not where the epoch's end saves anyway.
        return every is not None and step + 1 < steps and (step + 1) % every < self.config.loop.accumulate

    def _check(self, loss: Tensor, batch: Batch, step: int) -> None:
        if not bool(torch.isfinite(loss)):
            names = [self.material.catalogue.name_of(face) for face in batch.faces]
            raise TrainingError(
                f"the loss of {self.run.name} is not finite in epoch {self.progress.epoch + 1}, batch "
                f"{step + 1}, with {'; '.join(names[:8])}{' and more' if len(names) > 8 else ''}: lower "
                "optim.lr, set optim.clip_norm=1, or look at these crops"
            )

    def _update(self, updates: int) -> None:
        config = self.config.optim
        for group in self.optimiser.param_groups:
            group["lr"] = rate(config, self.progress.updates, updates, self.course.drops)
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.network.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.updates += 1
        if self.average is not None:
            self.average.update_parameters(self.network.model)

    def judge(self) -> Network:
        """The network that is validated and kept: with the averaged weights where there are any."""
        if self.average is None:
            return self.network
        return Network(
            self.average.module,  # type: ignore[arg-type]
            self.material.preprocessing,
            channels_last=self.config.loop.channels_last,
        )

    def _validate(self) -> Validated:
        judge = self.judge()
        # BatchNorm's statistics are each worker's own; the first one's are those that are kept.
        self.context.share(judge.buffers())
        return validate(judge, self.material.val, self.precision, self.context, loader_workers=self._loader_workers)

    def _book(self, todo: Batches, meter: _Meter, validated: Validated, trained_s: float) -> None:
        """The end of an epoch: keep the best, write everything, tell everybody."""
        select, progress, context = self.config.loop.select, self.progress, self.context
        if select not in validated.metrics:
            raise UsageError(
                f"loop.select={select} cannot be computed on this validation split, which gives "
                f"{', '.join(validated.metrics)}: choose another, or hold out more videos of both classes"
            )
        names = sorted(meter.sums)
        sums = dict(zip(names, context.sum([meter.plain()[n] for n in names]), strict=True))
        is_best = self.course.tell(progress.epoch, validated.metrics[select], validated.metrics["loss"])
        row: dict[str, Any] = {
            "epoch": progress.epoch,
            "train_loss": sums["loss"] / sums["samples"],
            **{f"val_{k}": v for k, v in validated.metrics.items()},
            "lr": self.optimiser.param_groups[0]["lr"],
            "samples": int(sums["samples"]),
            "substituted": int(sums["substituted"]),
            "unchanged": int(sums["unchanged"]),
            "seconds": round(trained_s, 3),
            "samples_per_s": round(len(todo) * self.config.loop.batch * context.workers / max(trained_s, 1e-9), 1),
            "is_best": is_best,
        }
        if context.leads:
            if is_best:
                keep_best(self, validated, row)
            self.history.add(row)
            write_tensorboard(self.store, self.history.rows)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        self.save()
        self._say(self._line(row))
        context.report(row)

    def _line(self, row: dict[str, Any]) -> str:
        select = self.config.loop.select
        odd = f", {row['substituted']} crops unreadable" if row["substituted"] else ""
        return (
            f"{self.run.name}: epoch {row['epoch'] + 1} of {self.config.loop.epochs}, loss {row['train_loss']:.4f}, "
            f"validation {select} {row[f'val_{select}']:.4f}{' (best)' if row['is_best'] else ''}, "
            f"{row['samples_per_s']:.0f} samples/s{odd}"
        )
