"""How far features are apart, by hand; what is not near enough is refused."""

import pytest
import torch

from dinoforge.base.errors import WeightsError
from dinoforge.export.compare import compared, judge, sizes, worst
from dinoforge.model.features import Features


def made(change=0.0, at=(0, 0)):
    """Features of ones, but for one number of a patch."""

    def features(images):
        count, _, height, width = images.shape
        patches = torch.ones(count, height // 8, width // 8, 4)
        patches[:, at[0], at[1], 0] += change
        return Features(torch.full((count, 4), 2.0), torch.ones(count, 1, 4), patches)

    return features


def test_by_hand():
    """0.5 of 2 is a quarter; (1.5, 1, 1, 1) and (1, 1, 1, 1) have the cosine 4.5 / (2 * sqrt(5.25))."""
    (seen,) = compared(made(), made(0.5), [(2, 16, 24)], channels=3)
    assert (seen.images, seen.height, seen.width) == (2, 16, 24)
    assert (seen.max_error, seen.relative) == (0.5, 0.25)
    assert seen.cosine == pytest.approx(4.5 / (2 * 5.25**0.5), abs=1e-9)
    assert seen.within(0.25) is False  # the cosine alone
    (same,) = compared(made(), made(), [(1, 8, 8)], channels=3)
    assert (same.max_error, same.cosine) == (0, pytest.approx(1))
    assert same.within(0.0)


def test_only_the_other_runtime_is_in_bfloat16():
    """1 + 2**-9 has no place in 8 bits and becomes 1; a product that is exact there is the same."""

    def summed(images):
        count = len(images)
        total = torch.full((count, 4), 0.25) @ torch.full((4, 4), 1 + 2**-9)
        return Features(total, total[:, None], total[:, None, None])

    (full,) = compared(summed, summed, [(1, 8, 8)], channels=3)
    (half,) = compared(summed, summed, [(1, 8, 8)], channels=3, precision="bf16")
    assert (full.max_error, full.precision) == (0, "fp32")
    assert (half.max_error, half.precision) == (pytest.approx(2**-9, rel=1e-3), "bf16")
    assert half.within(0.0)  # the bound is that of float32


@pytest.mark.parametrize(
    ("change", "told"), [(0.5, "cosine of 0.98"), (0.3, "by 0.15 of"), (float("nan"), "by nan of")]
)
def test_what_is_not_near_enough_in_bfloat16_is_refused(change, told):
    seen = compared(made(), made(change), [(1, 8, 8)], channels=3, precision="bf16")
    with pytest.raises(WeightsError, match=f"{told}.* in bf16; 0.1 and 0.99 are the bounds"):
        judge(seen, 1e-4, name="to=x")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.5, 1e-3])
def test_what_is_not_near_enough_is_refused(wrong):
    """At one size of three, in one number; numbers that are none at all too."""
    where = [(1, 8, 8), (1, 16, 24), (1, 8, 16)]
    seen = compared(made(), lambda images: made(wrong if images.shape[-1] == 24 else 0)(images), where, channels=1)
    with pytest.raises(WeightsError, match=r"to=x: features differ .* at 1x16x24 \(images, rows, columns\)") as error:
        judge(seen, 1e-4, name="to=x")
    assert "\n" not in str(error.value)
    assert worst(seen).width == 24
    judge(compared(made(), made(), where, channels=1), 0.0, name="to=x")


def test_another_shape_is_refused():
    def more(images):
        found = made()(images)
        return Features(found.image, found.registers, torch.cat([found.patches, found.patches], dim=1))

    with pytest.raises(WeightsError, match="another shape there"):
        compared(made(), more, [(1, 8, 8)], channels=3)


def test_sizes_are_square_and_not_one_and_several():
    for pixels, patch in ((224, 14), (32, 8), (8, 8)):
        found = sizes(pixels, patch)
        assert (1, pixels, pixels) in found
        assert len(found) >= 3
        assert any(height > width for _, height, width in found)
        assert any(height < width for _, height, width in found)
        assert any(count > 1 for count, _, _ in found)
        assert all(height % patch == width % patch == 0 for _, height, width in found)
