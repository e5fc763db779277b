"""What docs/data.md says is true."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from openfed.data import partition
from openfed.data.check import demand
from openfed.data.contract import contract_of
from openfed.errors import TaskError
from openfed.plan.choices import PARTITIONERS
from openfed.plan.load import load_plan
from openfed.plan.local import read_local
from openfed.workspace import create

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
TABLE, ARRAYS, PARTITION = YAML
ROWS = "".join(f"{20 + n},{'' if n % 7 == 0 else 20 + n / 4},{n % 2}\n" for n in range(40))


def patients(folder: Path, rows: str = ROWS):
    """The loader of the page, on a file of its columns."""
    path = folder / "patients.csv"
    path.write_text(f"age,bmi,ill\n{rows}")
    names = {"np": np}
    exec(PYTHON[0], names)
    return names["Patients"](path)


def test_the_loader_reads_and_holds_the_contract_of_the_page(tmp_path):
    loader, contract = patients(tmp_path), contract_of(yaml.safe_load(TABLE)["data_contract"])
    demand(contract, loader.table())
    ((inputs, targets),) = loader.train(seed=1)
    assert inputs.shape == (40, 2) and np.isfinite(inputs).all() and set(targets) == {0, 1}


def test_a_broken_rule_is_told_in_the_words_of_the_page(tmp_path):
    contract = contract_of(yaml.safe_load(TABLE)["data_contract"])
    with pytest.raises(TaskError) as caught:
        demand(contract, patients(tmp_path, ROWS + "131,20,0\n").table())
    assert f"\n{caught.value}\n" in TEXT


@pytest.mark.parametrize("snippet", [TABLE, ARRAYS])
def test_the_contracts_are_keys_of_a_plan(tmp_path, snippet):
    create(tmp_path / "w", "numpy_linear")
    plan = tmp_path / "w" / "plan" / "plan.yaml"
    plan.write_text(plan.read_text() + snippet)
    assert load_plan(plan).data_contract is not None


def test_the_partition_is_one_and_makes_the_source_that_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.yaml").write_text(PARTITION)
    names = [f"site{k}" for k in range(1, 11)]
    sites = read_local(tmp_path / "local.yaml", names).sites
    (shown,) = re.findall(r"`(\{of: data/all.npz,.*?\})`", TEXT, re.S)
    assert sites["site2"] == yaml.safe_load(shown)
    (tmp_path / "data").mkdir()
    y = np.arange(200) % 10
    np.savez(tmp_path / "data" / "all.npz", x=np.arange(200), y=y)
    rows = []
    for source in sites.values():
        told = {"source": source}
        exec(PYTHON[1], told)
        assert told["targets"].tolist() == (told["inputs"] % 10).tolist()
        rows += told["inputs"].tolist()
    assert sorted(rows) == list(range(200))


def test_every_partitioner_is_in_the_table_with_its_settings():
    cells = re.findall(r"^\| `(.+?)` \|", TEXT[TEXT.index("| `by` |") :], re.M)[1:]
    given = [yaml.safe_load(cell) for cell in cells]
    chosen = {}
    for each in given:
        chosen |= {each: {}} if isinstance(each, str) else each
    assert chosen.keys() == PARTITIONERS.keys()
    for name, settings in chosen.items():
        assert PARTITIONERS[name].model_validate(settings).model_dump().keys() == settings.keys()
        keys = np.arange(60) % 3
        assert len(partition.partition(name, keys, 3, np.random.default_rng(0), settings)) == 3


def test_every_reader_of_the_table_is_there():
    named = re.findall(r"`(openfed\.data\.\w+)\.(read_\w+)\(", TEXT)
    assert len(named) == 7
    assert all(hasattr(importlib.import_module(module), name) for module, name in named)
