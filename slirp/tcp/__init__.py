"""One TCP connection as numbers: no sockets, no payload, no clock.

`connection` is the whole that a relay holds, made of parts that know neither each other nor it:
`send` (with `timer`, and `loss` while something is lost), `receive` (with `ahead` for bytes that
came early), `lifecycle` and `timestamps`. `segment` is what goes in and out; `seq` and `rto` are
the arithmetic, `initial` says where numbers begin, `challenge` is an allowance.

May know: slirp.wire. Start reading at `connection.Connection.handle_segment`.
"""
