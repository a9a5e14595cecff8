"""The transport's reading of what the kernel answers."""

from __future__ import annotations

import os
import struct

import pytest

from muslin.errors import KernelError
from muslin.kernel import links, netlink
from muslin.kernel.netlink import Answer, Request, Socket, attribute, attributes

REFUSED = struct.pack("=i", -22)
HEADER = struct.pack("=IHHII", 16, 24, 5, 1, 0)
WORDS = attribute(1, b"Nexthop has invalid gateway\0")
ACK_TLVS, CAPPED = 0x200, 0x100


def test_the_kernels_words_are_found_behind_a_capped_request() -> None:
    answer = netlink._answer(ACK_TLVS | CAPPED, REFUSED + HEADER + WORDS)
    assert answer == Answer(22, "Nexthop has invalid gateway")


def test_the_kernels_words_are_found_behind_a_whole_request() -> None:
    body = b"x" * 12
    header = struct.pack("=IHHII", 28, 24, 5, 1, 0)
    answer = netlink._answer(ACK_TLVS, REFUSED + header + body + WORDS)
    assert answer.detail == "Nexthop has invalid gateway"


def test_without_words_of_its_own_the_errno_is_explained() -> None:
    assert netlink._answer(CAPPED, REFUSED + HEADER).detail == os.strerror(22)


def test_attributes_are_padded_and_found_again() -> None:
    packed = attribute(1, b"abc") + attribute(2 | 0x8000, b"") + attribute(3, b"abcd")
    assert len(packed) % 4 == 0
    assert attributes(packed) == {1: b"abc", 2: b"", 3: b"abcd"}


def test_a_cut_off_attribute_ends_the_list() -> None:
    assert attributes(attribute(1, b"abcd") + b"\0\0\0\0") == {1: b"abcd"}


def test_many_requests_go_in_several_batches_and_are_answered_in_order() -> None:
    with Socket() as socket:
        asked = [links.get("lo" if n % 3 else "no-such-device") for n in range(5000)]
        answers = socket.send(asked)
    assert [bool(a.errno) for a in answers] == [n % 3 == 0 for n in range(5000)]
    assert {links.read(a.echo[0]).name for a in answers if a.echo} == {"lo"}


def test_a_dump_that_is_refused_says_why() -> None:
    with Socket() as socket, pytest.raises(KernelError, match="list by netlink: "):
        socket.dump(links.GETLINK, b"\xff" * 16)


def test_an_unknown_request_is_refused_not_waited_for() -> None:
    with Socket() as socket:
        (answer,) = socket.send([Request(9999, 0, bytes(16))])
    assert answer.errno


class Interrupted(Socket):
    """A socket whose first dumps were disturbed."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def _collect_dump(self, wanted: int) -> list[bytes]:
        found = super()._collect_dump(wanted)
        if self.left:
            self.left -= 1
            raise netlink._Disturbed
        return found


def test_a_disturbed_dump_is_taken_again() -> None:
    with Interrupted(3) as socket:
        devices = [links.read(b).name for b in socket.dump(links.GETLINK, links.everything())]
    assert "lo" in devices


def test_a_dump_that_is_always_disturbed_is_an_error() -> None:
    with Interrupted(1000) as socket, pytest.raises(KernelError, match="never held still"):
        socket.dump(links.GETLINK, links.everything())
