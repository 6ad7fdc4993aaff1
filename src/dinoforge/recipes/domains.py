"""Recipes for other pictures than photographs: ``vit_small.small_data`` with views that leave what such pictures mean.

None of their choices was measured here; where one follows a publication, that is named.
"""

from __future__ import annotations

from typing import Any

from dinoforge.data.augment import AugmentConfig, ColourConfig
from dinoforge.model.vit import VitConfig
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.small import vit_small_small_data


def vit_small_satellite() -> Recipe:
    """ViT-S/14 on pictures from above: no up, no left, objects of few pixels, colours that mean something.

    Mirrored both ways and turned by quarters, for the direction of flight is chance. Local views show a tenth to four
    tenths of the area rather than 5 % to 32 %: less is often a single field or roof. Hue turns by 2 % of the wheel at most,
    grey comes rarely and nothing is solarised, for bands tell crops, water and soil
    apart. Shares and ranges are our choice, not measured.
    """
    return _derived(
        "vit_small.satellite",
        AugmentConfig(
            global_scale=(0.4, 1.0),
            local_scale=(0.1, 0.4),
            flip_vertical=0.5,
            turn=0.75,
            colour=ColourConfig(hue=0.02, saturation=0.1, grey=0.05, solarise=0.0),
        ),
    )


def vit_small_microscopy() -> Recipe:
    """ViT-S/14 on stained sections and smears, in red, green and blue: no up, and colours that depend on the laboratory.

    Mirrored both ways and turned by quarters. Saturation and hue change more than in photographs, for stains and scanners
    differ more between laboratories than tissues do (Tellez et al. 2019 found such changes to help most across
    laboratories). Nothing is solarised: nuclei are known by being dark (Virchow2G, Zimmermann et al. 2024, mirrors
    vertically and leaves solarising out too). Shares and ranges are our choice, not measured.
    """
    return _derived(
        "vit_small.microscopy",
        AugmentConfig(
            flip_vertical=0.5,
            turn=0.75,
            colour=ColourConfig(saturation=0.4, hue=0.15, solarise=0.0),
        ),
    )


def vit_small_medical_grey() -> Recipe:
    """ViT-S/14 of one channel on radiographs, slices and ultrasound: what is bright means something, and so does the side.

    Mirrored half of the time as photographs are; ``data.augment.flip=0`` where left and right must be told apart. Never
    upside down: patients lie in known ways. Brightness and contrast change by a quarter at most, about what windows and
    exposures differ by; there is no colour to change, and nothing is solarised, for inverted bone would look like air.
    Global views show at least half of the picture, so that both show the organ. One mean and deviation stand for ImageNet's
    three; ``dinoforge stats`` measures those of a source. Our choice, not measured.
    """
    return _derived(
        "vit_small.medical_grey",
        AugmentConfig(
            global_scale=(0.5, 1.0),
            local_scale=(0.1, 0.5),
            colour=ColourConfig(
                brightness=0.25, contrast=0.25, saturation=0.0, hue=0.0, grey=0.0, solarise=0.0,
                blur=(0.0, 0.5, 0.25), mean=(0.5,), std=(0.25,),
            ),
        ),
        channels=1,
    )  # fmt: skip


def vit_small_documents() -> Recipe:
    """ViT-S/14 on pages, forms, receipts: text runs one way, and its layout is what tells pages apart.

    Never mirrored or turned, for mirrored text is no text. Views keep their shape to within a ninth, show more of the page,
    and are not blurred beyond reading: half of the published widths. Hue hardly turns, for paper and ink have few colours;
    grey comes as often as in photographs, since copies are. Nothing is solarised: white on black is another kind of page.
    Our choice, not measured.
    """
    return _derived(
        "vit_small.documents",
        AugmentConfig(
            global_scale=(0.5, 1.0),
            local_scale=(0.1, 0.5),
            aspect=(0.9, 1 / 0.9),
            flip=0.0,
            colour=ColourConfig(hue=0.02, solarise=0.0, blur_sigma=(0.1, 1.0)),
        ),
    )


def _derived(name: str, augment: AugmentConfig, **backbone: Any) -> Recipe:
    base = vit_small_small_data()
    assert isinstance(base.backbone, VitConfig)
    return base.model_copy(
        update={
            "recipe": name,
            "backbone": base.backbone.model_copy(update=backbone),
            "data": base.data.model_copy(update={"augment": augment}),
        }
    )
