"""Packets below TCP and UDP, with one object per address family.

`family` says what a family is, and `ipv4` is one. `ipv4_input` makes a `packet` of a frame, with
`arp`, `reassembly` and `icmp`; `layer` does with it what is the same for every family, and
`ipv4_nat` decides about its addresses. `link` is what families share: `neighbours` remembers the
guests. `template` makes the headers of a flow's frames, `fragments` cuts what is too long, and
`offload` finishes frames that their sender left to the card.

May know: slirp.wire, slirp.tcp (for the numbers in a header), slirp.flow. Start reading at
`family`.
"""
