# Sends datagrams and openings of connections to addresses that mean whoever takes them, by headers put together here: no kernel sends
# such a packet. The last one is honest.
import socket
import struct

PORT = 99


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def segment(number, source, target):
    if number == 17:
        body = b"hello"
        head = struct.pack("!4H", 40000, PORT, 8 + len(body), 0)
    else:
        body = b""
        head = struct.pack("!2H2I2B3H", 40000, PORT, 1, 0, 0x50, 2, 65000, 0, 0)
    pseudo = source + target + struct.pack("!2I", len(head + body), number)
    at = 6 if number == 17 else 16
    return head[:at] + struct.pack("!H", checksum(pseudo + head + body)) + head[at + 2 :] + body


def packet(number, source, target):
    payload = segment(number, source, target)
    if len(target) == 16:
        return struct.pack("!IHBB", 0x60000000, len(payload), number, 64) + source + target + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, number, 0) + source + target
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def gateway():
    with open("/proc/net/arp") as table:
        for line in table:
            words = line.split()
            if words[0] == "100.127.255.253":
                return bytes.fromhex(words[3].replace(":", ""))
    raise SystemExit("the gateway has no address")


# So that it is known.
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("100.127.255.253", 53))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
own = wire.getsockname()[4]
for _ in range(50):
    try:
        gate = gateway()
        if gate != bytes(6):
            break
    except SystemExit:
        pass
    __import__("time").sleep(0.1)
SOURCE = {4: socket.inet_aton("100.127.255.254"), 16: socket.inet_pton(socket.AF_INET6, "fd68:6561:7274:6800::2")}
V4 = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "0.0.0.1", "198.51.100.1", "198.51.100.255", "255.255.255.255", "100.127.255.249"]
V6 = [
    "::1",
    "::",
    "::127.0.0.1",
    "::198.51.100.1",
    "::ffff:127.0.0.1",
    "::ffff:0.0.0.0",
    "::ffff:198.51.100.1",
    "2001:db8:1::1",
    "2001:db8:1::",
    "fd68:6561:7274:6801::1",
    "ff02::1",
    "ff01::1",
]
for number in (17, 6):
    for text in V4 + V6:
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        target = socket.inet_pton(family, text)
        kind = 0x86DD if len(target) == 16 else 0x0800
        wire.send(gate + own + struct.pack("!H", kind) + packet(number, SOURCE[len(target)], target))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"honest", ("203.0.113.10", PORT))
