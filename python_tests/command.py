"""The command line, in this process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from rlal_fast.__main__ import main


def here(*arguments: str | Path) -> tuple[int, str, str]:
    """The same command without the seconds of a new process: exit status, stdout, stderr."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rlal", *map(str, arguments)])
        with redirect_stdout(output), redirect_stderr(errors):
            try:
                main()
            except SystemExit as stop:
                status = int(stop.code or 0)
    return status, output.getvalue(), errors.getvalue()
