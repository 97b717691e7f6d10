"""Packets below TCP and UDP: who is on the link, what ICMP says, headers and fragments.

`neighbours` remembers guests, which `arp` finds; `icmp` builds errors and echoes; `fragments` cuts
and `reassembly` joins; `template` makes the headers of a flow's frames, and `offload` finishes
frames that their sender left to the card.

May know: slirp.wire, slirp.tcp (for the numbers in a header), slirp.flow. Start reading at
`template`, since every frame to a guest passes through it.
"""
