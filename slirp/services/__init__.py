"""What the network itself answers: DHCP and DNS, as state machines.

Each is given a message and the time and returns what is to be sent; `resolv` says which resolvers
the host uses. Sockets are slirp.host's.

May know: slirp.wire. Start reading at `dhcp.DhcpServer.handle_message`.
"""
