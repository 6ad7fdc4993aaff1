"""Every recorded file is read by a test, or named here with the reason why not yet; and is the file that was recorded."""

import hashlib
import importlib.util
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from recorded import ASKED_FOR, ROOT, needs_recordings, recorded_names

NOT_BUILT = {
    "11_dinov3/*": "DINOv3's rotary positions, Gram loss, heads, masks and schedules come with the DINOv3 options",
}

pytestmark = needs_recordings


@pytest.mark.parametrize("name", recorded_names())
def test_a_recorded_file_is_read(name):
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name != Path(__file__).name and path.stem not in sys.modules:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    reasons = [reason for pattern, reason in NOT_BUILT.items() if fnmatch(name, pattern)]
    if reasons:
        pytest.skip(f"not built yet: {reasons[0]}")
    assert name in ASKED_FOR, f"{name} was recorded and no test reads it"


@pytest.mark.parametrize("name", recorded_names())
def test_a_recorded_file_is_what_was_recorded(name):
    index = ROOT / "MANIFEST.json"
    if not index.exists():
        pytest.skip("the recordings carry no MANIFEST.json")
    want = json.loads(index.read_text())[name]["sha256"]
    assert hashlib.sha256((ROOT / name).read_bytes()).hexdigest() == want
