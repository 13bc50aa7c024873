"""Environment variables of the driver and of all worker processes, built whole from the cluster's device.

Ray's workers inherit the environment of whoever started Ray: the driver, or `ray start` on another node. What a worker needs is therefore
named here, also where it equals a default.
"""

import os
import sys
from pathlib import Path

# The libraries' own bars and banners would overwrite the progress panel, and fill the workers' logs.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
DRIVER_ENVIRONMENT = QUIET | {"DS_ACCELERATOR": "cpu"}  # the driver itself uses no accelerator
FORWARDED = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")  # choices of the user that hold for every process of a run


def worker_environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables of every worker process. threads: of its CPU kernels."""
    python_directory = str(Path(sys.executable).parent)  # holds ninja, which DeepSpeed needs to build its CPU optimizer
    environment = QUIET | {
        "DS_ACCELERATOR": device,  # DeepSpeed reads it once, when it is first imported
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),  # a value of the user's would come before OMP_NUM_THREADS
        "KMP_BLOCKTIME": "0",  # idle threads of one role must not spin while another computes
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",  # spin for a fraction of a millisecond between parallel regions, then release the core
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": python_directory + os.pathsep + os.environ.get("PATH", os.defpath),
    }
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # else a worker without a GPU of its own would see all GPUs of its node
    return environment | {name: os.environ[name] for name in FORWARDED if name in os.environ}
