"""What a run tells while it goes on: a JSON history, TensorBoard's files, and plots at its end."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unmask.errors import StorageError
from unmask.storage import Store

__all__ = ["HISTORY", "History", "plot", "write_tensorboard"]

HISTORY = "history.json"
"""The file's name in a run's folder."""

_PLOTS = {
    "loss": ("Loss", ("train_loss", "val_loss")),
    "auc": ("AUC on validation", ("val_auc", "val_frame_auc")),
    "accuracy": ("Balanced accuracy on validation", ("val_balanced_accuracy",)),
    "scores": ("Opinion scores on validation", ("val_rmse", "val_plcc", "val_srcc")),
    "rate": ("Learning rate", ("lr",)),
}
_COLOURS = ("#2f6fb5", "#c25b1f", "#3c8c5a", "#7d5ba6", "#b3455c", "#3f97a8", "#95801f", "#6b6b6b")


class History:
    """The numbers of each epoch, in a file that is whole after every one.

    Args:
        store: The run's folder.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.rows: list[dict[str, Any]] = []
        if store.exists(HISTORY):
            try:
                self.rows = [{**row, "epoch": int(row["epoch"])} for row in json.loads(store.read(HISTORY))["epochs"]]
            except (ValueError, KeyError, TypeError):
                raise StorageError(f"{store.shown}/{HISTORY} is damaged; remove it to begin a new one") from None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's numbers; those of an epoch that is run again replace the old ones."""
        self.rows = [r for r in self.rows if r["epoch"] < row["epoch"]] + [dict(row)]
        self._store.write(HISTORY, (json.dumps({"epochs": self.rows}, indent=1) + "\n").encode())


def write_tensorboard(store: Store, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write TensorBoard's event file of a run: every number of every epoch, once. It replaces the one before."""
    from tensorboardX import SummaryWriter

    with TemporaryDirectory() as scratch:
        with SummaryWriter(scratch) as writer:
            for row in rows:
                for name, value in row.items():
                    if isinstance(value, int | float) and name != "epoch":
                        writer.add_scalar(name, value, row["epoch"])
        (events,) = Path(scratch).iterdir()
        store.write("tensorboard/events.out.tfevents.0", events.read_bytes())


def plot(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, bytes]:
    """Draw the histories of some runs into the same plots.

    Args:
        histories: Rows by the name of the run.

    Returns:
        PNG images by name: loss, auc, rate and the like, those for which there are numbers.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    images = {}
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        for name, (title, columns) in _PLOTS.items():
            figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
            axes = figure.add_subplot()
            drawn = 0
            for colour, (run, rows) in zip(_COLOURS * len(histories), histories.items(), strict=False):
                for style, column in zip(("-", "--", ":"), columns, strict=False):
                    points = [(r["epoch"] + 1, r[column]) for r in rows if r.get(column) is not None]
                    if points:
                        label = column.replace("_", " ") + (f", {run}" if len(histories) > 1 else "")
                        marker = "o" if len(points) < 3 else None
                        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, marker=marker)
                        drawn += 1
            if not drawn:
                continue
            axes.set(title=title, xlabel="epoch")
            axes.grid(alpha=0.3)
            if name == "rate":
                axes.set_ylim(bottom=0.0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if drawn > 1:
                axes.legend(frameon=False)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            images[name] = buffer.getvalue()
    return images
