"""What a record says of the processor: enough to know whether the bits of two machines should agree."""

from __future__ import annotations

import platform

import pytest
import torch

from mmprompt.training.frozen_features import description, machine, processor

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu avx2
power management:

processor\t: 1
cpu family\t: 26
model\t\t: 2
model name\t: another core
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 243.75
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""


def test_it_has_the_name_the_family_the_model_the_stepping_and_the_instructions() -> None:
    assert description(EPYC, "AVX2") == "AMD EPYC (family 25, model 1, stepping 1, AVX2)"
    assert description(GRAVITON, "DEFAULT").endswith("(implementer 0x41, part 0xd0c, variant 0x3, DEFAULT)")


@pytest.mark.parametrize(
    ("said", "other"),
    [("model\t\t: 1\n", "model\t\t: 17\n"), ("family\t: 25", "family\t: 23"), ("ing\t: 1", "ing\t: 2")],
)
def test_generations_that_a_virtual_machine_calls_alike_are_told_apart(said: str, other: str) -> None:
    assert said in EPYC
    assert description(EPYC, "AVX2") != description(EPYC.replace(said, other), "AVX2")


def test_a_machine_that_computes_with_other_instructions_is_another() -> None:
    assert description(EPYC, "AVX2") != description(EPYC, "AVX512")


@pytest.mark.parametrize("nothing", ["", "\n", "no lines of that kind"])
def test_where_the_kernel_says_nothing_it_is_the_architecture(nothing: str) -> None:
    assert description(nothing, "AVX2") == f"{platform.processor() or platform.machine()} (AVX2)"


def test_frozen_features_are_kept_apart_by_it() -> None:
    assert machine(torch.device("cpu")) == [torch.__version__, processor()]
    assert torch.backends.cpu.get_cpu_capability() in processor()
