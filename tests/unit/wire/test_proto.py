"""The published protocol: what is in it stays in it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from openfed.wire import federation_pb2 as pb

ROOT = Path(__file__).parents[3]

# Fields by number. A change here is a change of the protocol: add, never alter.
FIELDS = """
Block
Stamp 1:federation 2:run 3:plan_digest 4:operation 5:attempt 6:major 7:minor 8:capabilities
Hello 1:stamp 2:facts 3:approval
Welcome 1:stamp 2:state 3:lease_s 4:identity 5:head
Head 1:number 2:hash 3:signature
Payload 1:name 2:digest 3:size 4:blobs
Blob 1:digest 2:size 3:base
Assignment 1:ask 2:task 3:round 4:settings 5:payloads 6:updates 7:limit
Next 1:stamp 2:wait_s 3:holding
Orders 1:stamp 2:state 3:reason 4:lease_s 5:assignment 6:cancel 7:head
Pull 1:stamp 2:digest 3:offset
Push 1:stamp 2:ask 3:upload 4:digest
PushOffset 1:offset
PushEnd
Failure 1:code 2:message 3:traceback
Report 1:stamp 2:ask 3:digest 4:size 5:failure
Verdict 1:stamp 2:ruling 3:code 4:message 5:receipt
Renew 1:stamp 2:csr 3:identity 4:signature
Renewed 1:stamp 2:chain 3:anchors
"""
ENUMS = """
RunState 0:UNSPECIFIED 1:WAITING 2:RUNNING 3:COMPLETED 4:FAILED 5:ABORTED
Ruling 0:UNSPECIFIED 1:ACCEPTED 2:DUPLICATE 3:LATE 4:REFUSED
"""
METHODS = """
Hello .openfed.v1.Hello -> .openfed.v1.Welcome
Next .openfed.v1.Next -> .openfed.v1.Orders
Pull .openfed.v1.Pull -> stream .openfed.v1.Block
Push stream .openfed.v1.Block -> stream .openfed.v1.PushOffset
Report .openfed.v1.Report -> .openfed.v1.Verdict
Renew .openfed.v1.Renew -> .openfed.v1.Renewed
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def test_no_field_has_moved():
    found = [
        " ".join([name, *(f"{field.number}:{field.name}" for field in message.fields)])
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    ]
    assert sorted(found) == sorted(lines(FIELDS))


def test_no_enum_value_has_moved():
    found = []
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        values = (f"{v.number}:{v.name.split('_')[-1]}" for v in enum.values)
        found.append(" ".join([name, *values]))
    assert sorted(found) == sorted(lines(ENUMS))


def test_no_method_has_changed():
    def side(streams: bool, kind) -> str:
        return f"{'stream ' if streams else ''}.{kind.full_name}"

    service = pb.DESCRIPTOR.services_by_name["Federation"]
    assert service.full_name == "openfed.v1.Federation"
    found = [
        f"{m.name} {side(m.client_streaming, m.input_type)} -> "
        f"{side(m.server_streaming, m.output_type)}"
        for m in service.methods
    ]
    assert found == lines(METHODS)


@pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is of the extra dev"
)
def test_the_generated_module_is_that_of_the_proto():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "protos", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
