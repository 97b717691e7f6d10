"""Sockets by which a running network is steered from outside.

`clients` holds the connections: requests in, replies out, bounded. `slirp4netns` speaks
slirp4netns's JSON requests.

May know: everything below slirp.cli. Start reading at `slirp4netns.ApiSocket`.
"""
