"""That nothing is skipped in CI in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import TESTS

SKIPPING = {
    "a file": "import pytest; pytest.skip('no such thing', allow_module_level=True)",
    "what is imported": "import pytest; pytest.importorskip('no_such_thing')",
    "a test": "import pytest\ndef test_it(): pytest.skip('no such thing')",
}


@pytest.mark.parametrize("what", SKIPPING)
def test_a_skip_is_a_failure_in_ci(tmp_path: Path, what: str) -> None:
    file = tmp_path / "test_that_skips.py"
    file.write_text(SKIPPING[what])
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "CI": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0 and "skipped, and CI has all that the tests need" in result.stdout, result.stdout
