"""The description of the processor in records: enough to know whether two machines should compute the same bits."""

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


def test_a_processor_is_described_by_name_family_model_stepping_and_instructions() -> None:
    assert description(EPYC, "AVX2") == "AMD EPYC (family 25, model 1, stepping 1, AVX2)"
    assert description(GRAVITON, "DEFAULT").endswith("(implementer 0x41, part 0xd0c, variant 0x3, DEFAULT)")


@pytest.mark.parametrize(
    ("said", "other"),
    [("model\t\t: 1\n", "model\t\t: 17\n"), ("family\t: 25", "family\t: 23"), ("ing\t: 1", "ing\t: 2")],
)
def test_processors_of_the_same_name_but_another_generation_have_different_descriptions(said: str, other: str) -> None:
    assert said in EPYC
    assert description(EPYC, "AVX2") != description(EPYC.replace(said, other), "AVX2")


def test_a_machine_that_computes_with_other_instructions_is_another() -> None:
    assert description(EPYC, "AVX2") != description(EPYC, "AVX512")


@pytest.mark.parametrize("nothing", ["", "\n", "no lines of that kind"])
def test_without_information_from_the_kernel_a_processor_is_described_by_its_architecture(nothing: str) -> None:
    assert description(nothing, "AVX2") == f"{platform.processor() or platform.machine()} (AVX2)"


def test_frozen_features_of_different_processors_are_cached_separately() -> None:
    assert machine(torch.device("cpu")) == [torch.__version__, processor()]
    assert torch.backends.cpu.get_cpu_capability() in processor()
