"""What every backbone promises."""

import pytest
import torch

from dinoforge.model.features import Features, Inputs, Subset
from dinoforge.model.table import BACKBONES, build, empty
from dinoforge.model.toy import ToyConfig
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone, save_backbone

MEMBERS = {
    "vit": VitConfig(width=32, depth=2, heads=2, patch=8, pixels=32),
    "vit, registers, swiglu": VitConfig(
        width=32, depth=2, heads=2, patch=8, pixels=32, registers=3, ffn="swiglu", position_offset=0,
        position_antialias=True,
    ),
    "vit, bare": VitConfig(width=32, depth=2, heads=2, patch=8, pixels=32, layerscale=None, qkv_bias=False,
                           proj_bias=False, ffn_bias=False),
    "vit, rope": VitConfig(width=32, depth=2, heads=2, patch=8, pixels=32, registers=2, positions="rope", rope_rescale=2,
                           rope_base=50, untie_local_norm=True),
    "toy": ToyConfig(),
}  # fmt: skip


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(mine: Features, want: Features, atol=1e-5):
    for name in ("image", "registers", "patches"):
        torch.testing.assert_close(getattr(mine, name), getattr(want, name), rtol=0, atol=atol)


def subsets(rows, seed):
    """For every block half of the samples for attention and as many others, scaled, for the feed-forward branch."""
    kept = max(rows // 2, 1)
    orders = [torch.randperm(rows, generator=torch.Generator().manual_seed(10 * seed + block)) for block in range(2)]
    return [(Subset(order[:kept], rows / kept), Subset(order[-kept:], rows / kept)) for order in orders]


def test_every_kind_is_here():
    assert {config.kind for config in MEMBERS.values()} == set(BACKBONES)


@pytest.mark.parametrize("name", MEMBERS)
class TestEveryBackbone:
    def test_every_parameter_is_initialised(self, name):
        module = empty(MEMBERS[name])
        with torch.no_grad():
            for tensor in module.state_dict().values():
                tensor.fill_(float("nan"))
        module.init_weights(torch.Generator().manual_seed(0))
        assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())

    @pytest.mark.parametrize("patches", [7, 3])
    def test_features_at_another_size_stay_what_they_are_when_it_is_made_for_it(self, name, patches):
        """To the last bit: what was resampled for every image is resampled once. Other sizes see another table."""
        config = MEMBERS[name]
        here = build(config, seed=0).eval()
        there = empty(config.model_copy(update={"pixels": patches * config.patch})).eval()
        there.load_state_dict(there.fitted(here.state_dict()))
        x = images(2, 3, patches * config.patch, patches * config.patch)
        with torch.no_grad():
            close(there(x), here(x), atol=0)
        changed = {key for key, value in there.state_dict().items() if value.shape != here.state_dict()[key].shape}
        assert changed == ({"pos_embed"} if hasattr(here, "pos_embed") else set())
        again = build(config, seed=0)
        same = again.fitted(again.state_dict())
        assert all(torch.equal(same[key], value) for key, value in again.state_dict().items())

    def test_weights_are_a_function_of_the_seed(self, name):
        first, same, other = (build(MEMBERS[name], seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[key], same[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_masked_patches_do_not_leak(self, name):
        module, x = build(MEMBERS[name], seed=0).eval(), images(2, 3, 32, 32)
        masks = torch.zeros(2, 16, dtype=torch.bool)
        masks[0, 5] = masks[1, 0] = True
        changed = x.clone()
        changed[0, :, 8:16, 8:16] += 5
        changed[1, :, :8, :8] += 5
        if name != "toy":
            close(module(changed, masks), module(x, masks))
        torch.testing.assert_close(module(changed, masks).patches, module(x, masks).patches)
        assert not torch.allclose(module(changed).patches, module(x).patches)

    def test_images_of_a_batch_are_independent(self, name):
        module, x = build(MEMBERS[name], seed=0).eval(), images(5, 3, 32, 32)
        alone, together = module(x[3:4]), module(x)
        close(Features(together.image[3:4], together.registers[3:4], together.patches[3:4]), alone)

    def test_takes_any_size_that_is_a_multiple_of_the_patch(self, name):
        config = MEMBERS[name]
        module = build(config, seed=0).eval()
        for height, width in ((32, 32), (8, 40), (64, 16)):
            found = module(images(1, 3, height, width))
            assert found.image.shape == (1, config.width)
            assert found.patches.shape == (1, height // 8, width // 8, config.width)
        with pytest.raises(ValueError, match="multiples of the patch, 8; got 30x32"):
            module(images(1, 3, 30, 32))

    def test_class_attention_is_a_share_for_every_patch(self, name):
        module = build(MEMBERS[name], seed=0).eval()
        for height, width in ((32, 32), (8, 40)):
            maps = module.class_attention(images(2, 3, height, width))
            assert maps.shape[0] == 2
            assert maps.shape[2:] == (height // 8, width // 8)
            assert (maps >= 0).all()
            assert (maps.sum((-1, -2)) <= 1 + 1e-5).all()
        with pytest.raises(ValueError, match="multiples of the patch, 8; got 30x32"):
            module.class_attention(images(1, 3, 30, 32))

    def test_weights_survive_a_round_trip(self, name, tmp_path):
        module = build(MEMBERS[name], seed=0).eval()
        save_backbone(tmp_path / "b", Backbone(module, MEMBERS[name], Preprocessing(), {"from": "a test"}))
        back = load_backbone(tmp_path / "b")
        assert back.config == MEMBERS[name]
        assert back.lineage["from"] == "a test"
        x = images(2, 3, 32, 32)
        close(back.module(x), module(x), atol=0)

    def test_gradients_reach_every_parameter(self, name):
        module, masks = build(MEMBERS[name], seed=0), torch.zeros(2, 16, dtype=torch.bool)
        masks[0, :3] = True
        wide, near = module([Inputs(images(2, 3, 32, 32), masks), Inputs(images(3, 3, 16, 16, seed=1), local=True)])
        losses = [found.image.square().sum() + (found.patches**3).sum() for found in (wide, near)]
        (sum(losses) + wide.patches[:, 0, 0].sum()).backward()
        without = [key for key, parameter in module.named_parameters() if parameter.grad is None]
        assert not without

    @pytest.mark.parametrize("dropping", [(), (0, 1, 2), (1,)])
    def test_a_packed_pass_is_several_passes(self, name, dropping):
        """Of images of three sizes, masked and not, with branches for some samples only: values and all gradients.

        Rotary positions are rescaled, image by image, and the second size is that of local views.
        """
        if name == "toy" and dropping:
            pytest.skip("the toy has no branch to drop")
        module = build(MEMBERS[name], seed=0).double()
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                if key.endswith("gamma"):
                    parameter.fill_(0.5)  # at its start a branch is next to nothing
        sizes = [images(3, 3, 32, 32), images(5, 3, 16, 16, seed=1), images(2, 3, 8, 24, seed=2)]
        masks = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.4
        rescale = [torch.linspace(0.5, 2, len(x)) if module.rescale else None for x in sizes[:2]]
        inputs = [
            Inputs(
                x.double(), masks if number == 0 else None, subsets(len(x), number) if number in dropping else None,
                factors, number == 1,
            )
            for number, (x, factors) in enumerate(zip(sizes, [*rescale, None], strict=True))
        ]  # fmt: skip

        def gradients(found):
            module.zero_grad()
            sum(((part.image**2).sum() + (part.patches**3).sum()) for part in found).backward()
            return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}

        packed = module(inputs)
        alone = [module([part])[0] for part in inputs]
        for mine, want, part in zip(packed, alone, inputs, strict=True):
            close(mine, want, atol=1e-12)
            if part.drop is None and part.rescale is None:
                close(mine, module(part.images, part.masks), atol=1e-12)
            else:
                assert not torch.allclose(mine.image, module(part.images, part.masks).image)
        for (key, mine), want in zip(gradients(packed).items(), gradients(alone).values(), strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", MEMBERS)
def test_exports(name):
    """torch.export looks inside Features; the program gives the same."""
    module, x = build(MEMBERS[name], seed=0).eval(), images(2, 3, 32, 32)
    program = torch.export.export(module, (x,))
    close(program.module()(x), module(x))
