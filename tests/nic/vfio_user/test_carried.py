"""Another port goes on with a client's connection: the card, its rings, the interrupt."""

from __future__ import annotations

from nic import csr
from nic.ring import ENP, OWN, STP
from nic.vfio_user.messages import ACCESS, HEADER, Command
from nic.vfio_user.port import VfioUserPort
from tests.kit.heir import moved
from tests.kit.pcnet import frame_of
from tests.kit.vfio_client import MAC, VfioClient
from tests.nic.vfio_user.test_server import begun, open_card


def hand_over(client: VfioClient) -> None:
    client.port = moved(
        client.port, lambda sock: VfioUserPort(sock, mac=MAC, on_gone=client.gone.append)
    )


def receive(client: VfioClient, at: int, frame: bytes) -> None:
    """A frame comes, into the ring's descriptor `at`."""
    claim = client.port.claim(len(frame))
    assert claim is not None
    claim.iov.copy_from(frame)
    claim.commit(len(frame))
    client.turn()
    where = 0x10000 + 0x1000 * at
    assert client.ram.read(where, len(frame)) == frame  # type: ignore[arg-type]
    assert client.ram.read(0x2007 + 16 * at, 1)[0] == STP | ENP  # type: ignore[arg-type]


def post(client: VfioClient, at: int, frame: bytes) -> None:
    """A frame to be sent, in the ring's descriptor `at`."""
    client.ram.write(0x20000, frame)  # type: ignore[arg-type]
    dwords = (0x20000, (OWN | STP | ENP) << 24 | 0xF000 | -len(frame) & 0xFFF, 0, 0)
    octets = b"".join(dword.to_bytes(4, "little") for dword in dwords)
    client.ram.write(0x3000 + 16 * at, octets)  # type: ignore[arg-type]


def test_rings_go_on_where_they_were() -> None:
    with VfioClient() as client:
        open_card(client)
        for at in range(3):
            receive(client, at, frame_of(200 + at, MAC))
            assert client.interrupts() == 1
            post(client, at, frame_of(100 + at, MAC))
            hand_over(client)
            client.csr(0, csr.INEA | csr.RINT | csr.TINT)
            client.set_irqs(17)  # unmask, as QEMU does
            client.write(0, 0x12, b"\0\0")
            client.send(Command.REGION_WRITE, ACCESS.pack(0x10, 0, 2) + b"\x48\0")
            client.turn()
            client.receive()
            client.csr(0, csr.INEA | csr.RINT | csr.TINT)
            client.set_irqs(17)
            client.interrupts()
        assert client.port.stats["init"] == 0, "no INIT was needed"
        assert not client.gone


def test_what_was_to_be_sent_is_sent() -> None:
    with VfioClient() as client:
        open_card(client)
        frame = frame_of(200, MAC)
        post(client, 0, frame)
        hand_over(client)
        assert client.turn() == [frame], "the ring is looked at"


def test_registers_and_configuration_are_the_same() -> None:
    with VfioClient() as client:
        open_card(client)
        client.csr(4, 0x0915)
        before = [client.csr(number) for number in range(90)]
        space = client.read(7, 0, 64)
        hand_over(client)
        assert [client.csr(number) for number in range(90)] == before
        assert client.read(7, 0, 64) == space
        assert client.read(0, 0, 4) + client.read(0, 4, 2) == MAC


def test_an_interrupt_that_nobody_heard_of_is_not_told_twice() -> None:
    with VfioClient() as client:
        open_card(client)
        receive(client, 0, frame_of(60, MAC))
        hand_over(client)
        client.turn()
        assert client.interrupts() == 1
        client.set_irqs(17)
        assert client.interrupts() == 1, "the line is up"


def test_a_claim_that_is_open_is_void() -> None:
    with VfioClient() as client:
        open_card(client)
        claim = client.port.claim(60)
        assert claim is not None
        hand_over(client)
        claim.commit(60)
        receive(client, 0, frame_of(60, MAC))


def test_a_card_that_is_stopped_and_half_a_message() -> None:
    with begun() as client:
        message = HEADER.pack(9, Command.REGION_READ, HEADER.size + 16, 0, 0)
        message += ACCESS.pack(0, 0, 2)
        client.sock.send(message[:20])
        client.turn()
        hand_over(client)
        client.sock.send(message[20:])
        client.turn()
        assert client.receive().payload[16:] == MAC[:2]
