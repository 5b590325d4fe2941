"""The protocol, made by hand: frames, protobuf, blocks and TLS with Python's own means. It shares nothing with the code
under test, so it can send what no agent would, and doubles as a check that docs/protocol.md describes the real thing.
"""
import base64
import ctypes
import socket
import ssl
import struct
import subprocess
import threading

ALPN_MACHINE, ALPN_ENROLL = "tidemark/1", "tidemark-enroll/1"
MAGIC, HEADER_SIZE = 0x464D4454, 32
TYPES = {name: number for number, name in enumerate(
    "hello welcome open_disk disk_opened epoch_begin blocks epoch_commit epoch_abort durable credit digest_request "
    "digest_reply unchanged progress throttle error goodbye ping pong renew_request renew_reply enroll_request "
    "enroll_reply epoch_begun resend".split(), start=1)}
NAMES = {number: name for name, number in TYPES.items()}
CODES = ("ok invalid-argument not-found already-exists permission-denied unauthenticated protocol unsupported corrupt io "
         "no-space busy unavailable timed-out cancelled quarantined history-diverged internal").split()
INITIAL, DELTA, RESCAN = 1, 2, 3
FUZZY, CRASH = 1, 2
GRANULE = 4096


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class _Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


_xxhash = ctypes.CDLL("libxxhash.so.0")
_xxhash.XXH3_64bits.restype = ctypes.c_uint64
_xxhash.XXH3_64bits.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_xxhash.XXH3_128bits_withSeed.restype = _Hash128
_xxhash.XXH3_128bits_withSeed.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64)


def xxh3_128(data, seed=0):
    value = _xxhash.XXH3_128bits_withSeed(data, len(data), seed)
    return value.low, value.high


# --- protobuf: varints and length-delimited fields are all that these messages use ---
def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def message(**fields):
    """message(_1=7, _2=b"x", _3=[...]): field numbers with an underscore; a list repeats."""
    out = b""
    for key, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            number = int(key[1:])
            if isinstance(item, int):
                out += varint(number << 3) + varint(item)
            else:
                item = item.encode() if isinstance(item, str) else item
                out += varint(number << 3 | 2) + varint(len(item)) + item
    return out


