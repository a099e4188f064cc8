"""Settings of every test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("edgeopt", deadline=None)  # machines are busy: time is never what a property is about
settings.load_profile("edgeopt")
