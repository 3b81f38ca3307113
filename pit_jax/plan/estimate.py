"""Estimates how long a program takes on given machines, by the roofline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax

from pit_jax.method.flops import matrix_parameters
from pit_jax.models.config import NetworkConfig
from pit_jax.plan.hlo import Collective
from pit_jax.plan.programs import Program

# Bytes that an activation of a block costs the memory in one pass, in units of its own size: reads
# and writes of the residual, norms, projections and gates that aren't fused away.
_ACTIVATION_TRAFFIC = 16
# Bytes a parameter: float32 parameter, gradient and two moments read; all but the gradient written.
_OPTIMIZER_TRAFFIC = 28
# A sum of gradients and a microbatch's read, the sum written, in float32.
_ADDITION_TRAFFIC = 12


@dataclasses.dataclass(frozen=True)
class Machine:
    """Says what an estimate assumes of each device.

    Attributes:
      flops: operations a second in matrix products of bfloat16.
      bandwidth: bytes a second between the device and its memory.
      interconnect: bytes a second to other devices.
      launch: seconds that it takes to start a kernel, where that isn't part of the kernel's time.
      float32: products of a float32 network run at this multiple of `flops`.
    """

    flops: float
    bandwidth: float
    interconnect: float
    launch: float = 0.0
    float32: float = 1.0

    def speed(self, network: NetworkConfig) -> float:
        """Operations a second in the matrix products of a network."""
        return self.flops * (self.float32 if network.dtype == "float32" else 1.0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Holds the seconds that a program takes when it runs once.

    Attributes:
      compute: seconds of arithmetic, at the machine's speed.
      memory: seconds of memory traffic, at the memory's bandwidth.
      communication: seconds of collectives, at the interconnect's bandwidth.
      launches: seconds of starting kernels.
      passes: sum over all passes of the larger of a pass's arithmetic and memory traffic; a prefill
        waits for its arithmetic, the decoding after it for the memory.
    """

    compute: float
    memory: float
    communication: float
    launches: float
    passes: float

    @property
    def seconds(self) -> float:
        """The whole time: passes go one after the other, and nothing else overlaps with them."""
        return self.passes + self.communication + self.launches


def estimate(
    program: Program,
    collectives: list[Collective],
    machine: Machine,
    mesh: Mapping[str, int],
    launches: int = 0,
) -> Estimate:
    """Estimates how long a program takes when it runs once.

    Args:
      program: the program.
      collectives: the collectives of the compiled program.
      machine: what is assumed of each device.
      mesh: size of each axis: `slice`, each of which has all weights, `data` and `model`.
      launches: number of kernels of the compiled program.
    """
    devices = math.prod(mesh.values())
    compute = [
        work.flops(network, rematerialised=True) / devices / machine.speed(network)
        for work, network in program.work
    ]
    memory = [_traffic(work, network, mesh) / machine.bandwidth for work, network in program.work]
    optimizer = _optimizer_traffic(program, devices // mesh["slice"]) / machine.bandwidth
    moved = sum(each.bytes * each.times for each in collectives)
    return Estimate(
        compute=sum(compute),
        memory=sum(memory) + optimizer,
        communication=moved / machine.interconnect if devices > 1 else 0.0,
        launches=launches * machine.launch,
        passes=sum(map(max, compute, memory)) + optimizer,
    )


def _traffic(work, network: NetworkConfig, mesh: Mapping[str, int]) -> float:
    """Returns the bytes of weights, activations and cache that a device reads and writes."""
    c, devices = network, math.prod(mesh.values())
    width = 2 if c.dtype == "bfloat16" else 4
    vocabulary = c.embed_dim * c.vocab_size
    weights = (matrix_parameters(c) + vocabulary) * width
    if work.steps is not None:
        # Every step reads the whole cache, columns that nothing is written to yet too.
        keys = work.tokens + work.cache
        cache = 2 * c.num_layers * c.num_kv_heads * c.head_dim * keys * work.rows * width
        return work.times * work.steps * (weights * mesh["slice"] + cache) / devices
    passes = 3 + (c.remat != "none") + work.checkpointed if work.backward else 1
    activations = work.rows * work.tokens * c.embed_dim * c.num_layers * width
    logits = work.rows * work.logits * c.vocab_size * 4
    moved = weights / mesh["model"] + (activations * _ACTIVATION_TRAFFIC + 2 * logits) / devices
    return work.times * passes * moved


def _optimizer_traffic(program: Program, devices: int) -> float:
    """Returns the bytes of parameters, gradients and moments that gradient steps move."""
    if not program.updates:
        return 0.0
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.roles["parameters"]))
    added = max(work.times for work, _ in program.work) - program.updates
    moved = program.updates * _OPTIMIZER_TRAFFIC + added * _ADDITION_TRAFFIC
    return moved * parameters / devices
