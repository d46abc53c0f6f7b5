"""What torchrun, deepspeed and srun tell the ranks that they start. Knows nothing of torch."""

from collections.abc import Mapping

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def map_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for ranks that `srun` started itself.

    Empty where a launcher has set RANK or where this is no Slurm step with several tasks. The address is the
    first node of SLURM_STEP_NODELIST, the port is derived from the job's number.
    """
    if "RANK" in environment or int(environment.get("SLURM_NTASKS", "1")) < 2 or "SLURM_PROCID" not in environment:
        return {}
    mapped = {name: environment[source] for name, source in _SLURM.items()}
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
    mapped["MASTER_ADDR"] = environment.get("MASTER_ADDR", _first_node(nodes))
    port = 20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000
    mapped["MASTER_PORT"] = environment.get("MASTER_PORT", str(port))
    return mapped


def _first_node(nodes: str) -> str:
    """The first host of a Slurm node list, e.g. `gpu[03-05,9],x1` -> `gpu03`."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


def launched(environment: Mapping[str, str]) -> bool:
    """True where a launcher (torchrun, deepspeed, srun) started this process as one of several ranks."""
    return "RANK" in environment


def place(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, W) as the launcher gave them, (0, 1) without one; known before any process group exists."""
    known = {**environment, **map_slurm(environment)}
    return int(known.get("RANK", "0")), int(known.get("WORLD_SIZE", "1"))


def restarts(environment: Mapping[str, str]) -> int:
    """How often torchrun has restarted its ranks by itself."""
    return int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))


def would_restart(environment: Mapping[str, str]) -> bool:
    """True where torchrun starts its ranks again when they leave with anything but 0."""
    return int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def has_other_nodes(environment: Mapping[str, str]) -> bool:
    """True where torchrun's group spans several nodes."""
    return int(environment.get("GROUP_WORLD_SIZE", "1")) > 1


def shares_store(environment: Mapping[str, str]) -> bool:
    """True where torchrun's own store, kept over its restarts, is the one that the ranks meet in."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
