# SPDX-License-Identifier: GPL-3.0-or-later
"""The same job in Python, with the NetfilterQueue binding from PyPI: textbook.py QUEUE HOME HOST"""

import socket
import struct
import sys

from netfilterqueue import NetfilterQueue

WORDS = struct.Struct("!HHH")


def octets(text):
    address, port = text.split(":")
    return socket.inet_aton(address) + struct.pack("!H", int(port))


HOME, HOST = octets(sys.argv[2]), octets(sys.argv[3])


def adjusted(checksum, old, new):
    """RFC 1624, equation 3."""
    total = (~checksum & 0xFFFF) + sum(~word & 0xFFFF for word in WORDS.unpack(old)) + sum(WORDS.unpack(new))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def decide(packet):
    data = bytearray(packet.get_payload())
    tcp = (data[0] & 15) * 4
    if data[16:20] + data[tcp + 2:tcp + 4] == HOME:
        address, port, old, new = 16, tcp + 2, HOME, HOST
    elif data[12:16] + data[tcp:tcp + 2] == HOST:
        address, port, old, new = 12, tcp, HOST, HOME
    else:
        packet.accept()
        return
    data[address:address + 4], data[port:port + 2] = new[:4], new[4:]
    for offset, length in ((10, 4), (tcp + 16, 6)):
        value = adjusted(int.from_bytes(data[offset:offset + 2], "big"),
                         old[:length].ljust(6, b"\0"), new[:length].ljust(6, b"\0"))
        data[offset:offset + 2] = value.to_bytes(2, "big")
    packet.set_payload(bytes(data))
    packet.accept()


queue = NetfilterQueue()
queue.bind(int(sys.argv[1]), decide, max_len=4096)
queue.run()
