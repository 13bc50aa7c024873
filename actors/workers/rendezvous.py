"""How the learner's ranks find each other: rank 0 opens a TCP store, and all ranks join one process group through it."""

import os
from datetime import timedelta

import torch.distributed as dist


def open_store(timeout_s: float) -> tuple[dist.TCPStore, str, int]:
    """Opens a store on a free port of this node. Returns it with its address and port, which the other ranks need."""
    import ray

    store = dist.TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    return store, ray.util.get_node_ip_address(), store.port


def join_process_group(
    store: dist.TCPStore | None, address: str, port: int, *, rank: int, workers: int, device: str, timeout_s: float
) -> None:
    """Starts torch.distributed (NCCL on GPUs, else gloo) and DeepSpeed, and sets the environment variables that DeepSpeed reads.

    store: the open store on rank 0; None on the other ranks, which connect to it.
    """
    timeout = timedelta(seconds=timeout_s)
    store = store or dist.TCPStore(address, port, is_master=False, timeout=timeout)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": "0",  # each worker sees only its own GPU
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": device,
    }
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=workers, timeout=timeout)
    import deepspeed

    # DeepSpeed's shared-memory collective serves only inference. A killed rank would leave its 69 MB in /dev/shm for good.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
