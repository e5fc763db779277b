"""Writes the job: OUT N ROUNDS MB."""

import sys

from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe.fedavg import FedAvgRecipe
from nvflare_model import Model

n, rounds, mb = map(int, sys.argv[2:])
FedAvgRecipe(
    name="bench",
    min_clients=n,
    num_rounds=rounds,
    train_script="nvflare_client.py",
    framework=FrameworkType.NUMPY,
    model_persistor=Model(mb),
).export(sys.argv[1])
