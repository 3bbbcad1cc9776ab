"""Configurations of training: recipes, overrides, refusals."""

import json

import pytest

from train.config import Run, TrainConfig, field_path, overridden, runs
from train.recipes import RECIPES, recipe
from unmask.errors import UsageError


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json_and_carries_its_name(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert (RECIPES[name].__doc__ or "").strip()


def test_what_the_systems_say() -> None:
    s0, s1, s2 = recipe("dfgc-convnext"), recipe("celebdf-mobilenet"), recipe("dfdc-b7")
    assert (s0.model.window, s0.model.task, s0.loss.kind, s0.optim.lr) == (5, "mos", "rmse", 2e-5)
    assert (s0.optim.schedule, s0.optim.factor, s0.optim.patience, s0.loop.early_stopping) == ("plateau", 0.1, 2, 4)
    assert (s0.loop.batch, s0.loop.accumulate, s0.data.clips_per_video_tested, s0.input.margin) == (2, 8, 10, 1.3)
    assert (s1.loss.pos_weight, s1.data.faces, s1.data.frames_per_video) == ("auto", "largest", 10)
    assert (s1.data.max_videos_per_class, s1.optim.weight_decay, s1.loop.epochs) == (100, 1e-5, 10)
    assert (s2.input.size_px, s2.data.draw) == (380, "balanced")
    assert (s2.loss.kind, s2.loss.label_smoothing) == ("per_class", 0.01)
    assert (s2.optim.schedule, s2.optim.power, s2.optim.clip_norm, s2.loop.sync_bn) == ("poly", 0.9, 1.0, True)
    assert (s2.loop.steps_per_epoch, s2.loop.epochs, s2.loop.batch, len(s2.loop.seeds)) == (2500, 40, 12, 5)
    assert s2.input.margin == pytest.approx(5 / 3)
    assert recipe("ln-tune").loop.freeze == "layer_norm"
    assert recipe("ln-tune").model.head == "l2"


def test_fields_are_set_by_path_or_by_name() -> None:
    config = overridden(
        recipe("dfdc-b7"),
        ["optim.lr=1e-3", "epochs=2", "seeds=[3,4]", "clip_norm=none", "model.backbone=resnet18", "sync_bn=false"],
    )
    assert (config.optim.lr, config.loop.epochs, config.loop.seeds) == (1e-3, 2, (3, 4))
    assert (config.optim.clip_norm, config.model.backbone, config.loop.sync_bn) == (None, "resnet18", False)
    assert overridden(config, ["seeds=7"]).loop.seeds == (7,)
    assert overridden(config, ["optim.lr=1"]).optim.lr == 1.0


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("epochs", "key=value"),
        ("epoch=3", "loop.epochs"),
        ("epochs=many", "a whole number"),
        ("epochs=true", "a whole number"),
        ("epochs=0", "at least 1"),
        ("weight_decay=-1", "0 or more"),
        ("schedule=step", "constant or plateau"),
        ("head=conv", "frame or mobilenet"),
        ("fractions=[1,2]", "a list"),
        ("fractions=[0.5,0.5,0.5]", "sum to 1"),
        ("seeds=[1,1]", "different"),
        ("loss.kind=rmse", "opinion scores"),
        ("ema=2", "decay"),
        ("cached_features=true", "freeze=backbone"),
        ("draw=selfblend", "go together"),
        ("unfreeze_after=2", "freeze"),
        ("size_px=hello", "a whole number or none"),
        ("strategy=1", "one of none, dfgc"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(assignment: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("(", r"\(")) as refused:
        overridden(recipe("dfdc-b5"), [assignment])
    assert "\n" not in refused.value.message


def test_names_that_two_fields_share_must_be_whole() -> None:
    with pytest.raises(UsageError, match=r"could be a\.size or b\.size; give the whole name"):
        field_path("size", {"a.size", "b.size", "c.length"})
    assert field_path("a.size", {"a.size", "b.size"}) == "a.size"
    with pytest.raises(UsageError, match=r"did you mean c\.length"):
        field_path("lenght", {"a.size", "c.length"})


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="selfblend"):
        recipe("selfblended")


def test_a_configuration_of_another_version_is_refused() -> None:
    plain = recipe("selfblend").to_json()
    with pytest.raises(UsageError, match="no field"):
        TrainConfig.from_json({**plain, "colour": 1})
    with pytest.raises(UsageError, match="a group of fields"):
        TrainConfig.from_json({**plain, "loop": 3})
    del plain["model"]["backbone"]
    with pytest.raises(UsageError, match="incomplete"):
        TrainConfig.from_json(plain)


def test_one_run_a_seed_and_one_beside_it_where_augmentation_is_compared() -> None:
    found = runs(overridden(recipe("celebdf-mobilenet"), ["seeds=[0,2]"]))
    assert [run.name for run in found] == ["seed-0", "seed-0-plain", "seed-2", "seed-2-plain"]
    assert [run.config.augment.strategy for run in found] == ["celebdf", "none"] * 2
    assert all(isinstance(run, Run) for run in found)
    assert [run.seed for run in runs(recipe("dfdc-b7"))] == [0, 1, 2, 3, 4]
