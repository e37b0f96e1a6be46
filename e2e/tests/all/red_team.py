"""What a machine's root sends that it should not: run inside of it, by network_red_team.rs. Each message is a word, by which it is known
where it arrives: the word itself says what was wrong with it. Ends when all of it is sent."""

import fcntl
import ipaddress
import socket
import struct
import sys
import time

GUEST, GATEWAY = "100.127.255.254", "100.127.255.253"
GUEST6, GATEWAY6 = "fd68:6561:7274:6800::2", "fd68:6561:7274:6800::1"
WEB, WEB6 = "203.0.113.10", "2001:db8:2::10"
PORT = 443
FOREIGN_MAC = bytes.fromhex("02deadbeef01")
BROADCAST = b"\xff" * 6

bridge, victim, bridge6, victim6 = sys.argv[1:5]


def own_mac():
    return bytes.fromhex(open("/sys/class/net/eth0/address").read().strip().replace(":", ""))


def gateway_mac():
    """Talks to the gateway, and looks who answered."""
    for _ in range(50):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (GATEWAY, 53))
        for line in open("/proc/net/arp"):
            words = line.split()
            if words[0] == GATEWAY and words[3] != "00:00:00:00:00:00":
                return bytes.fromhex(words[3].replace(":", ""))
        time.sleep(0.1)
    sys.exit("the gateway has no hardware address")


def total(data):
    if len(data) % 2:
        data += b"\0"
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return ~value & 0xFFFF


def packed(address):
    return ipaddress.ip_address(address).packed


def udp(source, target, word, port=PORT):
    head = struct.pack("!HHHH", 40000, port, 8 + len(word), 0)
    pseudo = packed(source) + packed(target) + struct.pack("!IHBB", 8 + len(word), 0, 0, 17)
    return struct.pack("!HHHH", 40000, port, 8 + len(word), total(pseudo + head + word) or 0xFFFF) + word


def ipv4(source, target, payload, protocol=17, options=b""):
    words = 5 + len(options) // 4
    fields = (0x40 | words, 0, words * 4 + len(payload), 7, 0, 64, protocol)
    head = struct.pack("!BBHHHBB", *fields), packed(source) + packed(target) + options
    return head[0] + struct.pack("!H", total(head[0] + b"\0\0" + head[1])) + head[1] + payload


def ipv6(source, target, payload, following=17, limit=64):
    return struct.pack("!IHBB", 6 << 28, len(payload), following, limit) + packed(source) + packed(target) + payload


def icmp6(source, target, kind, rest):
    body = struct.pack("!BBH", kind, 0, 0) + rest
    pseudo = packed(source) + packed(target) + struct.pack("!IHBB", len(body), 0, 0, 58)
    body = struct.pack("!BBH", kind, 0, total(pseudo + body)) + rest
    return ipv6(source, target, body, 58, 255)


def arp(operation, mac, address, target_mac, target):
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + packed(address) + target_mac + packed(target)


OWN, ROUTER = own_mac(), gateway_mac()
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))


def frame(payload, kind=None, target=ROUTER, source=OWN, tag=b""):
    if kind is None:
        kind = 0x86DD if payload[0] >> 4 == 6 else 0x0800
    link.send(target + source + tag + struct.pack("!H", kind) + payload)


def say4(source, word, target=WEB, hardware=ROUTER, card=OWN, tag=b""):
    frame(ipv4(source, target, udp(source, target, word)), target=hardware, source=card, tag=tag)


def say6(source, word, target=WEB6, card=OWN):
    frame(ipv6(source, target, udp(source, target, word)), source=card)


