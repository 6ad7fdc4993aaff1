"""03_dino_loss: Sinkhorn and centred targets, the loss on class tokens, and both targets on two real ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recorded import Case, config, files, items, names, needs_recordings, reading, relative_error
from safetensors.torch import load_file, save_file

import plain
from dinoforge.loss.dino import DinoConfig, dino_loss
from dinoforge.loss.targets import Centring, sinkhorn

pytestmark = needs_recordings
TIGHT = 1e-5


def undivided(student_global, student_local, target, temperature):
    """Our loss and its two terms as sums over pairs, each the mean over images: the terms are what was recorded."""
    teachers = len(student_global)
    pairs = teachers * (teachers - 1) + max(len(student_local) * teachers, 1)
    scores = torch.cat([student_global, student_local])
    terms = dino_loss(plain.scores(scores), target, config=DinoConfig(student_temperature=temperature))
    return terms.total * pairs, terms.wide * pairs, terms.local * pairs


def whole_cases(recorded, _names):
    return [*(f"case{number}/" for number in range(len(recorded["cases"]))), "loss/"]


@pytest.mark.parametrize(("path", "prefix"), items("03_dino_loss/sinkhorn*.safetensors", whole_cases))
def test_sinkhorn(path, prefix):
    with reading(path, prefix) as case:
        about = case.config["loss"] if prefix == "loss/" else case.config["cases"][int(prefix[4:-1])]
        scores = case["in/teacher_logits"]
        target = sinkhorn(plain.scores(scores), temperature=about["temp"], rounds=about["n_iterations"])
        assert relative_error(target.rows(), case["out/teacher_probs"]) <= TIGHT
        if prefix != "loss/":
            assert list(scores.shape) == [about["rows"], about["prototypes"]]
            return
        student = case["in/student_local_logits"].requires_grad_()
        images = student.shape[1]
        total, _, local = undivided(
            torch.zeros(2, *student.shape[1:]), student, target.unflatten(len(scores) // images), 0.1
        )
        total.backward()
        assert local.item() == pytest.approx(case["out/loss_local_sum"].item(), rel=TIGHT)
        assert relative_error(student.grad, case["grad/student_local_logits"]) <= TIGHT


@pytest.mark.parametrize("path", files("03_dino_loss/softmax_centering*.safetensors"), ids=lambda path: path.stem)
def test_centring(path):
    about = config(path)
    centring = Centring(about["K"], momentum=about["center_momentum"])
    with reading(path) as case:
        for step, temperature in enumerate(about["temps"]):
            tensors = case.under(f"step{step}")
            scores, images = tensors["in/teacher_logits"], about["batch"]
            assert relative_error(centring.centre, tensors["out/center_used"].flatten()) <= TIGHT
            one_group = torch.zeros(len(scores), dtype=torch.long)
            target = centring.targets(plain.scores(scores), temperature=temperature, group=one_group, groups=1).rows()
            assert relative_error(target, tensors["out/teacher_probs"]) <= TIGHT

            wide = tensors["in/student_global_logits"].unflatten(0, (2, images)).requires_grad_()
            near = tensors["in/student_local_logits"].requires_grad_()
            assert len(near) == about["n_local"]
            # Recorded targets lie opposite the student's view they are compared with: ours are swapped back.
            total, global_sum, local_sum = undivided(
                wide, near, plain.given(target.unflatten(0, (2, images)).flip(0)), about["student_temp"]
            )
            total.backward()  # global views take part in the first term only, local ones in the second
            assert global_sum.item() / 2 == pytest.approx(tensors["out/loss_global_sum"].item(), rel=TIGHT)
            assert local_sum.item() == pytest.approx(tensors["out/loss_local_sum"].item(), rel=TIGHT)
            assert relative_error(wide.grad.flatten(0, 1) / 2, tensors["grad/student_global_logits"]) <= TIGHT
            assert relative_error(near.grad, tensors["grad/student_local_logits"]) <= TIGHT
        assert relative_error(centring.centre, case["final/center"].flatten()) <= TIGHT


RANK = """
import sys, torch, torch.distributed as dist
from safetensors.torch import load_file, save_file
from dinoforge.loss.scores import Scores
from dinoforge.loss.targets import Centring, sinkhorn
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
found = {}
for name, scores in sorted(load_file(f"{folder}/in{rank}.safetensors").items()):
    kind, what, temperature = name.split("|")
    one_group = torch.zeros(len(scores), dtype=torch.long)
    if what == "sinkhorn":
        found[name] = sinkhorn(Scores(scores), temperature=float(temperature)).rows()
    else:
        centring = Centring(scores.shape[1], momentum=0.9)
        centring.targets(Scores(scores), temperature=1.0, group=one_group, groups=1)
        found[f"{kind}|center|"] = centring.centre.clone()
        found[name] = centring.targets(Scores(scores), temperature=float(temperature), group=one_group, groups=1).rows()
save_file(found, f"{folder}/out{rank}.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.dist
@pytest.mark.parametrize("path", files("03_dino_loss/*ranks*.safetensors"), ids=lambda path: path.stem)
def test_ranks(path, tmp_path):
    """Recorded with as many processes as here; rows differ in number from rank to rank."""
    world = config(path)["world_size"]
    asked = re.compile(r"rank(\d+)/(\w+)/out/(sinkhorn|probs_after_center)_t([\d.]+)$")
    wanted = {name: asked.match(name).groups() for name in names(path) if asked.match(name)}
    for rank in range(world):
        case = Case(path, f"rank{rank}/")
        scores = {
            f"{kind}|{what}|{temperature}": case[f"{kind}/in/teacher_logits"]
            for owner, kind, what, temperature in wanted.values()
            if int(owner) == rank
        }
        save_file(scores, tmp_path / f"in{rank}.safetensors")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(world), str(tmp_path)], env=environment())
        for rank in range(world)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0] * world
    for rank in range(world):
        found = load_file(tmp_path / f"out{rank}.safetensors")
        with reading(path, f"rank{rank}/") as case:
            for name in case.names:
                if name.endswith("in/teacher_logits"):
                    case[name]
                elif name.endswith("out/center"):
                    mine = found[f"{name.split('/')[0]}|center|"]
                    assert relative_error(mine, case[name].flatten()) <= TIGHT, name
                else:
                    _, kind, what, temperature = wanted[f"rank{rank}/{name}"]
                    assert relative_error(found[f"{kind}|{what}|{temperature}"], case[name]) <= TIGHT, name


def environment():
    """This process's, with the package on the path."""
    here = Path(__file__).parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
