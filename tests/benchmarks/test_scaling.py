"""The benchmark of how the service scales is of the service as it is."""

from gcsr import TrialConfig
from tests.benchmarks.scaling import WaitingTrainable
from tune.trainable import OUTCOME, UNIT, unit_text


def test_a_unit_that_only_waits_sends_back_what_a_trained_one_does():
    config = TrialConfig(seed=7, epochs=1000)
    result = WaitingTrainable({UNIT: unit_text([config])}).train()
    (outcome,) = result[OUTCOME]
    assert (outcome.row["trial_id"], len(outcome.epochs), result["done"]) == (config.trial_id, 300, True)
