"""`dtype: auto` becomes a dtype here, once for a run: bfloat16 where all of its devices compute it natively, else float32.

The run's directory records the choice, so that a run that goes on elsewhere keeps it. After `prepare` no config holds `auto`.
"""

import json
import os
from pathlib import Path

from actors.groups.nodes import choose_device, driver_node, has_bfloat16, usable_nodes
from actors.groups.placement import cluster
from launch.config import STAGES, RunConfig
from launch.directory import CONFIG_RECORD
from minirl.config.reader import validate_config
from minirl.errors import InputError
from minirl.files import write_json

RECORD = "dtype.json"
ROLES = ("rollout", "teacher", "learner")
DTYPES = ("float32", "bfloat16")


def resolve_dtypes(config: RunConfig, directory: Path) -> tuple[RunConfig, str | None]:
    """The config with a dtype in place of every `auto`, and a line about the choice for the user; None if nothing was `auto`.

    Records a new choice in the run's directory.
    """
    roles = [role for role in ROLES if getattr(config, role).dtype == "auto"]
    if not roles:
        return config, None
    dtypes, reason = _recorded(directory), f"as {directory / RECORD} records"
    if not dtypes.keys() >= set(roles):
        dtypes, reason = _of_first_start(directory), f"as {directory / CONFIG_RECORD} records"
    if not dtypes.keys() >= set(roles):
        chosen, reason = _of_devices(config)
        dtypes = dict.fromkeys(roles, chosen)
    dtypes = {role: dtypes[role] for role in roles}
    sections = {role: getattr(config, role).model_copy(update={"dtype": dtype}) for role, dtype in dtypes.items()}
    resolved = validate_config(RunConfig, config.model_copy(update=sections).model_dump())  # some settings need two roles of one dtype
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RECORD, _recorded(directory) | dtypes)
    return resolved, "dtype: " + ", ".join(f"{role} {dtype}" for role, dtype in dtypes.items()) + f", {reason}"


def _recorded(directory: Path) -> dict[str, str]:
    """Role -> dtype, as an earlier start chose it; empty if there was none."""
    file = directory / RECORD
    try:
        record = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        record = None
    if not isinstance(record, dict) or not set(record.values()) <= set(DTYPES):
        raise InputError(f"{file} is not the record of a run's dtypes; delete it to choose them anew, or name each dtype in the config")
    return record


def _of_first_start(directory: Path) -> dict[str, str]:
    """Role -> dtype of a run whose stages started with a dtype in the config, or before `auto` existed; empty if none has started."""
    if not any((directory / stage).is_dir() for stage in STAGES):
        return {}
    file = directory / CONFIG_RECORD
    values = json.loads(file.read_text()) if file.is_file() else {}  # readable: `claim_directory` has read it
    dtypes = {role: values.get(role, {}).get("dtype") for role in ROLES}
    return {role: dtype for role, dtype in dtypes.items() if dtype in DTYPES}


def _of_devices(config: RunConfig) -> tuple[str, str]:
    """The dtype for the nodes that the run can use, and the reason. Connects to a cluster at RAY_ADDRESS to ask its nodes."""
    if os.environ.get("RAY_ADDRESS"):
        with cluster(0, 0):  # joins the cluster there; the sizes are those of a cluster that it would start
            nodes = usable_nodes(config.cluster.start_timeout_s)
    else:
        nodes = [driver_node()]
    device, _ = choose_device(config.cluster.device, nodes)
    kind = {"cpu": "CPU", "cuda": "GPU"}[device]
    if has_bfloat16(device, nodes):
        return "bfloat16", f"because every {kind} of the run computes bfloat16 natively"
    return "float32", f"because a {kind} of the run has no instructions for bfloat16"
