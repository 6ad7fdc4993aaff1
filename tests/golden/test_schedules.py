"""07_schedules: learning rate, weight decay, momentum and temperature of whole plans, to 1e-12."""

import json
from typing import Any

import numpy as np
import pytest
from recorded import Case, files, items, needs_recordings, reading

from dinoforge.base.schedule import Cosine, Ramp
from dinoforge.train.plan import PlanConfig

pytestmark = needs_recordings

# What the official defaults are where a recording does not override them (training.md, section 11).
DEFAULTS: dict[str, dict[str, Any]] = {
    "train": {"OFFICIAL_EPOCH_LENGTH": 1250, "batch_size_per_gpu": 64},
    "teacher": {
        "momentum_teacher": 0.992,
        "final_momentum_teacher": 1.0,
        "warmup_teacher_temp": 0.04,
        "teacher_temp": 0.07,
        "warmup_teacher_temp_epochs": 30,
    },
    "optim": {
        "epochs": 100,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "base_lr": 0.004,
        "warmup_epochs": 10,
        "min_lr": 1e-6,
        "freeze_last_layer_epochs": 1,
    },
}
COLUMNS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "momentum": "teacher_momentum",
    "teacher_temp": "teacher_temperature",
    "last_layer_lr": "last_layer_rate",
}


def plan_of(case: dict[str, Any]) -> tuple[PlanConfig, int]:
    """Our plan, and its steps, for an official configuration: epochs become shares of the plan."""
    train, teacher, optim = (DEFAULTS[name] | case["overrides"].get(name, {}) for name in ("train", "teacher", "optim"))
    epochs, batch = optim["epochs"], train["batch_size_per_gpu"] * case.get("world_size", 1)
    steps = epochs * train["OFFICIAL_EPOCH_LENGTH"]
    plan = PlanConfig(
        images=steps * batch,
        batch=batch,
        learning_rate=Cosine(peak=optim["base_lr"], end=optim["min_lr"], warmup=optim["warmup_epochs"] / epochs),
        last_layer_frozen=optim["freeze_last_layer_epochs"] / epochs,
        weight_decay=Cosine(peak=optim["weight_decay"], end=optim["weight_decay_end"]),
        teacher_momentum=Cosine(peak=teacher["momentum_teacher"], end=teacher["final_momentum_teacher"]),
        teacher_temperature=Ramp(
            start=teacher["warmup_teacher_temp"],
            end=teacher["teacher_temp"],
            length=teacher["warmup_teacher_temp_epochs"] / epochs,
        ),
    )
    return plan, steps


def prefixes(config, names):
    whole = sorted({name.split("/")[0] + "/" for name in names if "/" in name})
    return whole + [name for name in names if "/" not in name]


def ours(config, case, name, index):
    """Our schedule at the given steps."""
    plan, steps = plan_of(config[case])
    assert plan.steps(1) == steps
    return np.array([getattr(plan.at(int(i), steps=steps), COLUMNS[name]) for i in index])


@pytest.mark.parametrize(("path", "prefix"), items("07_schedules/*.safetensors", prefixes))
def test_schedule(path, prefix):
    with reading(path, prefix) as case:
        if not prefix.endswith("/"):  # the cosine alone
            raw = case.config[prefix]
            steps = raw["total_iters"]
            schedule = Cosine(
                start=raw.get("start_warmup_value", 0.0),
                peak=raw["base_value"],
                end=raw["final_value"],
                warmup=raw.get("warmup_iters", 0) / steps,
                frozen=raw.get("freeze_iters", 0) / steps,
            )
            got = [schedule.at(step, steps=steps) for step in range(steps)]
            np.testing.assert_allclose(got, case[""].numpy(), rtol=0, atol=1e-12)
            assert schedule.at(steps, steps=steps) == schedule.at(10 * steps, steps=steps) == raw["final_value"]
            return
        whole(case, prefix.rstrip("/"))


def whole(case: Case, name: str) -> None:
    index = case["iterations"].numpy() if "iterations" in case else None
    for column, field in COLUMNS.items():
        want = case[column].numpy()
        np.testing.assert_allclose(
            ours(case.config, name, column, range(len(want)) if index is None else index), want, rtol=0, atol=1e-12
        )
        about = case.config.get(f"{name}/{column}")
        if about:
            assert about["length"] == len(want)
            plan, steps = plan_of(case.config[name])
            beyond = getattr(plan.at(steps + 7, steps=steps), field)
            assert beyond == pytest.approx(about["value_beyond_end"], abs=1e-12)


@pytest.mark.parametrize("path", files("07_schedules/*.json"), ids=lambda path: path.stem)
def test_rate_scaling(path):
    info = json.loads(path.read_text())
    for row in info["lr_scaling_table"]:
        plan = PlanConfig(
            images=1, batch=row["batch_per_gpu"] * row["world_size"], learning_rate=Cosine(peak=row["base_lr"], end=0.0)
        )
        assert plan.peak_rate == pytest.approx(row["lr"], rel=1e-12)
    for case in info.values():
        if isinstance(case, dict) and "overrides" in case:
            plan, steps = plan_of(case)
            assert plan.peak_rate == pytest.approx(case["scaled_lr"], rel=1e-12)
            assert steps == case.get("total_iterations", steps)
    # The rest of the file repeats what the tensors' own file says of itself.
    for beside in files("07_schedules/*.safetensors"):
        repeated = Case(beside).config
        assert {name: info[name] for name in repeated} == repeated
