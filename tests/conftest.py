"""What all tests share: no network, small encoders and texts, and shapes that are checked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"
if "PYTEST_XDIST_WORKER" in os.environ:  # one core for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))
install_import_hook(
    [
        f"layerprobe.{name}"
        for name in ("activations", "energy", "internals", "metalearning", "sae", "similarity", "sufficiency")
    ],
    typechecker="checking.typechecked",
)


@pytest.fixture(scope="module", autouse=True)
def _shapes(request):
    """Shapes are checked by the tests of parts, which are in folders; at every call of a whole run it takes a third of the time."""
    whole_runs = request.path.parent in (Path(__file__).parent, Path(__file__).parent / "report")
    jaxtyping.config.update("jaxtyping_disable", whole_runs)


# No test depends on how fast the machine is.
hypothesis.settings.register_profile("any-speed", deadline=None)
hypothesis.settings.load_profile("any-speed")


def pytest_addoption(parser):
    parser.addoption("--fp32", action="store_true", help="let precision 'auto' be float32 on every processor")


def pytest_configure(config):
    if config.getoption("--fp32"):
        import torch

        torch.cpu._is_avx512_bf16_supported = lambda: False


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory):
    """Artifacts of tests never mix with a user's."""
    os.environ["LAYERPROBE_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    from tiny import make_encoder

    return make_encoder(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory) -> Path:
    from tiny import write_csv

    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", n=160)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_bert):
    from layerprobe.encoder import load_encoder

    return load_encoder(str(tiny_bert))


@pytest.fixture(scope="session")
def tiny_corpus(tiny_csv):
    from layerprobe.data import load_corpus

    return load_corpus(str(tiny_csv), train=80, test=40)
