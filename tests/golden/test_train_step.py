"""10_train_step: three whole steps: targets, losses, gradients, clipping, AdamW, moving average.

Step 0 is held to 1e-5. Later steps are compared twice: restarted from the recorded weights (again to 1e-5), and running on
by themselves, where the recording's own float32 noise, amplified by Adam, sets the tolerance (README of the recordings).
"""

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from recorded import Case, config, files, names, needs_recordings, relative_error
from test_param_groups import unchunked

from dinoforge.base import dist
from dinoforge.base.schedule import Cosine
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.model.heads import HeadConfig
from dinoforge.model.vit import Vit, VitConfig
from dinoforge.train.follow import follow
from dinoforge.train.optim import clip, fused, optimizer, set_rates
from dinoforge.train.parallel import StepSpeed, quicken, shard
from dinoforge.train.plan import PlanConfig, Scheduled
from dinoforge.train.step import CentringConfig, ObjectiveConfig, Pretrain, SinkhornConfig, networks, teacher_of

pytestmark = needs_recordings

CPU = torch.device("cpu")
TIGHT = 1e-5
LATER_GRADIENT = 4e-4  # recorded float32 against float64 at steps 1 and 2: 1.9e-4
LATER_WEIGHT = 4e-4  # likewise 2.1e-4
VARIANTS = {path.name.removesuffix("_inputs.safetensors"): path for path in files("10_train_step/*_inputs.safetensors")}
OUTPUTS = {
    path.name.removesuffix("_outputs.safetensors"): path for path in files("10_train_step/*_outputs.safetensors")
}
INFO = {path.name.removesuffix("_info.json"): path for path in files("10_train_step/*_info.json")}
TERMS = {"dino_local_crops_loss": ("dino_local", 1.0), "dino_global_crops_loss": ("dino_global", 1.0),
         "ibot_loss": ("ibot", 0.5), "total": ("total", 1.0)}  # fmt: skip


def steps_of(name: str) -> int:
    return len(config(VARIANTS[name])["schedule"])


def items():
    return [pytest.param(name, step, id=f"{name}:step{step}") for name in VARIANTS for step in range(steps_of(name))]


def built(name: str, speed: StepSpeed) -> tuple[Pretrain, torch.optim.AdamW, Case]:
    """Our networks and optimiser with the recorded configuration and initial weights, computed so."""
    inputs, whole = Case(VARIANTS[name]), json.loads(INFO[name].read_text())["config"]
    setup, student = inputs.config, whole["student"]
    shared = not whole["ibot"]["separate_head"]
    arch, sizes = setup["arch"], whole["crops"]
    backbone = Vit(
        VitConfig(
            width=arch["embed_dim"], depth=arch["depth"], heads=arch["num_heads"],
            patch=student["patch_size"], pixels=sizes["global_crops_size"], registers=student["num_register_tokens"],
            ffn="swiglu" if "swiglu" in student["ffn_layer"] else "mlp", layerscale=student["layerscale"],
            position_offset=student["interpolate_offset"], position_antialias=student["interpolate_antialias"],
            drop_path=student["drop_path_rate"],
        )
    )  # fmt: skip
    heads = [
        HeadConfig(prototypes=part["head_n_prototypes"], hidden=part["head_hidden_dim"],
                   bottleneck=part["head_bottleneck_dim"], layers=part["head_nlayers"])
        for part in (whole["dino"], whole["ibot"])
    ]  # fmt: skip
    centring = whole["train"]["centering"] == "centering"
    objective = ObjectiveConfig(
        group=setup["batch"], head=heads[0], patch_head=None if shared else heads[1],
        dino_weight=whole["dino"]["loss_weight"], ibot_weight=whole["ibot"]["loss_weight"],
        koleo_weight=whole["dino"]["koleo_loss_weight"], targets=CentringConfig() if centring else SinkhornConfig(),
    )  # fmt: skip
    mine = networks(backbone, objective, seed=0)
    pretrain = Pretrain(mine, teacher_of(mine), objective, seed=0)
    initial = {unchunked(key): value for key, value in inputs.under("init/student").items()}
    teacher = {unchunked(key): value for key, value in inputs.under("init/teacher").items()}
    pretrain.student.load_state_dict(initial)
    pretrain.teacher.load_state_dict(teacher or initial)
    plan = PlanConfig(
        images=1, layer_decay=whole["optim"]["layerwise_decay"], patch_rate=whole["optim"]["patch_embed_lr_mult"],
        betas=tuple(setup["adamw"]["betas"]), clip=setup["clip"], learning_rate=Cosine(peak=1.0, end=1.0),
    )  # fmt: skip
    quicken(pretrain, speed, CPU)
    shard(pretrain, speed, CPU, "fp32")
    adamw = optimizer(pretrain.student, plan, fused=fused(speed.optimizer, CPU))
    assert all(group["eps"] == setup["adamw"]["eps"] for group in adamw.param_groups)
    return pretrain, adamw, inputs


