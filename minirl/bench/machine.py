"""The machine of a measurement: its processor's name and the vector instructions that decide its speed."""

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# As the kernel names them: `flags` on x86, `Features` on arm. They decide how fast matrix products are, and in which dtype.
VECTOR_INSTRUCTIONS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "i8mm",
    "sve", "svebf16",
)  # fmt: skip


def processor_name() -> str:
    """The processor's model name, or its architecture if the kernel gives no name."""
    return _field("model name") or platform.machine()


def vector_instructions() -> list[str]:
    """Those of `VECTOR_INSTRUCTIONS` that this processor has."""
    flags = set(f"{_field('flags')} {_field('Features')}".split())
    return [name for name in VECTOR_INSTRUCTIONS if name in flags]


def _field(name: str) -> str:
    """The value of the first line of that name, or an empty text."""
    lines = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
