"""Mappings of others' files that outlive the file: a truncated one becomes zeros, not our end.

Whoever truncates a file that we have mapped (or lets it run out of pages) has the kernel send
SIGBUS at our next access to what is gone. The default is that the process dies, and every machine
on its network with it. `SharedMap` is a mapping for which that is not so: the handler puts fresh
zero pages over the whole of it, at the same address, and returns; the access is made again and
succeeds. The mapping is then `is_lost`, and `faults` has counted on. Whoever uses it looks at these
once in a while and has done with whom it came from.

The handler is Python's, called by ctypes from within the signal. That is sound for a SIGBUS: it
comes from the very access, in code that reads or writes the memory that a view names, with the
interpreter's lock held. System calls that meet such pages fail with EFAULT instead. A SIGBUS
elsewhere than in a `SharedMap` is whoever's it was before: the former handler is put back, and the
access is made again.

Does not do: other systems than Linux, and C libraries whose struct sigaction is not glibc's; there
a `SharedMap` is a plain mapping.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from typing import Any, Final

SIGBUS: Final = 7  # asm-generic/signal.h
SA_SIGINFO: Final = 4
SI_ADDR: Final = 16 if sys.maxsize > 1 << 32 else 12  # offset in siginfo_t
MAP_FIXED: Final = 0x10
_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
_FRESH: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED

_maps: Final[dict[int, tuple[int, weakref.ref[SharedMap]]]] = {}  # by address: bytes, mapping
faults = 0  # mappings that were lost


class SharedMap(mmap.mmap):
    """All of a file. `is_lost`: the file is not what it was, and here are zeros."""

    is_lost: bool = False


def map_file(fd: int, access: int) -> SharedMap:
    """Raises ValueError where the file is empty or none, OSError where it cannot be mapped."""
    mapping = SharedMap(fd, 0, access=access)
    if sys.platform == "linux":
        _install()
        addr = _address_of(mapping)
        _maps[addr] = len(mapping), weakref.ref(mapping)
        weakref.finalize(mapping, _maps.pop, addr, None)
    return mapping


class _Buffer(ctypes.Structure):
    """Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("pointers", ctypes.c_void_p * 4),
    )


class _Sigaction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def _address_of(mapping: SharedMap) -> int:
    view = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), ctypes.byref(view), 0)
    addr = int(view.buf)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return addr


_libc: Final = ctypes.CDLL(None, use_errno=True)
_before: Final = _Sigaction()
_installed: list[Any] = []  # what C holds a pointer to


def _install() -> None:
    """The handler, once in a process."""
    if _installed:
        return
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    handler = kind(_handle)
    _installed.append(handler)
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
    )
    action = _Sigaction(ctypes.cast(handler, ctypes.c_void_p), flags=SA_SIGINFO)
    _libc.sigaction(SIGBUS, ctypes.byref(action), ctypes.byref(_before))


def _handle(_number: int, info: int, _context: int) -> None:
    addr = ctypes.c_void_p.from_address(info + SI_ADDR).value or 0
    for start, (size, mapping) in _maps.items():
        if start <= addr < start + size:
            _replace(start, size, mapping())
            return
    _libc.sigaction(SIGBUS, ctypes.byref(_before), None)


def _replace(start: int, size: int, mapping: SharedMap | None) -> None:
    global faults
    if _libc.mmap(start, size, _READ_WRITE, _FRESH, -1, 0) != start:
        _libc.sigaction(SIGBUS, ctypes.byref(_before), None)
        return
    faults += 1
    if mapping is not None:
        mapping.is_lost = True
