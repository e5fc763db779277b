"""An aggregator takes as many open files as it may, and says so where they are too few."""

import subprocess
import sys

import pytest

from openfed.launch.open_files import files_for

TRY = """
import resource, sys
from openfed.errors import OpenFedError
from openfed.launch.open_files import allow_files
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 140))
try:
    allow_files(int(sys.argv[1]))
except OpenFedError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        (20, "(140, 140)"),
        (21, "T20  expected 142 open files for 21 sites, this process may have 140\n(120, 140)"),
    ],
)
def test_the_limit_is_raised_as_far_as_it_may_or_the_start_is_refused(sites, told):
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(sites)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == told


def test_a_connection_and_an_update_of_every_site_are_counted():
    assert files_for(1000) - files_for(0) == 2000 and files_for(0) > 50
