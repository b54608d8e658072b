"""The driver follows from the model, and what cannot be shared is refused in a sentence."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from manyhands.errors import ModelError
from manyhands.sharing.strategy import DiLoCo, EveryStep
from manyhands.worker.driving import driver_for


def test_each_model_finds_its_framework() -> None:
    assert (
        type(driver_for(nn.Linear(2, 1), None, EveryStep())).__module__
        == "manyhands.frameworks.torch.every_step"
    )
    assert type(driver_for([np.zeros(2)], None, EveryStep())).__module__ == "manyhands.frameworks.arrays"


def test_a_model_of_no_known_kind_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"A builtins.str cannot be shared; give share\(\) a torch.nn.Module, or"
    ):
        driver_for("model.pt", None, EveryStep())


def meta() -> nn.Module:
    return nn.Linear(2, 1, device="meta")


def complex_parameter() -> nn.Module:
    module = nn.Module()
    module.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return module


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: nn.ReLU(),
            "The model, a ReLU, has no trainable parameter; share the module that is trained",
        ),
        (lambda: nn.Linear(2, 1).requires_grad_(False), "has no trainable parameter"),
        (lambda: nn.LazyLinear(3), "The parameter weight has no shape yet; run one batch"),
        (meta, "The parameter weight is on the meta device"),
        (complex_parameter, "The parameter phase is torch.complex64, which cannot be shared"),
    ],
)
def test_a_module_that_cannot_be_shared_is_refused_with_the_remedy(build: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        driver_for(build(), None, EveryStep())


def test_an_optimizer_that_trains_more_than_the_model_is_refused() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 7)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with pytest.raises(
        ModelError, match=r"also trains a parameter of shape \(7, 2\) that is not in the model"
    ):
        driver_for(model, optimizer, EveryStep())


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"The optimizer is a float; share\(model, optimizer, strategy\) takes"
    ):
        driver_for(nn.Linear(2, 1), 0.1, EveryStep())


def test_a_sparse_embedding_may_be_shared_by_updates() -> None:
    words = nn.Embedding(10, 4, sparse=True)
    driver_for(words, torch.optim.SparseAdam(words.parameters()), DiLoCo(3))
    with pytest.raises(ModelError, match="The gradient of weight is sparse"):
        driver_for(words, None, EveryStep())


NUMPY_ONLY = """
import sys
import numpy as np
import manyhands
from manyhands.sharing.strategy import EveryStep, LocalSGD
from manyhands.worker.driving import driver_for

class Alone:
    size, alone, hurry = 1, True, False

for strategy in (EveryStep(), LocalSGD(1)):
    parameters = {"w": np.zeros(3)}
    shared = driver_for(parameters, None, strategy)
    shared.attach(Alone())
    parameters["w"] -= shared.average({"w": np.ones(3)})["w"]
    shared.step()
    shared.capture()
    shared.digest()
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "tensorflow", "jax"))
sys.exit(f"imported {loaded[:3]}" if loaded else 0)
"""


def test_numpy_models_are_shared_without_ever_importing_torch() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NUMPY_ONLY], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
