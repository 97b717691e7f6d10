"""One TCP connection as numbers: no sockets, no payload, no clock.

`connection` is the whole that a relay holds; it is made of what is sent (`send`, with `loss` while
something is lost), what is received (`receive`, with `ahead` for octets that came early) and the
life of the connection with its timers (`lifecycle`). `segment` is what goes in and out, `seq` and
`rto` are the arithmetic.

May know: slirp.wire. Start reading at `connection.Connection.handle_segment`.
"""
