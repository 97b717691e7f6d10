"""What only the kernel can do: namespaces, sandboxes, system calls without a Python name.

`netns` makes and enters namespaces in child processes; `sandbox` gives up what the running network
does not need; `syscalls` are the calls themselves, through ctypes.

May know: slirp.errors, slirp.address, slirp.wire. Start reading at `netns`.
"""
