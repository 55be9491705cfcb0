"""The networks of a run, each tried before anything starts: those that may turn out to be none."""

from collections.abc import Iterable, Sequence

from gcsr import TrialConfig
from gcsr.arrays import Arrays, held_out, number_of_classes
from gcsr.names import is_convolutional, is_own_dataset, is_own_network
from gcsr.own_module import source_digest

__all__ = ["check_networks", "network_digests", "to_be_built"]


def to_be_built(trials: Iterable[TrialConfig]) -> tuple[TrialConfig, ...]:
    """A trial of each network that is the user's own, or that may not take the user's own images.

    And of each way to cut the images into batches, of which the last one may be too small.
    """
    found: dict[tuple[object, ...], TrialConfig] = {}
    for config in trials:
        if is_own_network(config.model) or (is_own_dataset(config.dataset) and is_convolutional(config.model)):
            found.setdefault((config.model, config.dataset, config.batch_size, config.holdout), config)
    return tuple(found.values())


def check_networks(configs: Sequence[TrialConfig], arrays: Arrays, workers: int) -> None:
    """Build the network of each trial for their data set, on this machine; one's own also takes a step of training.

    Args:
        configs: of `to_be_built`, all on one data set.
        arrays: that data set.
        workers: processes that train one trial together.

    Raises:
        InvalidInputError: one cannot be built, or not be trained so.
    """
    if not configs:
        return
    import torch  # only here, as it takes seconds to import

    from gcsr.models import build_model
    from gcsr.own_network import check_learning, check_workers
    from gcsr.randomness import undisturbed

    images, height, width, channels = arrays["train_images"].shape
    shape, classes = (channels, height, width), number_of_classes(configs[0].dataset, arrays)
    for config in configs:
        with undisturbed(torch.device("cpu"), config.precision):  # as in a trial; what one sets, the next does not find
            network = build_model(config.model, input_shape=shape, classes=classes, width=config.width)
            if not is_own_network(config.model):
                continue
            check_workers(config.model, network, workers)
            # Again, as each trial gets one: those of two trials must not share weights.
            network = build_model(config.model, input_shape=shape, classes=classes)
            trained_on = images - held_out(images, config.holdout)
            fewest = (trained_on % config.batch_size or config.batch_size) // workers  # of a worker's share of a batch
            check_learning(config.model, network, min(fewest, 2), input_shape=shape, classes=classes, workers=workers)


def network_digests(trials: Iterable[TrialConfig]) -> dict[str, str]:
    """SHA-256 of what the module of each of the trials' own networks is made of, as it is on this machine."""
    names = sorted({config.model for config in trials if is_own_network(config.model)})
    return {name: found for name in names if (found := source_digest(name)) is not None}
