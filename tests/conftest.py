"""Settings that hold for every test.

Two kinds of judge: a person at a desk, whose Hypothesis runs explore, and continuous integration,
whose verdict should be about the change: there the examples are derived from the test alone.
Neither has a deadline per example, since the machine is shared.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.kit.need import in_ci

settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("desk"), derandomize=True, print_blob=True)
settings.load_profile("ci" if in_ci() else "desk")
