"""Wire formats: parse and emit, one file per header, no behaviour.

A header is a NamedTuple with its RFC's picture; `parse(view)` raises MalformedPacket and nothing
else, with a reason out of a small fixed set (they are counter names), and `emit()` gives the
bytes. Addresses are `bytes`: 4 bytes or 16, MAC addresses 6.
"""
