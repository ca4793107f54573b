"""A trained sparse autoencoder, as numpy in and numpy out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num

from layerprobe.errors import MeasureError, StorageError


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder whose latents stand for features of one layer.

    Attributes:
        sae: the sae-lens object; takes raw rows, since normalisation is folded into its weights.
    """

    sae: Any

    @property
    def d_in(self) -> int:
        return int(self.sae.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.sae.cfg.d_sae)

    @property
    def architecture(self) -> str:
        """As saved: the BatchTopK family is kept as `jumprelu` with one threshold."""
        return str(self.sae.cfg.architecture())

    @torch.inference_mode()
    def encode(self, rows: Num[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n d_sae"]:
        """Activations of all latents; zero where a latent is silent.

        Raises:
            MeasureError: if the rows are of another width.
        """
        if rows.ndim != 2 or rows.shape[1] != self.d_in:
            raise MeasureError(
                f"A dictionary of rows {self.d_in} wide was given rows of shape {rows.shape}; give it rows of the layer "
                "and encoder that it was trained on."
            )
        return self.sae.encode(_tensor(rows)).numpy()

    @torch.inference_mode()
    def decode(self, codes: Float[np.ndarray, "n d_sae"]) -> Float[np.ndarray, "n d_in"]:
        """Rows as the latents rebuild them."""
        return self.sae.decode(_tensor(codes)).numpy()


def load(folder: str | Path) -> Dictionary:
    """Read a dictionary in sae-lens' own format (`cfg.json`, `sae_weights.safetensors`).

    Raises:
        StorageError: if there is none, it cannot be read, or its weights are not those that its settings describe.
    """
    from sae_lens import SAE

    folder = Path(folder)
    missing = [name for name in ("cfg.json", "sae_weights.safetensors") if not (folder / name).is_file()]
    if missing:
        raise StorageError(f"{folder} holds no finished sparse autoencoder ({missing[0]} is missing); train it again.")
    try:
        dictionary = Dictionary(SAE.load_from_disk(folder, device="cpu").eval())
    except Exception as error:
        # Of several lines the first names the problem.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":. ")
        raise StorageError(f"The sparse autoencoder in {folder} cannot be read ({reason}); train it again.") from error
    strange = [name for name, value in dictionary.sae.state_dict().items() if not bool(value.isfinite().all())]
    if strange:
        raise StorageError(
            f"The sparse autoencoder in {folder} has weights that are not finite ({strange[0]}); train it again."
        )
    return dictionary


def _tensor(rows: np.ndarray) -> torch.Tensor:
    # A copy: memory-mapped rows are read-only, which torch warns of.
    return torch.from_numpy(np.array(rows, dtype=np.float32))