def sources():
    for address in ["203.0.113.77", "198.51.100.1", bridge, victim, GATEWAY, "127.0.0.1", "0.0.0.0", "255.255.255.255", WEB]:
        say4(address, b"source " + address.encode())
    for address in ["2001:db8:9::9", "2001:db8:1::1", bridge6, victim6, GATEWAY6, "::1", "::", "fe80::1", WEB6, "ff02::1"]:
        say6(address, b"source " + address.encode())
    # A packet in pieces is judged as a whole.
    whole = udp("203.0.113.77", WEB, b"source in pieces")
    for offset, more in [(0, 0x2000), (16, 0)]:
        piece = bytearray(ipv4("203.0.113.77", WEB, whole[offset:offset + 16]))
        piece[6:8] = struct.pack("!H", more | offset // 8)
        piece[10:12] = b"\0\0"
        piece[10:12] = struct.pack("!H", total(bytes(piece[:20])))
        frame(bytes(piece))


def routes():
    """Ways around the list of places: by options, tunnels, translated addresses, broadcasts, tags."""
    loose = bytes([131, 7, 4]) + packed("10.9.8.7") + b"\0"
    frame(ipv4(GUEST, WEB, udp(GUEST, WEB, b"route by options"), options=loose))
    inner = ipv4(GUEST, "10.9.8.7", udp(GUEST, "10.9.8.7", b"route in a tunnel"))
    for protocol in [4, 47, 132]:
        frame(ipv4(GUEST, WEB, inner, protocol))
    frame(ipv6(GUEST6, WEB6, ipv6(GUEST6, "fd99::7", udp(GUEST6, "fd99::7", b"route in a tunnel")), 41))
    routing = struct.pack("!BBBBI", 17, 2, 0, 1, 0) + packed("fd99::7")
    frame(ipv6(GUEST6, WEB6, routing + udp(GUEST6, WEB6, b"route by header"), 43))
    for place in ["10.9.8.7", "169.254.169.254", "198.51.100.1", bridge, victim, GATEWAY, "127.0.0.1", "255.255.255.255", "224.0.0.251"]:
        say4(GUEST, b"to " + place.encode(), target=place)
    doors = ["fd99::7", "fd00:ec2::254", "2001:db8:1::1", bridge6, victim6, GATEWAY6, "::1", "ff02::1", "ff05::2"]
    doors += ["::ffff:10.9.8.7", "64:ff9b::10.9.8.7", "2002:a09:807::1", "::10.9.8.7"]
    for place in doors:
        say6(GUEST6, b"to " + place.encode(), target=place)
    tag = struct.pack("!HH", 0x8100, 5)
    say4(GUEST, b"with a tag", tag=tag)
    say4(GUEST, b"to everybody's hardware", target=WEB, hardware=BROADCAST)


def claims():
    """Lies about who is where, and about the way out."""
    for address in [GATEWAY, bridge, victim, WEB]:
        for mac in [OWN, FOREIGN_MAC]:
            frame(arp(2, mac, address, BROADCAST, address), 0x0806, BROADCAST, mac)
            frame(arp(1, mac, address, b"\0" * 6, GATEWAY), 0x0806, BROADCAST, mac)
    for address in [GATEWAY6, bridge6, victim6]:
        option = b"\x02\x01" + FOREIGN_MAC
        frame(icmp6(address, "ff02::1", 136, b"\x20\0\0\0" + packed(address) + option), target=b"\x33\x33\0\0\0\x01")
    # Routers' announcements, with a prefix and a name server; redirections.
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 9000, 9000, 0) + packed("2001:db8:bad::")
    server = struct.pack("!BBHI", 25, 3, 0, 9000) + packed("2001:db8:bad::53")
    said = struct.pack("!BBHII", 64, 0, 9000, 0, 0) + b"\x01\x01" + OWN + prefix + server
    for source in ["fe80::bad", GATEWAY6]:
        frame(icmp6(source, "ff02::1", 134, said), target=b"\x33\x33\0\0\0\x01")
        frame(icmp6(source, GATEWAY6, 137, b"\0" * 4 + packed(GUEST6) + packed(WEB6)))
    quoted = ipv4(GATEWAY, WEB, udp(GATEWAY, WEB, b""))[:28]
    head = struct.pack("!BBH", 5, 1, 0) + packed(GUEST)
    redirect = struct.pack("!BBH", 5, 1, total(head + quoted)) + packed(GUEST) + quoted
    frame(ipv4(GUEST, GATEWAY, redirect, 1))
    # An offer of addresses, as a server of DHCP sends it.
    offer = struct.pack("!BBBBIHH", 2, 1, 6, 0, 1, 0, 0) + b"\0" * 4 + packed("10.0.0.9") + packed(GUEST) + b"\0" * 4
    offer += OWN + b"\0" * 202 + b"\x63\x82\x53\x63" + b"\x35\x01\x02\x03\x04" + packed(GUEST) + b"\xff"
    datagram = struct.pack("!HHHH", 67, 68, 8 + len(offer), 0) + offer
    frame(ipv4(GUEST, "255.255.255.255", datagram), target=BROADCAST)


def honest(word):
    say4(GUEST, b"honest 4 " + word)
    say6(GUEST6, b"honest 6 " + word)


def scan():
    """Prints every port of what is near that takes a connection."""
    import select
    for place in [GATEWAY, bridge, "198.51.100.1", victim, GATEWAY6, bridge6, "2001:db8:1::1", victim6]:
        family = socket.AF_INET6 if ":" in place else socket.AF_INET
        ports = [*range(1, 1025), 1080, 2375, 2376, 3128, 5000, 5432, 6443, 7070, 8080, 9090, 9418, 10250]
        for chunk in [ports[at:at + 400] for at in range(0, len(ports), 400)]:
            waiting = {}
            poll = select.poll()
            for port in chunk:
                one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                if one.connect_ex((place, port)) == 115:
                    waiting[one.fileno()] = (one, port)
                    poll.register(one, select.POLLOUT)
            # What is refused is seldom told: the kernel limits how often. What is open answers at once.
            end = time.time() + 0.7
            while waiting and time.time() < end:
                for number, _ in poll.poll(100):
                    one, port = waiting.pop(number)
                    poll.unregister(number)
                    if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        print("open", place, port)


honest(b"first")
scan()
sources()
routes()
claims()
honest(b"behind lies")
say4(GUEST, b"of another card 4", card=FOREIGN_MAC)
say6(GUEST6, b"of another card 6", card=FOREIGN_MAC)
# What answers went to the other card is put right.
frame(arp(2, OWN, GUEST, ROUTER, GATEWAY), 0x0806)
time.sleep(0.5)
honest(b"last")
