"""SSCD's loss: its definition term by term, numbers by hand, laws, and extremes."""

import math

import pytest
import torch

from dinoforge.loss.copies import CopyConfig, copy_loss


def drawn(images, channels=6, seed=0):
    return torch.randn(2, images, channels, generator=torch.Generator().manual_seed(seed))


def slow(views, *, group, temperature):
    """One row, one other row at a time, in float64."""
    contrast, entropy = [], []
    for start in range(0, views.shape[1], group):
        rows = [(image, views[copy, image].double()) for copy in range(2) for image in range(start, start + group)]
        unit = [(image, x / x.norm()) for image, x in rows]
        for i, (image, x) in enumerate(unit):
            positive = [x @ y for j, (other, y) in enumerate(unit) if other == image and j != i]
            negative = [x @ y for other, y in unit if other != image]
            for one in positive:
                top = torch.exp(one / temperature)
                below = top + sum(torch.exp(n / temperature) for n in negative) + 1e-6
                contrast.append(-torch.log(top / below))
            entropy.append(-torch.log(torch.sqrt(torch.clamp(2 - 2 * max(negative), min=1e-6))))
    return torch.stack(contrast).mean(), torch.stack(entropy).mean()


@pytest.mark.parametrize(("images", "group"), [(6, 6), (6, 3), (8, 2), (2, 2)])
@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_equals_its_definition(images, group, temperature):
    views = drawn(images)
    found = copy_loss(views, group=group, config=CopyConfig(temperature=temperature))
    contrast, entropy = slow(views, group=group, temperature=temperature)
    assert found.contrast.item() == pytest.approx(contrast.item(), rel=1e-4)
    assert found.entropy.item() == pytest.approx(entropy.item(), rel=1e-4)


def test_by_hand():
    """Two images at right angles, both views equal: ln(1 + 2 e^(-1/t)), and a distance of the root of 2."""
    views = torch.eye(2).expand(2, 2, 2)
    found = copy_loss(views, group=2, config=CopyConfig(temperature=0.5))
    assert found.contrast.item() == pytest.approx(math.log1p(2 * math.exp(-2)), rel=1e-5)
    assert found.entropy.item() == pytest.approx(-math.log(math.sqrt(2)), rel=1e-5)
    # Opposite images are further apart, and cost less.
    apart = copy_loss(torch.tensor([[1.0], [-1.0]]).expand(2, 2, 1), group=2, config=CopyConfig(temperature=0.5))
    assert apart.contrast.item() == pytest.approx(math.log1p(2 * math.exp(-4)), rel=1e-4)
    assert apart.entropy.item() == pytest.approx(-math.log(2), rel=1e-5)


def test_length_order_and_which_view_comes_first_do_not_count():
    views, config = drawn(6), CopyConfig()
    expected = copy_loss(views, group=6, config=config)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for changed in (views * 7, views[:, order], views.flip(0)):
        found = copy_loss(changed, group=6, config=config)
        torch.testing.assert_close(found.contrast, expected.contrast)
        torch.testing.assert_close(found.entropy, expected.entropy)


def test_groups_are_the_mean_of_each_alone():
    views, config = drawn(8), CopyConfig()
    whole = copy_loss(views, group=4, config=config)
    parts = [copy_loss(part, group=4, config=config) for part in views.split(4, dim=1)]
    torch.testing.assert_close(whole.contrast, (parts[0].contrast + parts[1].contrast) / 2)
    torch.testing.assert_close(whole.entropy, (parts[0].entropy + parts[1].entropy) / 2)


def test_gradients_pull_views_together_and_push_the_nearest_stranger_away():
    views = torch.tensor([[[1.0, 0.1], [0.9, 0.5]], [[1.0, 0.3], [0.8, 0.6]]], requires_grad=True)
    config = CopyConfig(temperature=0.5)
    for term in ("contrast", "entropy"):
        before = copy_loss(views, group=2, config=config)
        gradient = torch.autograd.grad(getattr(before, term), views)[0]
        assert gradient.abs().sum(dim=-1).min() >= 0
        after = copy_loss(views - 0.05 * gradient, group=2, config=config)
        assert getattr(after, term) < getattr(before, term)
    x = drawn(4, seed=3).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: copy_loss(v.float(), group=4, config=config).contrast.double(), x, eps=1e-3, atol=5e-2, rtol=5e-2
    )


def test_equal_images_and_half_precision_stay_finite():
    """Strangers that coincide: the entropy term is -ln(sqrt(1e-6)), and nothing is infinite."""
    views = torch.ones(2, 3, 4).requires_grad_()
    found = copy_loss(views, group=3, config=CopyConfig())
    assert found.entropy.item() == pytest.approx(-math.log(1e-3), rel=1e-3)
    assert found.contrast.item() == pytest.approx(math.log(5), rel=1e-4)
    (found.contrast + found.entropy).backward()
    assert torch.isfinite(views.grad).all()
    half = copy_loss(drawn(6).bfloat16(), group=6, config=CopyConfig())
    exact = copy_loss(drawn(6), group=6, config=CopyConfig())
    assert half.contrast.dtype == torch.float32
    assert half.contrast.item() == pytest.approx(exact.contrast.item(), rel=0.1)


@pytest.mark.parametrize(("images", "group"), [(6, 4), (2, 1)])
def test_groups_must_be_whole(images, group):
    with pytest.raises(ValueError, match=f"got {images} in groups of {group}"):
        copy_loss(drawn(images), group=group, config=CopyConfig())
