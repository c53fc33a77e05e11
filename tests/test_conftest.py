"""That nothing is skipped in CI in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import TESTS

SKIPPING = {
    "test_a_file": "import pytest; pytest.skip('no such thing', allow_module_level=True)",
    "test_what_is_imported": "import pytest; pytest.importorskip('no_such_thing')",
    "test_a_test": "import pytest\ndef test_it(): pytest.skip('no such thing')",
}


@pytest.mark.thorough
def test_a_skip_is_a_failure_in_ci(tmp_path: Path) -> None:
    for name, text in SKIPPING.items():
        (tmp_path / f"{name}.py").write_text(text)
    options = "-q", "-p", "conftest", "-p", "no:cacheprovider", "--continue-on-collection-errors"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        env={**os.environ, "CI": "1", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0, result.stdout
    found = [line for line in result.stdout.splitlines() if "skipped, and CI has all that" in line]
    for name in SKIPPING:
        assert any(line.startswith(("ERROR ", "FAILED ")) and name in line for line in found), result.stdout
