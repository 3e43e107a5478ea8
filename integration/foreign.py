# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets of the lab's hosts in this process: a socket belongs to the namespace in which it was made, wherever it is used
afterwards. So one thread can play both ends of a connection, step by step."""

import contextlib
import ctypes
import os
import socket
import struct
import time

CLONE_NEWNET = 0x40000000
TCP_FASTOPEN, MSG_FASTOPEN = 23, 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(descriptor):
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def namespace(lab, host):
    """What the calling thread makes in the block, it makes in a host's network namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    theirs = os.open("/run/netns/" + lab.namespace(host), os.O_RDONLY)
    try:
        _enter(theirs)
        yield
    finally:
        _enter(own)
        os.close(own)
        os.close(theirs)


def tcp(lab, host, ip, port=0, source=None):
    """A TCP socket of a host, bound to a port and, with `source`, to an address."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with namespace(lab, host):
        made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if port or source:
        made.bind((source or "", port))
    return made


def listener(lab, host, ip, port):
    """A listening socket of a host, open to TCP Fast Open."""
    made = tcp(lab, host, ip)
    made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
    if ":" in ip:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((ip, port))
    made.listen(64)
    made.settimeout(5)
    return made


def abort(each):
    """Close with a RST: the port is free again at once."""
    if each.fileno() >= 0:
        with contextlib.suppress(OSError):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.close()


def fill(each, seconds=0.3):
    """Send until the peer's window and every buffer are full; the octets taken."""
    each.setblocking(False)
    sent, last = 0, time.monotonic()
    while time.monotonic() - last < seconds:
        try:
            sent += each.send(bytes(65536))
            last = time.monotonic()
        except BlockingIOError:
            time.sleep(0.02)
    return sent


def fate(each, patience=3.0):
    """What an application that only reads learns within `patience` seconds: an errno, "EOF", or None."""
    deadline = time.monotonic() + patience
    each.setblocking(False)
    while time.monotonic() < deadline:
        try:
            if not each.recv(65536):
                return "EOF"
        except BlockingIOError:
            time.sleep(0.005)
        except OSError as error:
            return error.errno
    return None
