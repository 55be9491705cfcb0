"""Whole epochs of a cohort of plain networks in C: `plain_network.c` and `memory_pass.c`, called through ctypes."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gcsr.config import TrialConfig
from gcsr.memory_pass import TableEntry
from gcsr.native_pass import NativePass
from gcsr.native_stack import Layer, NativeStack

__all__ = ["NativeEpoch"]

_STEPS = 50  # of each network before Python hears of a signal again


class _Passing(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_void_p),
        ("first_block", ctypes.c_void_p),
        ("tensors", ctypes.c_int64),
        ("tallies", ctypes.c_void_p),
        ("tally", ctypes.c_int64),
        ("coherent", ctypes.c_void_p),
        ("n", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("lam_t", ctypes.c_void_p),
    )


class _Training(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("tensors", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("mu", ctypes.c_double),
        ("lam", ctypes.c_float),
        ("by_pi", ctypes.c_int32),
        ("imposed", ctypes.c_int32),
    )


class NativeEpoch:
    """Trains each network by itself for an epoch, on as many threads as there are, to the bits of the cohort's steps.

    A network's weights, gradients and momentum stay in the core's cache from one batch to the next, and nothing goes
    through Python in between.

    Args:
        stack: the networks.
        memory: passes over the same weights and the gradients of ``stack``; a group a trial, one after the other.
        configs: the trials.
    """

    def __init__(self, stack: NativeStack, memory: NativePass, configs: Sequence[TrialConfig]) -> None:
        self._stack, self._memory = stack, memory  # they stay alive
        count, tensors = len(configs), len(memory.table) // len(configs)
        self._lam_t = torch.empty(count)
        self._passing = _Passing(
            function=ctypes.cast(memory.function, ctypes.c_void_p),
            first_block=ctypes.addressof(memory.blocks),  # the first network's: all have the same shapes
            tensors=tensors,
            tallies=ctypes.addressof(memory.tallies),
            tally=ctypes.sizeof(memory.tallies) // count,
            coherent=memory.counts[0].data_ptr(),
            n=memory.counts[1].data_ptr(),
            sum=memory.grad_sum.data_ptr(),
            lam_t=self._lam_t.data_ptr(),
        )
        self._trainings = (_Training * count)()
        for k, (training, config) in enumerate(zip(self._trainings, configs, strict=True)):
            gate = config.gate()
            training.layers = ctypes.addressof(stack.layers) + k * stack.depth * ctypes.sizeof(Layer)
            training.tensors = ctypes.addressof(memory.table) + k * tensors * ctypes.sizeof(TableEntry)
            training.mu, training.lam, training.by_pi = gate.mu, config.lam, gate.decides_by_pi()

    def run(
        self, images: Tensor, labels: Tensor, order: Tensor, batch_size: int, imposed: Sequence[bool], sums: Tensor
    ) -> None:
        """One epoch.

        Args:
            images: all training images as the networks take them, float32 ``[N, C, H, W]``.
            labels: int64 ``[N]``.
            order: each trial's, of the images: int64 ``[K, N]``.
            batch_size: of all batches but the last.
            imposed: whether λ is imposed in this epoch, of trials whose gates do not ask π.
            sums: of the steps, float64 ``[K, 5]``: their number, π (NaN where a gradient is not finite), whether λ was
                imposed, Σ|g|, and loss times images; they are added to.
        """
        images, labels, order = images.float().contiguous(), labels.long().contiguous(), order.contiguous()
        for training, decided, row in zip(self._trainings, imposed, sums, strict=True):
            training.imposed, training.sums = decided, row.data_ptr()
        batch_size = min(batch_size, len(labels))
        scratch, size = self._stack.scratch(batch_size, taken=True)
        for taken in order.split(_STEPS * batch_size, dim=1):
            for training, rows in zip(self._trainings, taken, strict=True):
                training.order = rows.data_ptr()
            self._stack.library.gcsr_plain_epoch(
                self._trainings,
                ctypes.c_int64(len(self._trainings)),
                ctypes.byref(self._passing),
                ctypes.c_int64(self._stack.depth),
                ctypes.c_void_p(images.data_ptr()),
                ctypes.c_void_p(labels.data_ptr()),
                ctypes.c_int64(taken.shape[1]),
                ctypes.c_int64(batch_size),
                ctypes.c_void_p(scratch.data_ptr()),
                ctypes.c_int64(size),
                torch.get_num_threads(),
            )
