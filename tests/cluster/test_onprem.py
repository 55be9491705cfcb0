"""The on-premise scenario as a test; as a script, with the whole digits sweep: ``python -m tests.cluster.onprem``."""

import pytest

from tests.cluster.hosts import Lan, why_impossible
from tests.cluster.onprem import Scenario

IMPOSSIBLE = why_impossible()


@pytest.mark.slow
@pytest.mark.skipif(IMPOSSIBLE is not None, reason=f"no hosts on this machine: {IMPOSSIBLE}")
def test_from_ray_up_to_the_report_on_six_hosts():
    with Lan() as lan:
        Scenario(lan, print, ("--set", "seed=[0]")).play()
