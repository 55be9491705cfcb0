"""Whole epochs of a plain network in C: `plain_network.c` and `memory_pass.c`, called through ctypes."""

import ctypes

import torch
from torch import Tensor

from gcsr.native_network import NativeNetwork
from gcsr.native_pass import NativePass
from gcsr.optim import GatedOptimizer

__all__ = ["NativeEpoch"]

_STEPS = 50  # before Python hears of a signal again


class NativeEpoch:
    """Trains a plain network for an epoch, to the bits of its single steps.

    Weights, gradients and momentum stay in the core's cache from one batch to the next, and nothing goes through Python
    in between.

    Args:
        network: the network.
        optimizer: of the weights; their gradients are those of ``network``.
        images: all training images as the network takes them, ``[N, C, H, W]``.
        labels: int64 ``[N]``.
    """

    def __init__(self, network: NativeNetwork, optimizer: GatedOptimizer, images: Tensor, labels: Tensor) -> None:
        self._network, self._optimizer = network, optimizer
        self._images, self._labels = images.float().contiguous(), labels.long().contiguous()

    def run(self, order: Tensor, batch_size: int, loss_sum: Tensor) -> bool:
        """One epoch; False, and nothing done, where the optimizer must be asked for each step.

        Args:
            order: of the images: int64 ``[N]``.
            batch_size: of all batches but the last.
            loss_sum: each step's mean loss times its images is added to it; float64, 0-dim.
        """
        prepared = self._optimizer.prepared_pass()
        if prepared is None:
            return False
        memory, decision = prepared
        assert isinstance(memory, NativePass), "the weights are on a CPU"
        stepping = memory.stepping(decision)
        network, order, batch_size = self._network, order.contiguous(), min(batch_size, len(order))
        scratch = network.scratch(batch_size, taken=True)
        for taken in order.split(_STEPS * batch_size):
            network.library.gcsr_plain_epoch(
                *network.arguments,
                ctypes.byref(stepping),
                ctypes.c_void_p(self._images.data_ptr()),
                ctypes.c_void_p(self._labels.data_ptr()),
                ctypes.c_void_p(taken.data_ptr()),
                ctypes.c_int64(len(taken)),
                ctypes.c_int64(batch_size),
                scratch,
                torch.get_num_threads(),
                ctypes.c_void_p(loss_sum.data_ptr()),
            )
        return True
