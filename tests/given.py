"""Eyes that see what they are told: features of made sources, so that evaluations are tested without pictures."""

from types import SimpleNamespace

import numpy as np
import torch

from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes, Look
from dinoforge.features.views import middle
from dinoforge.model.weights import Preprocessing


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
        self.views = []

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