def fields_of(data):
    """{field number: [values]}"""
    fields, at = {}, 0

    def take():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
    while at < len(data):
        key = take()
        if key & 7 == 0:
            value = take()
        elif key & 7 == 2:
            length = take()
            value, at = data[at:at + length], at + length
        else:
            raise ValueError(f"wire type {key & 7}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def frame(kind, payload=b"", number=0, disk=0, version=1, magic=MAGIC, size=None, flags=0, crc=None):
    kind = TYPES.get(kind, kind)
    header = struct.pack("<IBBHIIQI", magic, kind, version, flags, len(payload) if size is None else size, disk, number, 0)
    return header + struct.pack("<I", crc32c(header) if crc is None else crc) + payload


def block(machine_id, disk, epoch, first_granule, data=None, zero_granules=0):
    """One block as it stands in a blocks frame, and its hash. `data` is whole granules, sent raw."""
    granules = zero_granules or len(data) // GRANULE
    stored = data or b""
    identity = struct.pack("<QQIIIB3x", first_granule, epoch, granules, len(stored), disk, 2 if zero_granules else 0)
    seed_input = bytes.fromhex(machine_id) + identity
    low, high = xxh3_128(stored, _xxhash.XXH3_64bits(seed_input, len(seed_input)))
    return identity + struct.pack("<QQ", low, high) + stored, (low, high)


def add_hashes(hashes):
    return sum(h[0] for h in hashes) & (1 << 64) - 1, sum(h[1] for h in hashes) & (1 << 64) - 1


def epoch_digest(previous, number, cut_time_us, consistency, hashes):
    total = add_hashes(hashes)
    return struct.pack("<QQ", *xxh3_128(struct.pack("<QQQqQQQQ", *previous, number, cut_time_us, consistency, len(hashes), *total)))


class Told:
    """An Error frame."""

    def __init__(self, payload):
        fields = fields_of(payload)
        text = lambda number: fields.get(number, [b""])[0].decode()
        code = fields.get(1, [0])[0]
        self.error = {"code": CODES[code] if code < len(CODES) else str(code), "object": text(2), "what": text(3), "remedy": text(4)}
        self.retry_after_ms = fields.get(5, [0])[0]


def connect(address, certificate=None, key=None, alpn=ALPN_MACHINE, timeout=60):
    """A TLS connection. The server's certificate is not looked at: it is the server that is tested."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([alpn] if alpn else [])
    if certificate:
        context.load_cert_chain(certificate, key)
    host, port = address.rsplit(":", 1)
    plain = socket.create_connection((host, int(port)), timeout)
    return context.wrap_socket(plain)


class Session:
    """A machine's session, spoken by hand."""

    def __init__(self, address, state, machine_id, timeout=60):
        self.machine_id = machine_id
        self.connection = connect(address, state / "certificate.pem", state / "key.pem", timeout=timeout)
        self.sent = self.received = 0
        self.credit = 0

    def close(self):
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def raw(self, data):
        self.connection.sendall(data)

    def send(self, kind, payload=b"", disk=0, number=None, **odd):
        self.raw(frame(kind, payload, self.sent if number is None else number, disk, **odd))
        self.sent += 1

    def _take(self, count):
        data = b""
        while len(data) < count:
            piece = self.connection.recv(count - len(data))
            if not piece:
                raise EOFError(f"the server closed after {len(data)} of {count} bytes")
            data += piece
        return data

    def receive(self):
        header = self._take(HEADER_SIZE)
        magic, kind, version, flags, size, disk, number, _, crc = struct.unpack("<IBBHIIQII", header)
        assert magic == MAGIC and version == 1 and crc == crc32c(header[:28]), header.hex()
        assert number == self.received, f"the server's frame {number} came where {self.received} was due"
        self.received += 1
        return NAMES[kind], self._take(size)

    def expect(self, kind):
        """The next frame of this type; progress, credit and pings in between are passed over."""
        while True:
            got, payload = self.receive()
            if got == kind:
                return payload
            if got == "error":
                raise AssertionError(f"the server ended the session: {Told(payload).error}")
            if got not in ("credit", "durable", "ping", "pong", "throttle", "resend"):
                raise AssertionError(f"{got} came where {kind} was expected")

    def expect_error(self):
        """The Error with which the server ends the session; afterwards the connection must be closed."""
        while True:
            got, payload = self.receive()
            if got == "error":
                try:
                    rest = self.connection.recv(1)
                except (ssl.SSLError, ConnectionError):
                    rest = b""
                assert not rest, "something came after the Error"
                return Told(payload)
            assert got in ("credit", "durable", "ping", "pong", "throttle", "resend", "welcome", "epoch_begun", "disk_opened"), got

    def hello(self, **fields):
        """Sends Hello and returns the fields of Welcome."""
        self.send("hello", self.hello_payload(**fields))
        welcome = fields_of(self.expect("welcome"))
        self.credit = welcome.get(8, [0])[0]
        return welcome

    def hello_payload(self, version=1, fingerprint=b"f" * 32, boot_id=b"b" * 16, clock_us=0, durable=(0, b""), machine_id=None):
        return message(_1=version, _2="0.1.0", _3="raw", _4=fingerprint, _5=boot_id, _6=clock_us or 1_700_000_000_000_000,
                       _7=durable[0], _8=durable[1], _10=self.machine_id if machine_id is None else machine_id)

    def open_disk(self, name, size):
        self.send("open_disk", message(_1=name, _2=size, _3=name))
        return fields_of(self.expect("disk_opened")).get(1, [0])[0]

    def begin(self, number, disks, kind=INITIAL):
        self.send("epoch_begin", message(_1=number, _2=kind, _3=[message(_1=disk, _2=size) for disk, size in disks.items()]))
        self.expect("epoch_begun")

    def commit(self, number, hashes, previous=(0, 0), cut_time_us=1_700_000_000_000_000, consistency=CRASH, blocks=None, digest=None):
        digest = digest or epoch_digest(previous, number, cut_time_us, consistency, hashes)
        self.send("epoch_commit", message(_1=number, _2=cut_time_us, _3=consistency, _4=len(hashes) if blocks is None else blocks, _5=digest))
        return digest

    def durable(self, number):
        """Waits for the acknowledgement of an epoch."""
        while True:
            fields = fields_of(self.expect_one("durable"))
            if fields.get(1, [0])[0] >= number:
                return fields

    def expect_one(self, kind):
        while True:
            got, payload = self.receive()
            if got == kind:
                return payload
            if got == "error":
                raise AssertionError(f"the server ended the session: {Told(payload).error}")


class Redirector:
    """A server that sends every machine elsewhere: it shows the certificate of `authority` (a data directory's), takes
    Hello, and answers with a Welcome that holds a redirect to `target` (HOST:PORT, may be changed)."""

    def __init__(self, authority, target=""):
        self.target, self.hellos = target, 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.set_alpn_protocols([ALPN_MACHINE])
        self.context.load_cert_chain(authority / "server.pem", authority / "server.key")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def _serve(self):
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return  # closed
            try:
                plain.settimeout(10)
                with self.context.wrap_socket(plain, server_side=True) as connection:
                    self._answer(connection)
            except (OSError, EOFError):
                pass  # an agent that left is its own test's business

    def _answer(self, connection):
        session = Session.__new__(Session)
        session.connection, session.sent, session.received = connection, 0, 0
        kind, _ = session.receive()
        assert kind == "hello", kind
        self.hellos += 1
        session.send("welcome", message(_1=1, _2="0.1.0", _14=self.target))
        while connection.recv(4096):
            pass


# --- enrolment and certificates by hand ---
def token_parts(token):
    """(address, SHA-256 of the CA, secret) of a token's text."""
    body = token.split("-", 1)[1]
    data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    length = struct.unpack_from("<I", data)[0]
    return data[4:4 + length].decode(), data[4 + length:36 + length], data[36 + length:68 + length]


def token_text(address, ca_sha256, secret):
    data = struct.pack("<I", len(address)) + address.encode() + ca_sha256 + secret
    data += struct.pack("<I", crc32c(data))
    return "tmk1-" + base64.urlsafe_b64encode(data).decode().rstrip("=")


def openssl(*arguments, cwd=None):
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"openssl {arguments[0]}: {done.stderr}"
    return done.stdout


def make_request(directory, name="machine"):
    """key.pem and request.pem, P-256."""
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", directory / "key.pem", "-out", directory / "request.pem")


def enroll(address, token, directory, name, fingerprint=b"f" * 32, version=1):
    """Enrols a machine by hand; its identity. The state directory then holds key.pem and certificate.pem."""
    directory.mkdir(parents=True, exist_ok=True)
    make_request(directory)
    connection = connect(address, alpn=ALPN_ENROLL)
    session = Session.__new__(Session)
    session.connection, session.sent, session.received, session.machine_id = connection, 0, 0, ""
    session.send("enroll_request", message(_1=version, _2=token_parts(token)[2], _3=name,
                                           _4=(directory / "request.pem").read_text(), _5=fingerprint, _6="0.1.0"))
    kind, payload = session.receive()
    connection.close()
    if kind == "error":
        return Told(payload)
    fields = fields_of(payload)
    (directory / "certificate.pem").write_bytes(fields[3][0])
    (directory / "ca.pem").write_bytes(fields[4][0])
    return fields[1][0].decode()


def make_authority(directory):
    """Another CA: ca.key and ca.pem."""
    directory.mkdir(parents=True, exist_ok=True)
    openssl("req", "-x509", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10",
            "-subj", "/CN=somebody else", "-keyout", directory / "ca.key", "-out", directory / "ca.pem")
    return directory


def sign_machine(authority, directory, machine_id, start="20200101000000Z", end="20400101000000Z"):
    """A machine's certificate over request.pem, by any authority (a directory with ca.key and ca.pem), for any time."""
    (directory / "index.txt").write_text("")
    (directory / "serial").write_text("5A5A\n")
    (directory / "ca.conf").write_text(
        "[ca]\ndefault_ca=x\n[x]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "x509_extensions=e\nunique_subject=no\n[p]\ncommonName=optional\n[e]\nbasicConstraints=critical,CA:FALSE\n"
        f"keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\nsubjectAltName=URI:tidemark:machine:{machine_id}\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
    openssl("ca", "-batch", "-config", "ca.conf", "-keyfile", authority / "ca.key", "-cert", authority / "ca.pem", "-notext",
            "-startdate", start, "-enddate", end, "-in", "request.pem", "-out", "certificate.pem", cwd=directory)
