"""Why a vLLM engine did not start for lack of memory, in terms of our own config keys."""

import re

from actors.config import EngineConfig, TeacherConfig
from minirl.errors import first_line

NEEDED = re.compile(r"\(?([\d.]+) GiB KV cache is needed")


def memory_problem(error: Exception, config: EngineConfig, device: str, max_model_len: int) -> str | None:
    """One sentence if vLLM had too little or too much memory for its KV cache; None for any other error.

    vLLM itself advises `gpu_memory_utilization` on a CPU too, where it has no effect here.
    """
    role, text = "teacher" if isinstance(config, TeacherConfig) else "rollout", " ".join(str(error).split())
    reason = first_line(error).split(". ")[0]
    too_small = "KV cache is needed" in text or "cache blocks" in text or "even a single token" in text
    too_large = "Free memory on device" in text or "less than requested memory for kv" in text or "out of memory" in text.lower()
    if not too_small and not too_large:
        return None
    shorter = "lower data.max_prompt_tokens or data.max_response_tokens"
    if device == "cpu":
        key = f"{role}.kv_cache_gib = {config.kv_cache_gib:g}"
        if too_small:
            gib = NEEDED.search(text)
            needed = f" to at least {gib[1]}" if gib and float(gib[1]) > config.kv_cache_gib else ""
            return f"{key} is too small for a prompt and response of {max_model_len} tokens ({reason}); raise it{needed}, or {shorter}"
        return f"{key} does not fit into this machine's memory ({reason}); lower it, or end other processes"
    key = f"{role}.gpu_memory_utilization = {config.gpu_memory_utilization:g}"
    if too_small:
        return (
            f"{key} leaves too little for the KV cache of {max_model_len} tokens ({reason}); raise it, raise {role}.tensor_parallel, or "
            f"{shorter}"
        )
    return f"{key} does not fit into the GPU's memory ({reason}); lower it, raise {role}.tensor_parallel, or end other processes on the GPU"
