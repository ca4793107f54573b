"""What a fork server imports once, so that its children start in milliseconds."""

import importlib

NAMES = ("numpy", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.linear_model", "torch", "transformers", "plotly")
INNER = ("sae_lens", "transformers.models.bert.modeling_bert", "transformers.trainer")

for name in (*NAMES, *INNER, "layerprobe.cli", "layerprobe.pipeline", "layerprobe.sae", "layerprobe.report"):
    importlib.import_module(name)
