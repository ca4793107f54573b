"""Every stage has a test of its own."""

import re
from pathlib import Path

from layerprobe.stages import REGISTRY

TESTS = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*_stages.py")]


def test_every_stage_is_used_by_some_test():
    used = {name for text in TESTS for name in re.findall(r"\b([A-Z]\w+)(?:\(|\.tasks|\.of_base)", text)}
    assert {stage.__name__ for stage in REGISTRY} <= used
