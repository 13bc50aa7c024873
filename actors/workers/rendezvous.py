"""How the learner's ranks find one another: rank 0 hosts a store, the others connect to it."""

import os
from datetime import timedelta

import torch.distributed as dist


def host(timeout_s: float) -> tuple[dist.TCPStore, str, int]:
    """Open a store on a free port of this node; returns it with the address to give to the other ranks."""
    import ray

    store = dist.TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    return store, ray.util.get_node_ip_address(), store.port


def join(store: dist.TCPStore | None, address: str, port: int, *, rank: int, workers: int, device: str, timeout_s: float) -> None:
    """Start torch.distributed, NCCL on GPUs and gloo elsewhere, and tell DeepSpeed what it reads from the environment."""
    timeout = timedelta(seconds=timeout_s)
    store = store or dist.TCPStore(address, port, is_master=False, timeout=timeout)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": "0",  # Ray shows each worker its own GPU alone
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": device,
    }
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=workers, timeout=timeout)
    import deepspeed

    # Its shared-memory collective serves inference alone; a killed rank would leave its 69 MB of it in /dev/shm for good.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
