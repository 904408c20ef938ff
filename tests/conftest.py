"""What every test may rely on: no settings leak in from outside, and no test depends on speed."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("treadle", deadline=None, print_blob=True)
settings.load_profile("treadle")

for _name in list(os.environ):
    if _name.startswith("TREADLE_") and not _name.startswith("TREADLE_TEST_"):
        del os.environ[_name]
