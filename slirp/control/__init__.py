"""Sockets by which a running network is steered from outside.

`slirp4netns` speaks slirp4netns's JSON requests.

May know: everything below slirp.cli. Start reading at `slirp4netns.ApiSocket`.
"""
