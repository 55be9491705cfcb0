"""The paper's own numbers: Table 2 (accuracy, in percent) and Table 3 (compression), to stand beside ours."""

from dataclasses import dataclass

__all__ = ["TABLE2", "TABLE2_NONE", "TABLE3", "PaperAccuracy", "PaperCompression"]


@dataclass(frozen=True, slots=True)
class PaperAccuracy:
    """A row pair of Table 2: mean ± half of the 95 % interval, in percent; ``significant`` where bold-faced."""

    baseline: float
    baseline_ci95: float
    ours: float
    ours_ci95: float
    relative_improvement: float
    significant: bool


@dataclass(frozen=True, slots=True)
class PaperCompression:
    """A row pair of Table 3: sparsities as fractions, accuracies in percent."""

    baseline_sparsity: float
    baseline_accuracy: float
    ours_sparsity: float
    ours_accuracy: float
    compression: float


# (data set, network) → accuracy without L1/L2 and its half interval
TABLE2_NONE = {
    ("cifar100", "vgg16"): (62.08, 0.81),
    ("cifar10", "vgg16"): (90.80, 0.23),
    ("cifar100", "alexnet"): (43.09, 0.25),
    ("cifar10", "alexnet"): (75.05, 0.20),
}

# (data set, network, regularizer)
TABLE2 = {
    ("cifar100", "vgg16", "l2"): PaperAccuracy(69.16, 0.46, 71.01, 0.33, 2.67, True),
    ("cifar10", "vgg16", "l2"): PaperAccuracy(92.42, 0.16, 92.60, 0.16, 0.19, False),
    ("cifar100", "vgg16", "l1"): PaperAccuracy(66.94, 0.24, 67.55, 0.12, 0.91, True),
    ("cifar10", "vgg16", "l1"): PaperAccuracy(91.29, 0.16, 91.55, 0.10, 0.28, True),
    ("cifar100", "alexnet", "l2"): PaperAccuracy(46.91, 0.15, 47.64, 0.33, 1.56, True),
    ("cifar10", "alexnet", "l2"): PaperAccuracy(78.66, 0.17, 78.65, 0.29, -0.01, False),
    ("cifar100", "alexnet", "l1"): PaperAccuracy(45.70, 0.10, 47.48, 0.29, 3.89, True),
    ("cifar10", "alexnet", "l1"): PaperAccuracy(76.87, 0.24, 77.63, 0.34, 0.99, True),
}

TABLE3 = {
    ("cifar100", "alexnet"): PaperCompression(0.219, 45.70, 0.814, 45.77, 4.2),
    ("cifar10", "alexnet"): PaperCompression(0.766, 76.87, 0.877, 76.90, 1.9),
    ("cifar100", "vgg16"): PaperCompression(0.269, 66.94, 0.697, 67.06, 2.4),
    ("cifar10", "vgg16"): PaperCompression(0.808, 91.29, 0.926, 91.38, 2.6),
    ("svhn", "vgg11"): PaperCompression(0.519, 94.68, 0.845, 94.71, 3.1),
    ("svhn", "vgg16"): PaperCompression(0.450, 95.34, 0.795, 95.38, 2.7),
    ("svhn", "vgg19"): PaperCompression(0.122, 95.37, 0.911, 95.41, 9.9),
}