def batch_of(inputs: Case, step: int) -> Batch:
    """The recorded collation of a step, view-major like ours."""
    read = {key: inputs[f"step{step}/batch/{key}"] for key in
            ("collated_global_crops", "collated_local_crops", "collated_masks", "mask_indices_list", "masks_weight",
             "n_masked_patches", "upperbound")}  # fmt: skip
    images = inputs.config["batch"]
    masks = read["collated_masks"].unflatten(0, (-1, images))
    index, weight = masked_positions(masks)
    assert torch.equal(index, read["mask_indices_list"])
    torch.testing.assert_close(weight, read["masks_weight"], rtol=1e-6, atol=0)
    assert len(index) == read["n_masked_patches"].item() <= read["upperbound"].item()
    return Batch(
        globals=read["collated_global_crops"].unflatten(0, (-1, images)),
        locals=read["collated_local_crops"].unflatten(0, (-1, images)),
        masks=masks, masked_index=index, mask_weight=weight, groups=(step,),
    )  # fmt: skip


@functools.cache
def run(name: str, *, restart: bool) -> list[SimpleNamespace]:
    """All steps of a variant as they are computed by default."""
    return computed(name, restart=restart, speed=StepSpeed())


def computed(name: str, *, restart: bool, speed: StepSpeed) -> list[SimpleNamespace]:
    """All steps of a variant, each with everything that was recorded of it; on ranks, each has the recorded batch."""
    pretrain, adamw, inputs = built(name, speed)
    outputs, setup = Case(OUTPUTS[name]), inputs.config
    calls: dict[str, torch.Tensor] = {}
    for role, module in (("teacher", pretrain.teacher), ("student", pretrain.student)):
        for head in ("dino_head", "ibot_head"):
            if getattr(module, head) is not None:
                getattr(module, head).register_forward_hook(
                    lambda _m, _i, out, key=f"{role}.{head}": calls.update({key: (out[0] @ out[1].T).detach()})
                )
    found = []
    for step, numbers in enumerate(setup["schedule"]):
        if restart and step:
            load(pretrain, outputs.under(f"step{step - 1}/student_after"))
        calls.clear()
        batch = batch_of(inputs, step)
        at = Scheduled(
            numbers["lr"], numbers["last_layer_lr"], numbers["wd"], numbers["momentum"], numbers["teacher_temp"]
        )
        set_rates(adamw, at)
        used = {k: v.centre.clone() for k, v in pretrain.centres.items()}
        targets = pretrain.targets([batch], at)[0]
        losses = pretrain.losses(batch, targets)
        losses.total.backward()
        grads = {key: dist.whole(p.grad).clone() for key, p in pretrain.student.named_parameters()}
        norms = clip(pretrain.student, setup["clip"])
        adamw.step()
        adamw.zero_grad()
        if restart:  # the teacher follows the recorded student, not our own
            load(pretrain, outputs.under(f"step{step}/student_after"))
        follow(pretrain.teacher, pretrain.student, numbers["momentum"])
        found.append(
            SimpleNamespace(
                batch=batch, targets=targets, losses=losses, grads=grads, norms=norms, calls=dict(calls),
                student={k: dist.whole(v.detach()).clone() for k, v in pretrain.student.named_parameters()},
                teacher={k: dist.whole(v.detach()).clone() for k, v in pretrain.teacher.named_parameters()},
                centres=used,
                adam={k: adamw.state[p] for k, p in pretrain.student.named_parameters()},
            )
        )  # fmt: skip
    return found


