"""Time and memory of the OTiS encoder, forward and backward, against the published form of its attention.

    python benchmarks/otis.py [out=otis.json] [rounds=5] [batches=8,32] [seconds=3]

The published form of OTiS and StenCE calls nn.MultiheadAttention for its weights and keeps their mean over the heads:
(B, heads, N, N) per block for the backward pass and (B, N, N) beside it. Ours keeps no matrix of N x N. Both are OTiS
base with the same weights, whose features and gradients must be equal. Times: both forms in turns in one process.
Memory: bytes of what autograd and the maps keep until the backward pass, weights aside; and the highest use of memory
over that before the call, resident in a fresh process per form, or allocated on the GPU. One thread; on a machine with
a GPU there, with bf16 autocast, at B = 128. Exit code 1: a claim was not met.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import claims
import numpy as np
import torch
from torch import Tensor, nn

from stence_dist.config.ecg_encoder import OtisConfig
from stence_dist.models.ecg import EcgEncoder
from stence_dist.models.ecg_tower import build_ecg_tower

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES = {"cpu": "8,32", "cuda": "128"}
TIME, KEPT, HIGHEST = 0.9, 0.6, 0.6  # the largest shares of the published form's, at 3 seconds
SAME = {"cpu": 1e-4, "cuda": 0.03}  # float32; bf16
FORMS = ("ours", "published", "checkpointed")


class WeightsKept(nn.Module):
    """The published attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.attn_map: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, D) from three of that shape."""
        output, self.attn_map = self.mha(query, key, value)
        return output


def form_of(name: str, seconds: float) -> EcgEncoder:
    """One form, the same weights in each: larger than fresh ones, with which attention has hardly any gradient."""
    encoder = build_ecg_tower(OtisConfig(seconds=seconds, checkpointing=name == "checkpointed"), None, seed=0).encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(1 / (parameter.std() * parameter.shape[1] ** 0.5))
    for block in encoder.network.blocks if name == "published" else ():
        kept = WeightsKept(encoder.width, block.attn.mha.heads)
        kept.mha.load_state_dict(block.attn.mha.state_dict())
        block.attn.mha = kept
    return encoder.to(DEVICE)


def signal(encoder: EcgEncoder, rows: int) -> Tensor:
    """Noise (B, L, T) as an input."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, len(encoder.spec.leads), encoder.spec.samples, generator=random).to(DEVICE)


def forward(encoder: EcgEncoder, ecg: Tensor) -> Tensor:
    """Features (B, D)."""
    with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
        features: Tensor = encoder(ecg)
    return features


def update(encoder: EcgEncoder, ecg: Tensor) -> Tensor:
    """Features (B, D), and gradients of a function of them in the encoder."""
    encoder.zero_grad(set_to_none=True)
    features = forward(encoder, ecg)
    # Not their squares: a norm has made the sum of those constant.
    (features.float() * torch.linspace(-1, 1, encoder.width, device=DEVICE)).sum().backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return features.detach()


def kept_bytes(encoder: EcgEncoder, ecg: Tensor) -> int:
    """Bytes of distinct storages that wait for the backward pass, weights and input aside, and of attention maps."""
    own = {value.untyped_storage().data_ptr() for value in [*encoder.parameters(), *encoder.buffers(), ecg]}
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        features = forward(encoder, ecg)
    for module in encoder.modules():
        if isinstance(module, WeightsKept) and module.attn_map is not None:
            pack(module.attn_map)
            module.attn_map = None  # it holds the whole graph
    del features
    return sum(found.values())


def memory_of(name: str, rows: int, seconds: float) -> dict[str, int]:
    """Bytes `kept` for the backward pass, and the `highest` use during one update over that before it."""
    if DEVICE == "cuda":
        return memory_here(name, rows, seconds)
    command = [sys.executable, __file__, "memory", name, str(rows), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def memory_here(name: str, rows: int, seconds: float) -> dict[str, int]:
    """The same in this process; on a CPU it must be fresh, or memory that an allocator holds hides the use."""
    encoder = form_of(name, seconds)
    ecg = signal(encoder, rows)
    update(encoder, ecg[:1])
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update(encoder, ecg)
        highest = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the highest size begins anew, at what is resident now
        before = highest_resident()
        update(encoder, ecg)
        highest = highest_resident() - before
    return {"kept": kept_bytes(encoder, ecg), "highest": highest}


def highest_resident() -> int:
    """Bytes that this process had resident at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def distance(one: EcgEncoder, other: EcgEncoder) -> float:
    """The largest distance of two gradients of one weight, over the norm of either."""
    gradients = [
        [value.grad for name, value in sorted((n.replace(".mha.mha.", ".mha."), v) for n, v in form.named_parameters())]
        for form in (one, other)
    ]
    return max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in zip(*gradients) if theirs.any())


def main() -> int:
    """Measure all sizes, print the table, write the file."""
    options = claims.options({"out": "", "rounds": "5", "batches": BATCHES[DEVICE], "seconds": "3"})
    seconds, rounds = claims.whole(options, "seconds"), claims.whole(options, "rounds")
    batches = [claims.whole({"batches": text}, "batches") for text in options["batches"].split(",")]
    torch.set_num_threads(1)
    encoders = {name: form_of(name, seconds) for name in FORMS}
    found = claims.Claims()
    for rows in batches:
        what = f"B={rows}, {seconds:g} s"
        memory = {name: memory_of(name, rows, seconds) for name in FORMS}
        for label, limit, kind in (
            ("kept for the backward pass", KEPT, "kept"),
            ("highest memory", HIGHEST, "highest"),
        ):
            figures = {f"{name}_gb": sizes[kind] / 1e9 for name, sizes in memory.items()}
            ratio = memory["ours"][kind] / memory["published"][kind]
            found.add(f"{label}, {what}, ours / published", ratio, limit, **figures)
        ecg = signal(encoders["ours"], rows)
        features = {name: update(encoder, ecg) for name, encoder in encoders.items()}
        apart = max(
            float((features["ours"] - features["published"]).norm() / features["published"].norm()),
            distance(encoders["ours"], encoders["published"]),
        )
        found.add(f"largest difference of features and gradients, {what}", apart, SAME[DEVICE])
        spent: dict[str, list[float]] = {name: [] for name in FORMS}
        for _ in range(rounds):
            for name, encoder in encoders.items():
                started = time.perf_counter()
                update(encoder, ecg)
                spent[name].append(time.perf_counter() - started)
        middle = {name: float(np.median(times)) for name, times in spent.items()}
        spread = {f"{name}_s": value for name, value in middle.items()}
        found.add(f"time, {what}, ours / published", middle["ours"] / middle["published"], TIME, **spread)
    return found.finish(options["out"], torch=torch.__version__, device=DEVICE, threads=1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        torch.set_num_threads(1)
        print(json.dumps(memory_here(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))
        sys.exit(0)
    sys.exit(main())
