"""Features that need not fit into memory: rows in several parts, which may be mapped from files."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 23  # numbers, 32 MiB of float32; a computation makes a few copies of a block
CONSTANT = 1e-5  # a dimension that deviates by less than this share of its size is rounding


@dataclass(frozen=True)
class Rows:
    """N rows that `ssl.evaluation.probes` uses as a tensor (N, F): len, shape, device, [indices], split.

    The `parts` (n, F) follow each other. Row i is row chosen[i] of them (without `chosen` row i), standardised by
    `mean` and `std` (F,) where these are set. Only rows that are asked for are read, into a tensor on `device`.
    """

    parts: tuple[Tensor, ...]
    device: torch.device
    chosen: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self.chosen is None else len(self.chosen)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.parts[0].shape[1]

    def __getitem__(self, index: Tensor) -> Tensor:
        index = index if self.chosen is None else self.chosen[index.to(self.chosen.device)]
        if len(self.parts) == 1:
            rows = self.parts[0][index.to(self.parts[0].device)].to(self.device)
        else:
            rows = self._from_parts(index.cpu()).to(self.device)
        return rows if self.mean is None else (rows - self.mean) / self.std

    def _from_parts(self, index: Tensor) -> Tensor:
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        owner = torch.bucketize(index, ends, right=True)
        rows = self.parts[0].new_empty(len(index), self.shape[1])
        for number in owner.unique().tolist():
            mine = owner == number
            rows[mine] = self.parts[number][index[mine] - (ends[number] - len(self.parts[number]))]
        return rows

    def split(self, count: int) -> Iterator[Tensor]:
        """All rows in order, `count` at a time."""
        for start in range(0, len(self), count):
            yield self[torch.arange(start, min(start + count, len(self)))]

    def subset(self, index: Tensor) -> "Rows":
        return replace(self, chosen=index if self.chosen is None else self.chosen[index.to(self.chosen.device)])

    def standardised(self, mean: Tensor, std: Tensor) -> "Rows":
        return replace(self, mean=mean, std=std)


Samples = tuple[Tensor | Rows, Tensor]  # (features (N, F), labels (N,))


def subset(rows: Tensor | Rows, index: Tensor) -> Tensor | Rows:
    """Rows `index` (n,). Those of `Rows` are not read yet."""
    return rows.subset(index) if isinstance(rows, Rows) else rows[index]


def block_size(rows: Tensor | Rows) -> int:
    """How many rows make a block, by their width."""
    return max(1, min(1 << 16, BLOCK // rows.shape[1]))


@torch.no_grad()
def statistics(rows: Tensor | Rows) -> tuple[Tensor, Tensor]:
    """(mean, std), each (F,), of rows (N, F), added up in float64, a block at a time; std is that of `varying`."""
    blocks = block_size(rows)
    mean = sum(block.sum(0, dtype=torch.float64) for block in rows.split(blocks)) / len(rows)
    square = sum((block - mean).square_().sum(0) for block in rows.split(max(1, blocks // 4)))
    kind = rows.dtype if isinstance(rows, Tensor) else rows.parts[0].dtype
    mean = mean.to(kind)
    return mean, varying(mean, (square / len(rows)).sqrt().to(kind))


def varying(mean: Tensor, deviation: Tensor) -> Tensor:
    """`deviation` (F,), inf where the dimension is constant: divided by it, such a dimension is 0."""
    return torch.where(deviation > CONSTANT * (mean.abs() + deviation), deviation, torch.inf)


def unit_length(rows: Tensor) -> Tensor:
    """Rows (N, F) divided by their lengths; first by a power of two, as float32 does not hold the square of 1e20."""
    _, power = torch.frexp(rows.abs().amax(1, keepdim=True))
    return F.normalize(torch.ldexp(rows, -power.clamp(-126, 126)), dim=1)
