"""Decisions as values, and the keys of flows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp import flow
from slirp.flow import Cause, ends_of

ports = st.integers(0, 0xFFFF)


def test_refusals_carry_what_icmp_says() -> None:
    assert flow.NOT_ROUTED.cause is Cause.NO_HOST
    assert flow.NO_SERVICE.cause is Cause.NO_PORT
    assert flow.RESTRICTED.cause is flow.NO_LOOPBACK.cause is Cause.NETWORK_PROHIBITED
    assert flow.MARTIAN.cause is None, "a packet that no host may send is not answered"
    assert flow.NO_DNS.cause is None


@given(st.sampled_from([4, 16]), st.data(), ports, ports)
def test_a_key_has_both_ends(size: int, data: st.DataObject, src_port: int, dst_port: int) -> None:
    src, dst = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    key = src + dst + src_port.to_bytes(2, "big") + dst_port.to_bytes(2, "big")
    assert ends_of(key) == ((src, src_port), (dst, dst_port))
