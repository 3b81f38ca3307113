"""Names of machines: TPU slices, machines with GPUs, this one."""

import importlib.util
import os

import jax
import pytest

from pit_jax.errors import UserError
from pit_jax.method import flops
from pit_jax.plan import chips, cuda, host, machines


@pytest.mark.parametrize(
    ("name", "chip", "count", "shape", "slices"),
    [
        ("v4-8", "v4", 4, (2, 2, 1), 1),
        ("v4-128", "v4", 64, (4, 4, 4), 1),
        ("v4-4096", "v4", 2048, (8, 16, 16), 1),
        ("v5p-128", "v5p", 64, (4, 4, 4), 1),
        ("v5litepod-16", "v5e", 16, (4, 4, 1), 1),
        ("v6e-256", "v6e", 256, (16, 16, 1), 1),
        ("2xv4-128", "v4", 128, (4, 4, 4), 2),
        ("h100-1", "h100", 1, (1, 1, 1), 1),
        ("a100-40-8", "a100-40", 8, (8, 1, 1), 1),
        ("rtx4090-1", "rtx4090", 1, (1, 1, 1), 1),
    ],
)
def test_names_users_know(name, chip, count, shape, slices):
    found = chips.parse(name)
    assert (found.chip.name, found.chips, found.shape, found.slices) == (chip, count, shape, slices)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v4", "expected one of .*v4-8"),
        ("v3-8", "expected one of v4-8, "),
        ("v4-7", "expected one of v4-8, v4-16, v4-32, v4-64, v4-128, "),
        ("v5e-12", "expected one of v5e-4, v5e-8, v5e-16, "),
        ("h100-3", "expected one of h100-1, h100-2, h100-4, h100-8$"),
        ("2xh100-8", "expected one of h100-1, h100-2, h100-4, h100-8$"),
        ("H100-8", "expected one of h100-8, "),
        ("rtx-4090", "expected one of rtx4090-"),
        ("a100-80", "expected one of a100-1, a100-2, a100-4, a100-8$"),
        ("cpus", "expected one of cpu$"),
        ("", "expected a name such as v4-8, h100-1, cpu$"),
        ("xv4-8", "expected one of v4-8, "),
    ],
)
def test_for_other_names_the_nearest_are_listed(name, expected):
    with pytest.raises(UserError, match=f"^--topology: got '{name}', {expected}"):
        chips.parse(name)


@pytest.mark.parametrize(
    ("name", "gib", "teraflops", "gigabytes", "links"),
    [
        ("a100", 79.1, 312, 2039, 300),
        ("a100-40", 39.4, 312, 1555, 300),
        ("h100", 79.1, 989, 3350, 450),
        ("h200", 139.7, 989, 4800, 450),
        ("l4", 22.0, 121, 300, 32),
        ("rtx4090", 23.5, 165.2, 1008, 32),
    ],
)
def test_figures_of_gpus(name, gib, teraflops, gigabytes, links):
    chip = chips.CHIPS[name]
    assert chip.platform == "gpu" and chip.float32 == 0.5
    assert (chip.hbm / 2**30, chip.flops / 1e12) == pytest.approx((gib, teraflops))
    assert (chip.bandwidth / 1e9, chip.interconnect / 1e9) == (gigabytes, links)
    # The training loop counts with the same peak, by what CUDA calls the device.
    assert flops.peak([cuda.CORES[name].device]) == chip.flops


def test_an_l4_is_no_l40():
    assert flops.peak(["NVIDIA L4"]) == 121e12
    assert flops.peak(["NVIDIA L40"]) == 181e12
    assert flops.peak(["NVIDIA L40S"]) == 362e12


def test_a_gpu_as_the_compiler_reads_it():
    lines = [line.strip() for line in cuda.target(chips.parse("l4-1")).splitlines()]
    for line in (
        "core_count: 58",
        "threads_per_core_limit: 1536",
        "shared_memory_per_core: 102400",
        "shared_memory_per_block_optin: 101376",  # a block's share of it
        "l2_cache_size: 50331648",
        "memory_bandwidth: 300000000000",
        "device_memory_size: 23622320128",
        "cuda_compute_capability { major: 8 minor: 9 }",
        'device_description_str: "NVIDIA L4"',
    ):
        assert line in lines
    gpus = {name for name, chip in chips.CHIPS.items() if chip.platform == "gpu"}
    assert set(cuda.CORES) == gpus


def test_this_machine(monkeypatch):
    """Eight simulated devices have an eighth of it each."""
    measured = {"bfloat16": host.Machine(1e11, 4e10, 1.0), "float32": host.Machine(3e11, 2e10, 1.0)}
    monkeypatch.setattr(host, "meter", lambda device, dtype, *_: lambda: measured[dtype])
    found = machines.find("cpu")
    assert (found.name, found.chips, found.chip.platform) == ("cpu", 8, "cpu")
    assert found.chip.hbm == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 8
    assert found.chip.flops == 1e11 / 8 and found.chip.float32 == pytest.approx(3)
    assert found.chip.bandwidth == found.chip.interconnect == 4e10 / 8
    assert machines.devices(found) == jax.devices()


def test_what_a_meter_measures(monkeypatch):
    """Two products of [8, 8] matrices and two sums of 4 numbers, as if each took half a second."""
    clock = iter(range(1000))
    monkeypatch.setattr(host.time, "perf_counter", lambda: next(clock) / 2)
    found = host.meter(jax.devices()[0], "float32", 8, 4, 2)()
    assert found.flops == 2 * (2 * 8**3) / 0.5
    assert found.bandwidth == 2 * (3 * 4 * 4) / 0.5


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    from jax.experimental import topologies

    def absent(*args, **kwargs):
        raise RuntimeError("no libtpu")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    with pytest.raises(UserError, match=r"no TPU compiler \(no libtpu\); pip install .*plan\]"):
        machines.devices(chips.parse("v4-8"))
    with pytest.raises(UserError, match=r"no CUDA compiler \(no libtpu\); pip install .*plan-gpu"):
        machines.devices(chips.parse("h100-1"))


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name", ["v4-8", "v4-128", "v5e-16", "v5p-128", "v6e-64", "2xv4-8"])
def test_the_compiler_knows_the_slice(name):
    assert importlib.util.find_spec("libtpu"), "pip install '.[plan]'"
    slice_ = chips.parse(name)
    assert len(machines.devices(slice_)) == slice_.chips


@pytest.mark.gpu_compiler
@pytest.mark.parametrize("name", ["a100-1", "a100-40-1", "h100-8", "h200-2", "l4-4", "rtx4090-1"])
def test_the_compiler_for_cuda_knows_the_gpu(name):
    slice_ = chips.parse(name)
    found = machines.devices(slice_)
    assert len(found) == slice_.chips and {device.platform for device in found} == {"gpu"}
    assert found[0].device_kind == cuda.CORES[slice_.chip.name].device
