"""A proxy on loopback between a job and a server, which can throttle, cut and refuse."""

import contextlib
import socket
import threading


class Proxy:
    """Passes connections on to a port, one request each; `treat` decides what becomes of each.

    Args:
        port: of the server.
        treat: called with the number of each request; returns "pass", "cut" (the connection is
            closed in the middle of the answer), or "throttle" (503 SlowDown).
    """

    def __init__(self, port, treat=lambda number: "pass"):
        self._target, self._treat = ("127.0.0.1", port), treat
        self.requests, self._mutex, self._threads = 0, threading.Lock(), []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in [self._accepting, *self._threads]:
            thread.join()

    def _accept(self):
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            request = _message(connection)
            with self._mutex:
                number, self.requests = self.requests, self.requests + 1
            treatment = self._treat(number)
            if treatment == "throttle":
                body = b"<Error><Code>SlowDown</Code></Error>"
                head = "HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                connection.sendall((head % len(body)).encode() + body)
                return
            with socket.create_connection(self._target, timeout=30) as server:
                head, _, rest = request.partition(b"\r\n")
                server.sendall(head + b"\r\nConnection: close\r\n" + rest)
                while data := server.recv(65536):
                    if treatment == "cut":  # the server has done what was asked
                        connection.sendall(data[: len(data) // 2])
                        return
                    connection.sendall(data)


def _message(connection):
    """Read one request: its head, and a body of the length that the head names."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = (line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    lengths = [int(value) for name, value in lines if name == b"content-length"]
    while len(body) < (lengths or [0])[0]:
        body += _some(connection)
    kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join(kept) + b"\r\n\r\n" + body


def _some(connection):
    data = connection.recv(65536)
    if not data:
        raise OSError("closed")
    return data
