"""NBD by hand: one connection over a unix socket, one request at a time. For what must not wait for a program to start,
and has to know what was answered when the connection broke."""
import socket
import struct

READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1


class NbdError(OSError):
    """The server answered a request with an error, or went away."""


class NbdClient:
    def __init__(self, path, name=""):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(path))
        self._take(18)
        self.sock.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        self.sock.sendall(struct.pack(">QII", 0x49484156454F5054, 1, len(name)) + name.encode())
        self.size = struct.unpack(">QH", self._take(10))[0]

    def _take(self, size):
        data = bytearray()
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise NbdError("the NBD server closed the connection")
            data += more
        return bytes(data)

    def ask(self, command, offset=0, length=0, data=b"", flags=0):
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, 1, offset, length) + data)
        error = struct.unpack(">IIQ", self._take(16))[1]
        if error:
            raise NbdError(error, f"NBD error {error}")

    def read(self, offset, length):
        self.ask(READ, offset, length)
        return self._take(length)

    def write(self, offset, data, flags=0):
        self.ask(WRITE, offset, len(data), data, flags)

    def flush(self):
        self.ask(FLUSH)

    def disconnect(self):
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 1, 0, 0))
        self.sock.close()

    def close(self):
        self.sock.close()
