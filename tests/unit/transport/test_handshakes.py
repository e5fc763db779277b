"""The lines of gRPC that say why a handshake failed, and descriptor 2 that they come from."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from openfed.transport.handshakes import cause, telling

AS_GRPC_1_85_PRINTS_IT = (
    "I1122 10:13:06.935191    4158 ssl_transport_security.cc:2563] Handshake failed with error "
    "SSL_ERROR_SSL: error:{}:SSL routines:OPENSSL_internal:{}"
)
UNVERIFIED = "Invalid certificate verification context"
GOLDEN = {
    ("100000c0", f"PEER_DID_NOT_RETURN_A_CERTIFICATE: {UNVERIFIED}"): "no certificate",
    ("1000007d", "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate"): (
        "unknown authority"
    ),
    ("1000007d", "CERTIFICATE_VERIFY_FAILED: certificate has expired"): "expired certificate",
    ("1000007d", "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid"): (
        "certificate not yet valid"
    ),
    ("1000007d", "CERTIFICATE_VERIFY_FAILED: unsupported certificate purpose"): (
        "certificate of another role"
    ),
    ("100000b8", f"NO_SHARED_CIPHER: {UNVERIFIED}"): "TLS before 1.3",
    ("1000009c", f"HTTP_REQUEST: {UNVERIFIED}"): "not TLS",
    ("1000009b", f"HTTPS_PROXY_REQUEST: {UNVERIFIED}"): "not TLS",
    ("100000f7", f"WRONG_VERSION_NUMBER: {UNVERIFIED}"): "not TLS",
    ("10000438", f"TLSV1_ALERT_INTERNAL_ERROR: {UNVERIFIED}"): "broken off by the peer",
    ("10000070", f"BAD_PACKET_LENGTH: {UNVERIFIED}"): "broken off by the peer",
}


@pytest.mark.parametrize("said", GOLDEN)
def test_a_line_of_grpc_says_why_a_handshake_failed(said):
    assert cause(AS_GRPC_1_85_PRINTS_IT.format(*said).encode()) == GOLDEN[said]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Handshake failed with error SSL_ERROR_SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE",
        b"10:00:00 refused: C09 evaluator 'eve'",
        b"E0000 00:00:1.0 1 chttp2_transport.cc:1223] GOAWAY",
    ],
)
def test_any_other_line_says_nothing_of_handshakes(line):
    assert cause(line) is None


def test_a_cause_that_is_not_known_yet_is_counted_as_another():
    new = b"I0000 00:00:1.0 1 ssl_transport_security.cc:2530] Handshake failed with error BAD_MOOD"
    assert cause(new) == "other"


def test_what_is_told_grows_with_the_logarithm_of_the_count():
    told = [count for count in range(1, 1001) if telling(count)]
    assert told == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert not telling(0)


# -- a process of its own, since descriptor 2 belongs to all of it ---------------------------------

HEADER = """
import json, os, sys, threading
from openfed.transport.handshakes import apart, heard

def line(what):
    said = "I0000 00:00:1.0 1 ssl_transport_security.cc:2530] Handshake failed with error"
    return f"{said} {what}\\n"

seen, told = [], []

def saw(cause):
    seen.append(cause)
    return len(seen) in (1, 3)

"""


def ran(body, **settings) -> subprocess.CompletedProcess:
    settings = {"capture_output": True} | settings
    source = HEADER + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", source], timeout=60, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done


def test_handshakes_are_counted_and_everything_else_arrives_in_order():
    done = ran(
        """
        with heard(saw, told.append):
            for k in range(1000):
                os.write(2, f"line {k}\\n".encode())
                if k % 200 == 0:
                    os.write(2, line("NO_SHARED_CIPHER").encode())
            os.write(2, b"no newline")
        os.write(2, b"\\nafterwards")
        print(json.dumps([seen, told]))
        """
    )
    assert json.loads(done.stdout) == [["TLS before 1.3"] * 5, ["TLS before 1.3"] * 2]
    found = done.stderr.splitlines()
    kept = [each for each in found if "NO_SHARED_CIPHER" not in each]
    assert kept == [*(f"line {k}" for k in range(1000)), "no newline", "afterwards"]
    assert [k for k, each in enumerate(found) if "NO_SHARED_CIPHER" in each] == [1, 402]


def test_lines_that_come_in_pieces_are_put_together():
    done = ran(
        """
        first = line("HTTP_REQUEST")
        with heard(saw, told.append):
            for letter in first + "x" * 200_000 + "\\n" + first:
                os.write(2, letter.encode())
        print(json.dumps(seen))
        """
    )
    assert json.loads(done.stdout) == ["not TLS", "not TLS"]
    assert done.stderr.count("x") == 200_000


def test_python_keeps_the_standard_error_that_it_had():
    """Also what was made before the block, if it was made apart."""
    reading, writing = os.pipe()
    ours, theirs = os.openpty()
    done = ran(
        """
        with apart():
            made_before = sys.stderr
            with heard(saw, told.append):
                found = [made_before.isatty(), sys.stderr.isatty(), os.isatty(2)]
                print("from Python", file=sys.stderr)
        print(json.dumps([*found, os.isatty(2), sys.stderr is sys.__stderr__]))
        """,
        capture_output=False,
        stdout=writing,
        stderr=theirs,
    )
    os.close(writing)
    os.close(theirs)
    assert done.returncode == 0
    with open(reading) as out:
        assert json.loads(out.read()) == [True, True, False, True, True]
    assert os.read(ours, 100) == b"from Python\r\n"
    os.close(ours)


@pytest.mark.parametrize("closed", ["2", "0 1 2"])
def test_a_process_without_standard_error_counts_as_well(closed, tmp_path):
    ran(
        f"""
        for each in map(int, "{closed}".split()):
            os.close(each)
        with heard(saw, told.append):
            os.write(2, line("NO_SHARED_CIPHER").encode())
        os.write(2, b"goes nowhere")
        with open("found", "w") as file:
            json.dump([seen, told], file)
        """,
        cwd=tmp_path,
    )
    assert json.loads((tmp_path / "found").read_text()) == [["TLS before 1.3"]] * 2


def test_nobody_reads_standard_error_any_more_and_counting_goes_on():
    reading, writing = os.pipe()
    os.close(reading)
    done = ran(
        """
        with heard(saw, told.append):
            for _ in range(100):
                os.write(2, b"y" * 1000 + b"\\n" + line("NO_SHARED_CIPHER").encode())
        print(len(seen), len(told))
        """,
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=writing,
    )
    os.close(writing)
    assert done.stdout == "100 2\n"


def test_a_standard_error_that_takes_nothing_stops_neither_who_prints_nor_the_counting():
    """Nor does a thread that holds Python's lock while it prints: it would wait for itself."""
    reading, writing = os.pipe()
    done = ran(
        """
        import ctypes
        write = ctypes.PyDLL(None).write  # holds the lock, as C code called by Python may
        enough = threading.Event()

        def count(cause):
            seen.append(cause)
            if len(seen) == 100:
                enough.set()
            return False

        os.set_blocking(2, False)
        try:
            while True:
                os.write(2, bytes(4096))
        except BlockingIOError:
            os.set_blocking(2, True)
        with heard(count, told.append):
            text = line("NO_SHARED_CIPHER").encode()
            for _ in range(100):
                write(2, text, len(text))
            assert enough.wait(30)
            for _ in range(1000):
                write(2, b"z" * 4096 + b"\\n", 4097)  # more than all pipes hold
        print(len(seen))
        """,
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=writing,
    )
    os.close(writing)
    os.close(reading)
    assert done.stdout == "100\n"
