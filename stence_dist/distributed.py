"""Processes that work as one: the only importer of torch.distributed.

Everything works without a process group, too: one rank, collectives that return their input.
"""

import contextlib
import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from stence_dist import launchers
from stence_dist.device import compute_device, has_gpu
from stence_dist.errors import EXIT_DONE, EXIT_STOPPED, ConfigError, RefusedError

# How gloo says that a connection broke or timed out; it has no exception of its own.
_GLOO_LOSSES = (
    "third_party/gloo",
    "Application timeout caused pair closure",
    "Connection closed by peer",
    "Connection reset by peer",
    "Operation timed out",
)


class PeerLostError(RuntimeError):
    """A collective failed because another rank is gone; that rank's own message says why."""

    @classmethod
    def of(cls, error: BaseException) -> "PeerLostError":
        """What a back end's `error` means."""
        lost = cls(f"rank {rank()} lost its peers: {next(iter(str(error).splitlines()), type(error).__name__)[:200]}")
        lost.__cause__ = error
        return lost


def means_lost_peer(error: BaseException) -> bool:
    """True for the errors by which gloo and NCCL say that a connection broke or timed out, whoever called them."""
    if isinstance(error, PeerLostError):
        return True
    if isinstance(error, dist.DistError):
        return "out of memory" not in str(error)
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _GLOO_LOSSES)


def start(timeout_s: float) -> torch.device:
    """Join the process group that the environment describes and return this rank's device.

    Plain `python` makes a group of one, without a port. Raises ConfigError where there are more ranks than GPUs on a
    node that has GPUs.
    """
    mapped = launchers.map_slurm(os.environ)
    os.environ.update(mapped)
    if mapped and has_gpu() and torch.cuda.device_count() == 1:
        os.environ["LOCAL_RANK"] = "0"  # srun shows each task its own GPU only, as number 0; DeepSpeed reads this, too
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if has_gpu() and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"Local rank {local_rank} has no GPU: it sees {torch.cuda.device_count()} (CUDA_VISIBLE_DEVICES). Start at "
            "most that many ranks per node, or set DS_ACCELERATOR=cpu."
        )
    device = compute_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if launchers.launched(os.environ):
        _end_with_parent()
        store, rank_here, ranks = next(rendezvous("env://", timeout=timeout))
        if launchers.shares_store(os.environ):
            store = _store_of_this_start(store, rank_here, ranks, timeout_s)
        dist.init_process_group(backend, store=store, rank=rank_here, world_size=ranks, timeout=timeout)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    return device


def _store_of_this_start(store: Store, rank_here: int, ranks: int, timeout_s: float) -> Store:
    """A part of torchrun's store that no earlier start has written to.

    torchrun keeps one store over its restarts; ranks that read the addresses of those before them fail or wait for
    nobody. The count of restarts does not tell starts apart: each node has its own. So every rank asks rank 0, with a
    number of its own that no older answer can match, for the name of this start.
    """
    deadline = time.monotonic() + timeout_s

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    def pause() -> None:
        if time.monotonic() > deadline:
            raise PeerLostError(f"rank {rank_here} of {ranks} waited {timeout_s:.0f} s for the others to start")
        time.sleep(0.02)

    name = os.urandom(8).hex()
    if rank_here == 0:
        missing = set(range(1, ranks))
        while missing:
            for other in missing:
                store.set(f"start/answer/{other}", read(f"start/question/{other}") + name)
            missing = {other for other in missing if read(f"start/seen/{other}") != name}
            pause()
    else:
        question, answer = os.urandom(8).hex(), ""
        store.set(f"start/question/{rank_here}", question)
        while not answer.startswith(question):
            pause()
            answer = read(f"start/answer/{rank_here}")
        name = answer[len(question) :]
        store.set(f"start/seen/{rank_here}", name)
    return PrefixStore(f"start/{name}", store)


