"""The (B, G) matrix of logits of local rows against all ranks' columns, tile by tile, so that none is ever held."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stence_dist.distributed import active, all_gather_later, rank, reduce_scatter_sum

# By device: rows and columns of a tile, such that a core's cache holds it or that it fills a GPU (256 MB of float32);
# and the largest matrix, in logits, that is kept for the backward rather than made again.
_SIZES = {"cpu": (512, 4096, 2**23), "cuda": (4096, 16384, 2**26)}


class Tiles:
    """Logits scale * rows @ columns.T, made on demand; rows are this rank's (B, E), columns gathered: (G, E).

    patient (B,) int64: a row and a column of one patient are hidden from each other, unless they are one pair.
    With keep, a small matrix is held, all tiles together, and `kept` is True: `tile` gives what was left in it.
    """

    def __init__(self, rows: Tensor, columns: Tensor, scale: Tensor, patient: Tensor, *, keep: bool = False) -> None:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        gathered = all_gather_later(patient), all_gather_later(columns)  # both under way at once
        self.rows = rows.to(dtype) * scale.to(dtype)
        self.first = rank() * len(rows) if active() else 0  # the column of row 0's own pair
        self._patient, self._patients, self.columns = patient, gathered[0](), gathered[1]().to(dtype)
        self._any_hidden = len(torch.unique(self._patients)) < len(self._patients)
        height, width, most_kept = _SIZES["cpu" if rows.device.type == "cpu" else "cuda"]
        whole = len(self.rows), len(self.columns)
        self._shape = min(height, whole[0]), min(width, whole[1])
        self.kept = keep and whole[0] * whole[1] <= most_kept
        self._buffer = self.rows.new_empty(whole if self.kept else self._shape)

    @property
    def own(self) -> slice:
        """The columns of this rank's own pairs."""
        return slice(self.first, self.first + len(self.rows))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of every tile, in a fixed order."""
        height, width = self._shape
        for left in range(0, len(self.columns), width):
            for top in range(0, len(self.rows), height):
                yield slice(top, min(top + height, len(self.rows))), slice(left, min(left + width, len(self.columns)))

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """One tile of logits, not hidden yet, in memory that the next call takes again unless the matrix is kept."""
        return torch.mm(self.rows[rows], self.columns[columns].T, out=self.tile(rows, columns))

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """The memory of one tile, and what was left in it where the matrix is kept."""
        if self.kept:
            return self._buffer[rows, columns]
        return self._buffer[: rows.stop - rows.start, : columns.stop - columns.start]

    def hide(self, tile: Tensor, rows: slice, columns: slice, value: float) -> Tensor:
        """The same tile, `value` written where row and column are of one patient but not one pair."""
        if self._any_hidden:
            hidden = self._patient[rows, None] == self._patients[None, columns]
            self.diagonal(hidden, rows, columns).fill_(False)
            tile.masked_fill_(hidden, value)
        return tile

    def paired(self, rows: slice, columns: slice) -> slice:
        """The rows of a tile whose own pair is in it, too: those of its `diagonal`."""
        low, high = max(rows.start, columns.start - self.first), min(rows.stop, columns.stop - self.first)
        return slice(low, max(low, high))

    def diagonal(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """View of a tile's positives; empty where it has none."""
        offset = self.first + rows.start - columns.start
        if not -tile.shape[0] < offset < tile.shape[1]:
            return tile.new_empty(0)
        return tile.diagonal(offset)

    def pull_back(self, gradient_of: Callable[[slice, slice], Tensor], share: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (B, E) of the scaled rows and of this rank's columns, the latter summed over all ranks' tiles.

        gradient_of(rows, columns) is the gradient of one tile's logits; share, a scalar, multiplies all of them.
        """
        of_rows, of_columns = torch.zeros_like(self.rows), torch.zeros_like(self.columns)
        for rows, columns in self:
            gradient = gradient_of(rows, columns)
            of_rows[rows].addmm_(gradient, self.columns[columns])
            of_columns[columns].addmm_(gradient.T, self.rows[rows])
        return of_rows.mul_(share), reduce_scatter_sum(of_columns.mul_(share))
