"""04_ibot_loss: targets, weights, loss and gradient on masked patches."""

import pytest
import torch
from recorded import config, files, needs_recordings, reading, relative_error

import plain
from dinoforge.data.batch import masked_positions
from dinoforge.loss.ibot import IbotConfig, ibot_loss
from dinoforge.loss.targets import Centring, sinkhorn

pytestmark = needs_recordings
TIGHT = 1e-5


@pytest.mark.parametrize("path", files("04_ibot_loss/*.safetensors"), ids=lambda path: path.stem)
def test_steps(path):
    about = config(path)
    settings = IbotConfig(student_temperature=about["student_temp"])
    centring = Centring(about["K"], momentum=about["center_momentum"])
    with reading(path) as case:
        for step, temperature in enumerate(about["temps"]):
            tensors = case.under(f"step{step}")
            masks, scores = tensors["in/collated_masks"], tensors["in/teacher_logits"]
            index, weight = masked_positions(masks.unsqueeze(0))
            assert torch.equal(index, tensors["in/mask_indices_list"])
            assert relative_error(weight, tensors["in/masks_weight"]) <= TIGHT
            assert len(index) == tensors["in/n_masked_patches"].item() <= tensors["in/upperbound"].item()

            assert relative_error(centring.centre, tensors["centering/center_used"].flatten()) <= TIGHT
            one_group = torch.zeros(len(scores), dtype=torch.long)
            targets = {
                "centering": centring.targets(plain.scores(scores), temperature=temperature, group=one_group, groups=1),
                "sinkhorn": sinkhorn(plain.scores(scores), temperature=temperature, rounds=about["n_iterations"]),
            }
            for kind, target in targets.items():
                assert relative_error(target.rows(), tensors[f"{kind}/teacher_probs"]) <= TIGHT
                student = tensors["in/student_logits"].clone().requires_grad_()
                loss = ibot_loss(plain.scores(student), target, weight, views=len(masks), config=settings)
                loss.backward()
                assert loss.item() == pytest.approx(tensors[f"{kind}/loss"].item(), rel=TIGHT)
                assert loss.item() == pytest.approx(tensors[f"{kind}/loss_weights_derived"].item(), rel=TIGHT)
                assert relative_error(student.grad, tensors[f"{kind}/grad_student_logits"]) <= TIGHT
        assert relative_error(centring.centre, case["final/center"].flatten()) <= TIGHT
        dense(case, settings)


def dense(case, settings):
    """The same loss on unmasked layouts: only the masked rows count, each image's by their number."""
    tensors = case.under("dense")
    masks, student = tensors["in/masks"], tensors["in/student_logits"].requires_grad_()
    index, weight = masked_positions(masks.unsqueeze(0))
    target = tensors["in/teacher_probs"].flatten(0, 1)[index]
    loss = ibot_loss(
        plain.scores(student.flatten(0, 1)[index]), plain.given(target), weight, views=len(masks), config=settings
    )
    loss.backward()
    assert loss.item() == pytest.approx(tensors["out/loss"].item(), rel=TIGHT)
    assert relative_error(student.grad, tensors["grad/student_logits"]) <= TIGHT
