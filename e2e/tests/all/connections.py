"""Services for connections that end in every way. Each line that it prints says how one ended."""
import os
import select
import selectors
import socket
import threading

ADDRESS = os.environ.get("ADDRESS", "127.0.0.1")


def read_all(client):
    total = 0
    try:
        while data := client.recv(65536):
            total += len(data)
        return "end after %d" % total
    except ConnectionResetError:
        return "reset"


def goes_on(client):
    """Sends when its client has ended."""
    how = read_all(client)
    try:
        client.sendall(b"x" * 300_000)
        # Its client may take that and vanish, or never read it.
        print("goes on:", how, flush=True)
    except OSError:
        print("goes on: broken", flush=True)


def ends_first(client):
    """Ends its side, and takes what comes."""
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    print("ends first:", read_all(client), flush=True)


def waits(client):
    """Says nothing until its client has gone altogether."""
    client.sendall(b"in")
    print("waits:", read_all(client), flush=True)
    # The kernel says that both ways are closed, or that it was reset, without being asked.
    gone = select.poll()
    gone.register(client, 0)
    gone.poll()
    print("waits: gone", flush=True)


def resets(client):
    """Vanishes in the middle."""
    client.sendall(b"half")
    client.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def who(client):
    """Tells its client who that is."""
    client.sendall(client.getpeername()[0].encode())


def probed(client):
    print("probed:", read_all(client), flush=True)


def serve(port, act):
    def run(client):
        with client:
            act(client)

    def accept():
        with socket.create_server((ADDRESS, port)) as listener:
            while True:
                threading.Thread(target=run, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


for port, act in ((8, who), (11, goes_on), (12, ends_first), (13, waits), (14, resets), (15, probed)):
    serve(port, act)

# Echoes whatever comes, many at once.
poll = selectors.DefaultSelector()
listener = socket.create_server((ADDRESS, 7), backlog=1024)
poll.register(listener, selectors.EVENT_READ)
print("services ready", flush=True)
while True:
    for key, _ in poll.select():
        if key.fileobj is listener:
            poll.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        client = key.fileobj
        try:
            data = client.recv(65536)
            client.sendall(data)
        except OSError:
            data = b""
        if not data:
            poll.unregister(client)
            client.close()
