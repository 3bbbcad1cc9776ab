"""What a run tells: rows of JSON, TensorBoard's file as others read it, plots that show the numbers."""

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from train.history import HISTORY, History, plot, write_tensorboard
from unmask.errors import StorageError
from unmask.storage import Store

BLUE, ORANGE = (0x2F, 0x6F, 0xB5), (0xC2, 0x5B, 0x1F)


def rows(*losses: float) -> list[dict[str, Any]]:
    return [
        {"epoch": n, "train_loss": loss, "val_loss": 2 * loss, "lr": 0.1 / (n + 1), "is_best": n == 1, "samples": 64}
        for n, loss in enumerate(losses)
    ]


def test_rows_are_kept_and_found_again(tmp_path: Path) -> None:
    history = History(Store(tmp_path))
    assert history.rows == []
    for row in rows(3.0, 2.0):
        history.add(row)
    assert json.loads((tmp_path / HISTORY).read_text()) == {"epochs": rows(3.0, 2.0)}
    assert History(Store(tmp_path)).rows == rows(3.0, 2.0)


def test_an_epoch_that_is_run_again_replaces_its_row_and_those_after_it(tmp_path: Path) -> None:
    history = History(Store(tmp_path))
    for row in rows(3.0, 2.0, 1.0):
        history.add(row)
    again = History(Store(tmp_path))
    again.add({"epoch": 1, "train_loss": 5.0})
    found = History(Store(tmp_path)).rows
    assert [row["epoch"] for row in found] == [0, 1]
    assert found[1]["train_loss"] == 5.0


def test_what_is_added_later_does_not_change_the_row(tmp_path: Path) -> None:
    history = History(Store(tmp_path))
    row = {"epoch": 0, "train_loss": 1.0}
    history.add(row)
    row["train_loss"] = 9.0
    history.add({"epoch": 1, "train_loss": 2.0})
    assert [r["train_loss"] for r in History(Store(tmp_path)).rows] == [1.0, 2.0]


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"epochs"', '{"rows": []}'])
def test_a_damaged_history_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / HISTORY).write_text(text)
    with pytest.raises(StorageError, match=r"/history\.json is damaged; remove it to begin a new one"):
        History(Store(tmp_path))


def events(file: Path) -> list[Any]:
    """The records of a TFRecord file: length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found, place = file.read_bytes(), [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event()
        event.ParseFromString(data[place + 12 : place + 12 + length])
        found.append(event)
        place += 12 + length + 4
    assert place == len(data)
    return found


def test_tensorboard_finds_every_number_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_tensorboard(store, rows(9.0))
    write_tensorboard(store, rows(3.0, 2.0, 1.0))  # in place of the first
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    found = {(value.tag, event.step): value.simple_value for event in events(file) for value in event.summary.value}
    wanted = {
        (name, row["epoch"]): float(row[name])
        for row in rows(3.0, 2.0, 1.0)
        for name in ("train_loss", "val_loss", "lr", "samples", "is_best")
    }
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(value, rel=1e-6) for key, value in wanted.items())
    assert sum(len(event.summary.value) for event in events(file)) == len(wanted)


def decoded(data: bytes) -> NDArray[np.uint8]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image[..., ::-1], np.uint8)


def places(image_HWC: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.int64]:
    """Rows and columns (M, 2) of the pixels of about that colour."""
    return np.argwhere((np.abs(image_HWC.astype(int) - colour) <= 40).all(-1))


def middle_of(places_M2: NDArray[np.int64], share: float) -> float:
    """Height of a line (in pixels from above) at a share of its way from left to right."""
    columns = places_M2[:, 1]
    wanted = columns.min() + share * (columns.max() - columns.min())
    return float(places_M2[np.abs(columns - wanted) <= 3, 0].mean())


def test_a_line_goes_where_the_numbers_go() -> None:
    losses = np.linspace(4.0, 1.0, 13).tolist()
    image_HWC = decoded(plot({"seed-0": [{"epoch": n, "train_loss": v} for n, v in enumerate(losses)]})["loss"])
    assert image_HWC.shape == (440, 770, 3)
    assert (image_HWC == 255).all(-1).mean() > 0.8
    line_M2 = places(image_HWC, BLUE)
    assert np.ptp(line_M2[:, 1]) > 0.75 * 770
    assert np.ptp(line_M2[:, 0]) > 0.6 * 440
    heights = [middle_of(line_M2, share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    # Down, which is up in pixels, by the same amount each: the numbers fall on a straight line.
    np.testing.assert_allclose(np.diff(heights), np.diff(heights).mean(), atol=3)
    assert np.diff(heights).mean() > 30


def test_two_runs_are_drawn_in_two_colours_with_a_legend() -> None:
    low, high = ([{"epoch": n, "lr": value, "train_loss": None} for n in range(5)] for value in (1.0, 2.0))
    images = plot({"seed-0": low, "seed-0-plain": high})
    assert images.keys() == {"rate"}  # nothing else has numbers
    image_HWC = decoded(images["rate"])
    below, above = (places(image_HWC, colour) for colour in (BLUE, ORANGE))
    assert len(below) > 300
    assert len(above) > 300
    assert np.median(below[:, 0]) > np.median(above[:, 0]) + 100
    # The legend: text beside short pieces of both lines, away from the lines themselves.
    alone = decoded(plot({"seed-0": low})["rate"])
    dark = [int((image.sum(-1) < 250).sum()) for image in (alone, image_HWC)]
    assert dark[1] > dark[0] + 100


def test_one_epoch_is_a_dot() -> None:
    images = plot({"a": [{"epoch": 0, "val_auc": 0.9, "val_frame_auc": 0.8, "val_balanced_accuracy": 0.5}]})
    assert images.keys() == {"auc", "accuracy"}
    for image in images.values():
        dot_M2 = places(decoded(image), BLUE)
        assert 20 < len(dot_M2) < 3000


@pytest.mark.parametrize(("epochs", "labels"), [(1, 1), (2, 2), (3, 3)])
def test_epochs_are_whole_numbers(epochs: int, labels: int) -> None:
    image_HWC = decoded(plot({"a": [{"epoch": n, "lr": 1.0} for n in range(epochs)]})["rate"])
    # Below the axis stand the numbers of the epochs, one character each, and nothing else.
    inked = np.flatnonzero((image_HWC[396:416].sum(-1) < 450).any(0))
    assert 1 + int((np.diff(inked) > 12).sum()) == labels


def test_five_seeds_have_five_colours() -> None:
    runs = {f"seed-{n}": [{"epoch": k, "lr": float(n + 1)} for k in range(9)] for n in range(5)}
    image_HWC = decoded(plot(runs)["rate"])
    lines = {tuple(image_HWC[y, 300].tolist()) for y in range(40, 380) if int(np.ptp(image_HWC[y, 300])) > 60}
    pure = {c for c in lines if sum(c) < 420}
    assert all(min(np.abs(np.subtract(c, d)).sum() for d in pure if d != c) > 30 for c in pure)
    assert len(pure) == 5


def test_scores_have_a_plot_of_their_own() -> None:
    images = plot(
        {"a": [{"epoch": n, "val_rmse": 1 / (n + 1), "val_plcc": n / 4, "val_srcc": n / 5} for n in range(4)]}
    )
    assert images.keys() == {"scores"}


def test_without_numbers_nothing_is_drawn() -> None:
    assert plot({"a": []}) == {}
    assert plot({}) == {}
