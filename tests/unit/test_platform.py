"""On a system other than Linux the import fails with a clear message, before any compiled module is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.platform = {platform!r}
import rtloop
"""


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_import_elsewhere_is_a_clear_import_error(platform, tmp_path):
    program = PROGRAM.format(platform=platform)
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("ImportError: ")
    assert "Linux" in last
    assert platform in last
