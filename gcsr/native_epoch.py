"""Whole epochs of a plain network in C: `plain_network.c` and `memory_pass.c`, called through ctypes."""

import ctypes

import torch
from torch import Tensor

from gcsr.memory_pass import Decision
from gcsr.native_network import NativeNetwork
from gcsr.native_pass import NativePass

__all__ = ["NativeEpoch"]

_STEPS = 50  # before Python hears of a signal again


class NativeEpoch:
    """Trains a plain network for an epoch, to the bits of its single steps.

    Weights, gradients and momentum stay in the core's cache from one batch to the next, and nothing goes through Python
    in between.

    Args:
        network: the network.
        images: all training images as the network takes them, ``[N, C, H, W]``.
        labels: int64 ``[N]``.
    """

    def __init__(self, network: NativeNetwork, images: Tensor, labels: Tensor) -> None:
        self._network = network
        self._images, self._labels = images.float().contiguous(), labels.long().contiguous()

    def run(self, order: Tensor, batch_size: int, memory: NativePass, decision: Decision, loss_sum: Tensor) -> None:
        """One epoch.

        Args:
            order: of the images: int64 ``[N]``.
            batch_size: of all batches but the last.
            memory: the pass over the network's weights and gradients.
            decision: of each step, and where it is noted.
            loss_sum: each step's mean loss times its images is added to it; float64, 0-dim.
        """
        network, order, batch_size = self._network, order.contiguous(), min(batch_size, len(order))
        scratch = network.scratch(batch_size, taken=True)
        stepping = memory.stepping(decision)
        for taken in order.split(_STEPS * batch_size):
            network.library.gcsr_plain_epoch(
                network.layers,
                ctypes.c_int64(network.depth),
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
