"""05_koleo: the loss that spreads features, and its gradient."""

import re

import pytest
from recorded import items, needs_recordings, reading, relative_error

from dinoforge.loss.koleo import koleo_loss

pytestmark = needs_recordings
TIGHT = 1e-5


@pytest.mark.parametrize(
    ("path", "prefix"),
    items("05_koleo/*.safetensors", lambda _config, every: sorted({name.split("/")[0] + "/" for name in every})),
)
def test_koleo(path, prefix):
    with reading(path, prefix) as case:
        x = case["in/x"].requires_grad_()
        chunks = re.match(r"two_chunks_w([\d.]+)/", prefix)
        if chunks:
            loss = float(chunks.group(1)) * sum(koleo_loss(half, group=len(half)) for half in x.chunk(2))
        else:
            loss = koleo_loss(x, group=len(x))
        assert loss.item() == pytest.approx(case["out/loss"].item(), rel=TIGHT)
        number = re.match(r"case(\d+)/", prefix)
        if number:
            assert list(x.shape) == case.config["rows"][int(number.group(1))]
        if "grad/x" in case:
            loss.backward()
            assert relative_error(x.grad, case["grad/x"]) <= TIGHT
        else:
            assert prefix.startswith("exact_duplicate"), "only equal rows have no gradient to compare"
