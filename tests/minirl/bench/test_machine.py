"""The machine's name and instructions, from files like those of Linux on x86 and arm."""

import pytest

from minirl.bench import machine

X86 = """processor\t: 0
model name\t: A Processor 9
flags\t\t: fpu sse avx2 avx512f avx512_bf16 avx512_bf16_other
bugs\t\t: sysret
processor\t: 1
model name\t: A Processor 9
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 sve\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "name", "instructions"),
    [(X86, "A Processor 9", ["avx2", "avx512f", "avx512_bf16"]), (ARM, None, ["asimd", "bf16", "sve"])],
)
def test_name_and_instructions(text, name, instructions, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(machine, "CPU_INFO", file)
    assert machine.vector_instructions() == instructions
    assert machine.processor_name() == (name or machine.platform.machine())


def test_this_machine_has_a_name():
    assert machine.processor_name()
