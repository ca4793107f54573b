"""Trained sparse autoencoders, and their activations on many rows as a sparse matrix that every analysis reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from layerprobe.device import MOST_ROWS, batch_size
from layerprobe.errors import MeasureError, StorageError
from layerprobe.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csc_array

BATCH_ROWS = 4096
CODES = ("data", "indices", "indptr", "shape")


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder on the rows of one layer; it computes on the device that it was loaded on."""

    sae: Any
    """The sae-lens object. It takes unscaled rows: the scale of training is folded into its weights."""

    @property
    def d_in(self) -> int:
        """Features of a row."""
        return int(self.sae.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.sae.cfg.d_sae)

    @property
    def architecture(self) -> str:
        """As saved: dictionaries of the BatchTopK family are saved as `jumprelu` with one threshold."""
        return str(self.sae.cfg.architecture())

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_in"]:
        """The direction that each latent writes."""
        return self.sae.W_dec.detach()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.sae.W_dec.device

    @torch.inference_mode()
    def encode(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Activations of all latents on a few rows; `layerprobe.sae.encode` takes many."""
        return self.sae.encode(rows)

    @torch.inference_mode()
    def decode(self, codes: Float[Tensor, "n d_sae"], rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Reconstructions from activations, which may have been computed earlier.

        Args:
            codes: activations on `rows`.
            rows: read only by dictionaries that normalise each row when they encode it (`layer_norm`): sae-lens keeps
                the scale of the rows encoded last, and undoes it here.
        """
        self.sae.run_time_activation_norm_fn_in(rows)
        return self.sae.decode(codes)


def load(folder: str | Path, *, device: str = "cpu") -> Dictionary:
    """Read a dictionary in sae-lens' format (`cfg.json`, `sae_weights.safetensors`).

    Args:
        folder: where `train` saved it.
        device: where it will compute.

    Raises:
        StorageError: if it is missing or damaged, or its weights do not fit its configuration.
    """
    from sae_lens import SAE

    folder = Path(folder)
    missing = [name for name in ("cfg.json", "sae_weights.safetensors") if not (folder / name).is_file()]
    if missing:
        raise StorageError(f"{folder} has no complete sparse autoencoder ({missing[0]} is missing); train it again.")
    try:
        dictionary = Dictionary(SAE.load_from_disk(folder).eval().to(device))
    except Exception as error:
        # Of several lines, the first names the problem.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":. ")
        raise StorageError(f"The sparse autoencoder in {folder} cannot be read ({reason}); train it again.") from error
    broken = [name for name, value in dictionary.sae.state_dict().items() if not bool(value.isfinite().all())]
    if broken:
        raise StorageError(
            f"The sparse autoencoder in {folder} has weights that are not finite ({broken[0]}); train it again."
        )
    return dictionary


def encode(dictionary: Dictionary, rows: Num[np.ndarray, "n d"]) -> csc_array:
    """Activations of all latents on all rows: a sparse matrix, rows x latents, stored by latent.

    Encode a dictionary's rows once: all analyses take these activations. They are host arrays of 8 bytes per active
    latent: 15 MB for 60,000 rows with 32 active latents each.

    Args:
        dictionary: computes on its device.
        rows: activations of a layer; may be memory-mapped.

    Raises:
        MeasureError: if the rows have another width, or NaN or infinite values.
    """
    if rows.ndim != 2 or rows.shape[1] != dictionary.d_in:
        raise MeasureError(
            f"{{rows}} has shape {rows.shape}, but the dictionary takes rows of {dictionary.d_in} features; give rows of "
            "the layer that it was trained on.",
            "rows",
        )
    # A row, its activations before and after the non-linearity, and one more matrix of their size to compute them.
    each = 4 * (dictionary.d_in + 3 * dictionary.d_sae)
    size = batch_size(dictionary.device, each, usual=BATCH_ROWS, most=MOST_ROWS)
    batches = track(list(row_batches(len(rows), size)), "encoding")

    def dense(batch: slice) -> Float[Tensor, "m d_sae"]:
        # A copy: torch warns of read-only arrays, which memory-mapped rows are.
        part = torch.from_numpy(np.array(rows[batch], dtype=np.float32)).to(dictionary.device)
        return dictionary.encode(check_finite(part, batch.start))

    return to_sparse(map(dense, batches), (len(rows), dictionary.d_sae))


def row_batches(n: int, size: int = BATCH_ROWS) -> Iterator[slice]:
    """Slices of consecutive rows."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def check_finite(rows: Float[Tensor, "m d"], start: int) -> Float[Tensor, "m d"]:
    """The same rows, of which the first is number `start`.

    Raises:
        MeasureError: if a value is not finite.
    """
    finite = rows.isfinite().all(1)
    if not bool(finite.all()):
        raise MeasureError(
            f"The rows have NaN or infinite values (first in row {start + int(finite.int().argmin())}); drop or correct "
            "these rows."
        )
    return rows


def to_sparse(batches: Iterable[Float[Tensor, "m d_sae"]], shape: tuple[int, int]) -> csc_array:
    """Non-negative values of consecutive batches as one sparse host matrix, stored by column.

    Raises:
        MeasureError: if a value is negative, which the statistics of activations do not allow.
    """
    from scipy.sparse import csr_array

    values, columns, counts = [np.zeros(0, np.float32)], [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    for dense in batches:
        flat = dense.reshape(-1)
        active = flat.nonzero().squeeze(1)
        row, column = np.divmod(active.cpu().numpy(), shape[1])
        values.append(flat[active].float().cpu().numpy())
        columns.append(column.astype(np.int32))
        counts.append(np.bincount(row, minlength=len(dense)))
        if (values[-1] < 0).any():
            raise MeasureError("The dictionary has negative activations; use one whose activations are not negative.")
    pointers = np.cumsum(np.concatenate(counts))
    return csr_array((np.concatenate(values), np.concatenate(columns), pointers), shape=shape).tocsc()


def save_codes(codes: csc_array, folder: str | Path) -> None:
    """Write activations of `encode` as `.npy` files into a folder, which is created if it does not exist."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODES:
        np.save(folder / f"{name}.npy", np.asarray(getattr(codes, name)), allow_pickle=False)


def load_codes(folder: str | Path) -> csc_array:
    """Read what `save_codes` wrote, memory-mapped.

    Raises:
        StorageError: if a file is missing or damaged, or they do not fit each other.
    """
    from scipy.sparse import csc_array

    folder = Path(folder)
    try:
        data, indices, indptr, shape = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in CODES
        )
        return csc_array((data, indices, indptr), shape=tuple(map(int, shape)))
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"The activations in {folder} cannot be read ({error}); encode the rows again.") from error


def float64_device(device: torch.device) -> torch.device:
    """Where sums in float64 are computed: on the device, or on the CPU for mps, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
