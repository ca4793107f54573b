"""Fine-tune one model on several GPUs of a machine, for a study that compares it as `checkpoint:PATH`.

accelerate launch --multi_gpu --num_processes 4 train_on_several.py --model MODEL --data texts.csv --out checkpoint
"""

import argparse
import os
import sys
from pathlib import Path

from layerprobe.adaptation import AdaptConfig, adapt, parse_method
from layerprobe.data import load_corpus
from layerprobe.encoder import load_encoder
from layerprobe.errors import LayerprobeError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="local folder, Hub id or bundled:minilm-l6")
    parser.add_argument("--data", required=True, help="as data.source of a study")
    parser.add_argument("--train", type=int, default=2000, help="training examples")
    parser.add_argument("--test", type=int, default=1000, help="test examples")
    parser.add_argument("--method", default="full", help="as in a study: full, top:k, lora:r, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--precision", default="auto", help="auto, bf16, tf32 or fp32")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script without a GPU")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    result = adapt(
        encoder,
        load_corpus(options.data, train=options.train, test=options.test),
        options.out,
        method=parse_method(options.method, encoder.n_layers),
        seed=options.seed,
        config=AdaptConfig(
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            precision=options.precision,
            device=options.device,
        ),
    )
    if is_first():
        print(f"{options.out}: accuracy {result.before.accuracy:.3f} before, {result.after.accuracy:.3f} after")
        print(result.log.to_string(index=False))


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return int(os.environ.get("RANK") or 0) == 0


if __name__ == "__main__":
    try:
        main()
    except LayerprobeError as error:
        if is_first():
            print(f"train_on_several: {error}", file=sys.stderr)
        sys.exit(2)