def load(pretrain: Pretrain, recorded: dict[str, torch.Tensor]) -> None:
    pretrain.student.load_state_dict({unchunked(key): value for key, value in recorded.items()})


def without_key_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The key third of a qkv bias has no gradient but rounding noise."""
    if name.endswith("attn.qkv.bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor


def compare(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float) -> None:
    for key, recorded in want.items():
        mine = unchunked(key)
        error = relative_error(without_key_bias(mine, got[mine]), without_key_bias(mine, recorded))
        assert error <= tolerance, f"{key}: {error:.2e} > {tolerance:.0e}"


def test_every_recorded_tensor_has_a_test():
    """Altered or unknown tensors cannot hide: each name belongs to a kind that the tests below read whole."""
    kinds = ("batch", "loss", "mid", "grad", "grad_norm_before_clip", "student_after", "teacher_after")
    for path in [*VARIANTS.values(), *OUTPUTS.values()]:
        for name in names(path):
            parts = name.split("/")
            assert parts[0] == "init" or parts[1] in kinds, f"{path.name}: {name} is read by no test"


@pytest.mark.parametrize(("name", "step"), items())
def test_losses_and_targets(name, step):
    got, case = run(name, restart=True)[step], Case(OUTPUTS[name], f"step{step}/")
    for recorded, value in case.under("loss").items():
        if recorded == "koleo_loss":
            weight = json.loads(INFO[name].read_text())["config"]["dino"]["koleo_loss_weight"]
            mine = weight * got.losses.terms["koleo"] / 2
        else:
            term, factor = TERMS[recorded]
            mine = factor * got.losses.terms[term]
        assert mine.item() == pytest.approx(value.item(), rel=TIGHT), recorded
    running_on = run(name, restart=False)[step]
    assert running_on.losses.total.item() == pytest.approx(case["loss/total"].item(), rel=TIGHT if step == 0 else 1e-4)


@pytest.mark.parametrize(("name", "step"), items())
def test_scores_and_centres(name, step):
    got, case = run(name, restart=True)[step], Case(OUTPUTS[name], f"step{step}/mid/")
    images, masked = got.batch.globals.shape[1], len(got.batch.masked_index)
    for recorded in case.names:
        want = case[recorded]
        if recorded == "dino_targets":
            mine, want = swap(got.targets.images.rows().flatten(0, 1), images), want.flatten(0, -2)
        elif recorded == "ibot_targets":
            mine, want = got.targets.patches.rows(), want.flatten(0, -2)
        elif recorded.startswith("center_"):
            mine, want = got.centres["images" if recorded.endswith("dino") else "patches"], want.flatten()
        elif recorded.startswith("teacher.dino"):
            mine, patches = got.calls["teacher.dino_head"].tensor_split([2 * images])
            mine, want, extra = swap(mine, images), want[: 2 * images], want[2 * images :]
            if len(extra):
                assert relative_error(patches, extra[:masked]) <= TIGHT
        elif recorded.startswith("student.dino"):
            want, rows = want[0], (2 + len(got.batch.locals)) * images
            mine, patches = got.calls["student.dino_head"].tensor_split([rows])
            mine = torch.cat([mine[2 * images :], mine[: 2 * images]])  # recorded: local views first
            want, extra = want[:rows], want[rows:]
            if len(extra):
                assert relative_error(patches, extra[:masked]) <= TIGHT
        else:
            mine, want = got.calls[recorded], want[:masked]
        assert relative_error(mine, want) <= TIGHT, recorded


def swap(rows: torch.Tensor, images: int) -> torch.Tensor:
    """Recorded teacher rows hold the second global view first."""
    return torch.cat([rows[images:], rows[:images]])


@pytest.mark.parametrize(("name", "step"), items())
def test_gradients_and_their_norms(name, step):
    case = Case(OUTPUTS[name], f"step{step}/")
    restarted, running_on = run(name, restart=True)[step], run(name, restart=False)[step]
    compare(restarted.grads, case.under("grad"), TIGHT)
    compare(running_on.grads, case.under("grad"), TIGHT if step == 0 else LATER_GRADIENT)
    for module, norm in case.under("grad_norm_before_clip").items():
        assert restarted.norms[module].item() == pytest.approx(norm.item(), rel=TIGHT)


@pytest.mark.parametrize(("name", "step"), items())
def test_weights_after(name, step):
    got, case = run(name, restart=False)[step], Case(OUTPUTS[name], f"step{step}/")
    compare(got.student, case.under("student_after"), LATER_WEIGHT)
    compare(got.teacher, case.under("teacher_after"), LATER_WEIGHT)


@pytest.mark.parametrize("name", VARIANTS)
def test_optimizer_groups(name):
    pretrain, adamw, _ = built(name, StepSpeed())
    info = json.loads(INFO[name].read_text())
    by_tensor = {id(tensor): key for key, tensor in pretrain.student.named_parameters()}
    got = {
        by_tensor[id(tensor)]: (group["multipliers"].rate, group["multipliers"].decay, group["multipliers"].last_layer)
        for group in adamw.param_groups
        for tensor in group["params"]
    }
    want = {
        unchunked(key): (
            pytest.approx(group["lr_multiplier"], rel=1e-12),
            group["wd_multiplier"],
            group["is_last_layer"],
        )
        for group in info["optimizer_groups"]
        for key in group["names"]
    }
    assert got == want
    assert len(adamw.param_groups) == len({repr(g["multipliers"]) for g in adamw.param_groups})


@pytest.mark.parametrize(("name", "step"), items())
def test_checksums(name, step):
    """Also of what was too large to record: L2 norm and sum of magnitudes of every gradient and weight."""
    got = run(name, restart=False)[step]
    sums = json.loads(INFO[name].read_text())["checksums_sum_l2_abssum"][step]
    kinds = {"grad": got.grads, "student_after": got.student, "teacher_after": got.teacher}
    assert set(sums) <= set(kinds), f"a kind of checksum no test knows: {set(sums)}"
    for kind, recorded in sums.items():
        for key, (total, norm, magnitude) in recorded.items():
            tensor = kinds[kind][unchunked(key)].double()
            tolerance = 1e-3 if "qkv.bias" in key else (TIGHT if step == 0 and kind == "grad" else LATER_GRADIENT)
            assert tensor.norm().item() == pytest.approx(norm, rel=tolerance), (kind, key)
            assert tensor.abs().sum().item() == pytest.approx(magnitude, rel=tolerance), (kind, key)
            assert tensor.sum().item() == pytest.approx(total, abs=tolerance * max(magnitude, 1e-6)), (kind, key)


@pytest.mark.parametrize("name", VARIANTS)
def test_adam_state(name):
    got = run(name, restart=False)[-1].adam
    for key, recorded in json.loads(INFO[name].read_text())["adam_state_after_last_step"].items():
        state = got[unchunked(key)]
        assert state["exp_avg"].double().norm().item() == pytest.approx(recorded["exp_avg_l2"], rel=1e-3)
        assert state["exp_avg_sq"].double().sum().item() == pytest.approx(recorded["exp_avg_sq_sum"], rel=1e-3)
        assert state["step"].item() == recorded["step"] == steps_of(name)


@pytest.mark.parametrize("name", VARIANTS)
def test_recorded_noise_is_what_the_tolerances_allow_for(name):
    """The tolerances above stand on the recording's own distance from float64; should that grow, they must be thought over."""
    for step, noise in enumerate(json.loads(INFO[name].read_text())["noise_f32_vs_f64"]):
        for loss, error in noise["loss"].items():
            assert math.isfinite(error), loss
            assert error <= (TIGHT if step == 0 else 1e-4)


def test_inputs_and_outputs_belong_together():
    assert set(VARIANTS) == set(OUTPUTS) == set(INFO)
    assert all(Path(path).exists() for path in VARIANTS.values())
    for name, path in VARIANTS.items():
        assert config(path) == config(OUTPUTS[name])
