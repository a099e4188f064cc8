"""The longer run: `pytest tests/fuzz --hypothesis-profile=fuzz-long`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fuzz-long", settings.get_profile("edgeopt"))