def limit_all_groups(timeout_s: float) -> None:
    """Give every process group of this process the timeout of the first one.

    DeepSpeed's groups are made without one and take torch's own, 30 minutes with gloo: so long a rank would wait for
    peers behind a cut link.
    """
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def _end_with_parent() -> None:
    """End this rank when its launcher is gone: an orphan would hold the run folder and the GPU."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        sys.stderr.write(f"rank {rank()}: the launcher is gone, ending.\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def active() -> bool:
    """True inside a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 without a group."""
    return dist.get_rank() if active() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """W, 1 without a group."""
    return dist.get_world_size() if active() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        with _peers():
            dist.barrier()


@contextlib.contextmanager
def _peers() -> Any:
    """Turn a lost connection into PeerLostError, so that only the rank at fault explains itself."""
    try:
        yield
    except RuntimeError as error:
        # On a GPU a fault of this rank's own may surface in any call; on CPU a collective fails for its peers only.
        if not means_lost_peer(error) and dist.get_backend() != "gloo":
            raise
        raise PeerLostError.of(error) from error


def all_reduce_sum(values: Tensor) -> Tensor:
    """The element-wise sum over ranks (a new tensor, no gradient)."""
    return _reduce(values, dist.ReduceOp.SUM)


def all_reduce_max(values: Tensor) -> Tensor:
    """The element-wise maximum over ranks (a new tensor, no gradient)."""
    return _reduce(values, dist.ReduceOp.MAX)


def all_reduce_min(values: Tensor) -> Tensor:
    """The element-wise minimum over ranks (a new tensor, no gradient)."""
    return _reduce(values, dist.ReduceOp.MIN)


def _reduce(values: Tensor, operation: Any) -> Tensor:
    reduced = values.detach().clone()
    if world_size() > 1:
        with _peers():
            dist.all_reduce(reduced, op=operation)
    return reduced


def all_gather(rows: Tensor) -> Tensor:
    """(B, ...) on each rank -> (W*B, ...) in rank order, no gradient. B must be equal on all ranks."""
    return all_gather_later(rows)()


def all_gather_later(rows: Tensor) -> Callable[[], Tensor]:
    """`all_gather`, begun now and finished by the call: what is computed in between hides the wait."""
    rows = rows.detach().contiguous()
    if world_size() == 1:
        gathered = rows.clone()
        return lambda: gathered
    gathered = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
    with _peers():
        work = dist.all_gather_into_tensor(gathered, rows, async_op=True)

    def finish() -> Tensor:
        with _peers():
            work.wait()
        return gathered

    return finish


def reduce_scatter_sum(rows: Tensor) -> Tensor:
    """(W*B, ...) on each rank -> (B, ...): this rank's rows summed over ranks, no gradient; the adjoint of all_gather.

    Where a loss is the mean over *local* rows, columns that were gathered and whose gradients come back through this
    sum have, after the mean over ranks that DeepSpeed takes of parameter gradients, exactly those of one process.
    """
    if world_size() == 1:
        return rows.detach()
    local = rows.new_empty((rows.shape[0] // world_size(), *rows.shape[1:]))
    with _peers():
        dist.reduce_scatter_tensor(local, rows.detach().contiguous())
    return local


def broadcast_bytes(content: bytes, source: int = 0) -> bytes:
    """`content` of rank `source`, on every rank. Bytes, never pickled objects."""
    if world_size() == 1:
        return content
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    with _peers():
        size = torch.tensor([len(content)], dtype=torch.int64, device=device)
        dist.broadcast(size, source)
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
        if rank() == source and content:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(data, source)
    return data.cpu().numpy().tobytes()


def all_gather_bytes(content: bytes) -> list[bytes]:
    """What each rank passed, in rank order, on every rank. Lengths may differ; bytes, never pickled objects."""
    if world_size() == 1:
        return [content]
    device = collective_device()
    sizes: list[int] = all_gather(torch.tensor([len(content)], dtype=torch.int64, device=device)).tolist()
    row = torch.zeros(1, max(*sizes, 1), dtype=torch.uint8)
    if content:
        row[0, : len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    rows = all_gather(row.to(device)).cpu()
    return [rows[index, :size].numpy().tobytes() for index, size in enumerate(sizes)]


def backends() -> list[str]:
    """The back ends that this torch was built with."""
    return [name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there]


def hosts() -> list[str]:
    """The host of each rank, on every rank."""
    return [name.decode() for name in all_gather_bytes(socket.gethostname().encode())]


def agree(value: str, what: str) -> None:
    """Raise RefusedError on every rank unless all ranks hold the same `value`, e.g. a config hash."""
    digest = hashlib.sha256(value.encode()).digest()[:8]
    number = torch.tensor([int.from_bytes(digest, "little") >> 1], dtype=torch.int64, device=collective_device())
    if bool(all_reduce_min(number) != all_reduce_max(number)):
        raise RefusedError(
            f"The ranks do not agree on {what} (rank {rank()} has {value[:80]}). Start every rank with the same "
            "command, code and files."
        )


def refuse_together(check: Callable[[], None]) -> None:
    """Run `check` on rank 0; where it raises RefusedError, every rank raises it and rank 0 alone reports it."""
    refusal = b""
    error: RefusedError | None = None
    if rank() == 0:
        try:
            check()
        except RefusedError as raised:
            error, refusal = raised, str(raised).encode()
    message = broadcast_bytes(refusal)
    if error is not None:
        raise error
    if message:
        repeated = RefusedError(message.decode())
        repeated.quiet = True
        raise repeated


def any_rank(flag: bool) -> bool:
    """True where any rank's flag is set."""
    return bool(largest_later(int(flag))())


def largest_later(value: int) -> Callable[[], int]:
    """The largest of the ranks' values; begun now and finished by the call."""
    values = all_gather_later(torch.tensor([value], dtype=torch.int32, device=collective_device()))
    return lambda: int(values().max())


def collective_device() -> torch.device:
    """Where small tensors must live to be reduced."""
    return torch.device("cuda") if active() and dist.get_backend() == "nccl" else torch.device("cpu")


def finish(code: int) -> NoReturn:
    """End this rank now with `code`, all output flushed.

    gloo's threads sometimes abort an interpreter that falls off its end after correct results, so ranks leave by
    `os._exit`. A rank that is done, or has stopped on request, waits for its peers first: launchers kill the others
    when one leaves with anything but 0.
    """
    if code in (EXIT_DONE, EXIT_STOPPED):
        with contextlib.suppress(PeerLostError):
            barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
