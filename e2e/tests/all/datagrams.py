"""Echoes datagrams at port 7, each from the address it was sent to. Some it takes as orders."""
import socket

service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
service.bind(("127.0.0.1", 7))
listener = socket.create_server(("127.0.0.1", 7))
print("echo ready", flush=True)
while True:
    datagram, client = service.recvfrom(65536)
    if datagram == b"who":
        service.sendto(b"%d" % client[1], client)
    elif datagram.startswith(b"burst "):
        for number in range(int(datagram[6:])):
            service.sendto(b"%d " % number + bytes(number % 1400), client)
    elif datagram != b"quiet":
        service.sendto(datagram, client)
