"""Eyes that see what they are told: features of made sources, so that evaluations are tested without pictures."""

from types import SimpleNamespace

import numpy as np
import torch

from dinoforge.data.picture import Picture
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes, Look
from dinoforge.features.views import middle
from dinoforge.model.features import Features
from dinoforge.model.weights import Backbone, Preprocessing


class Listed(Source):
    """Rows with columns and no pixels."""

    def __init__(self, address, rows, **columns):
        self.address = address
        ids = columns.pop("id", [f"{address}/{row}" for row in range(rows)])
        self.columns = {
            "id": np.asarray(ids, np.str_),
            **{name: np.asarray(column) for name, column in columns.items()},
        }

    def encoded(self, row):
        raise AssertionError("no pixel is needed")


class Made(Listed):
    """Rows with labels, and features by kind in place of pictures."""

    def __init__(self, labels, address="made", names=None, **features):
        super().__init__(address, len(labels), label=np.asarray(labels, np.int64))
        self.features = features
        if names is not None:
            self.columns["label_name"] = np.asarray(names)


class GivenEyes(Eyes):
    """See the features that a made source brings along; a view that is asked for is noted."""

    def __init__(self):
        self.how, self.backbone = (
            Extraction(torch.device("cpu")),
            SimpleNamespace(preprocessing=Preprocessing(), module=None),
        )
        self.views, self.on_broken = [], lambda *_: None

    def look(self, source, kind="image", *, view=None, remember=True):
        self.views.append((source.address, kind, (view or middle(self.backbone.preprocessing)).name))
        return Look(source.features[kind], np.arange(len(source)), source)


class TableEyes(GivenEyes):
    """See image features that are written down by the address of a source; rows that are ``gone`` are as broken images."""

    def __init__(self, features, gone=None):
        super().__init__()
        self.features, self.gone = features, gone or {}

    def look(self, source, kind="image", *, view=None, remember=True):
        self.views.append((source.address, kind, view))
        rows = np.setdiff1d(np.arange(len(source)), self.gone.get(source.address, []))
        values = torch.as_tensor(self.features[source.address])[torch.from_numpy(rows)].float()
        return Look(values, rows, source.select(rows))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Painted(Listed):
    """Pictures of one channel, and masks of the same shape: ``pictures`` and ``masks`` are a list each, None where there is none."""

    def __init__(self, pictures, masks, address="painted", **columns):
        super().__init__(address, len(pictures), **columns)
        self.pictures, self.masks = pictures, masks

    def picture(self, row):
        return Picture.of(np.asarray(self.pictures[row], np.uint8)[..., None])

    def extra(self, row, name):
        return None if name != "mask" or self.masks[row] is None else np.asarray(self.masks[row])


class Deep(Painted):
    """The same with depth in place of masks, and colours where pictures have some."""

    def picture(self, row):
        return Picture.of(np.atleast_3d(np.asarray(self.pictures[row], np.uint8)))

    def extra(self, row, name):
        return super().extra(row, "mask" if name == "depth" else "")


class Tells(torch.nn.Module):
    """A network of other people's: every patch becomes what a function makes of the mean grey of it, 0 to 255."""

    patch, channels = 4, 1

    def __init__(self, of, width):
        super().__init__()
        self.of, self.width = of, width

    def forward(self, images):
        grey = torch.nn.functional.avg_pool2d(images[:, :1] * 255, self.patch)[:, 0]
        patches = self.of(grey)
        return Features(patches.mean((1, 2)), patches.new_zeros(len(patches), 0, self.width), patches)


def painted_eyes(of, width, *, side=16):
    """Eyes of ``Tells``; pictures come as they are, on the scale 0 to 1."""
    how = Preprocessing(channels=1, side=side, short_side=side, mean=(0.0,), std=(1.0,))
    return Eyes(
        Backbone(Tells(of, width), None, how, known="painted"), Extraction(torch.device("cpu")), folder=None,
        on_broken=lambda name, reason: None,
    )  # fmt: skip
