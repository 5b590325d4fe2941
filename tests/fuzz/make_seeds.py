#!/usr/bin/env python3
"""Makes the seeds the fuzzers start from: make_seeds.py DIRECTORY

One directory a fuzzer. The messages are encoded here by hand, so that a change of the schema that breaks old peers would
show as coverage lost.
"""
import pathlib
import struct
import sys

KIND_INITIAL, KIND_DELTA, KIND_RESCAN = 1, 2, 3
START = 1_700_000_000_000_000


def varint(n):
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def message(*fields):
    """(number, value) pairs: int, bytes or str."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


HASH = bytes(range(16))
DISK_SIZE = message((1, 0), (2, 1 << 30))
OPEN = message((1, 9), (2, KIND_INITIAL), (3, 3), (4, HASH), (5, message((1, 0), (2, 77))))
DISK_INFO = message((1, 0), (2, 1 << 30), (3, "serial"), (4, "vda"))
HELLO = message((1, 1), (2, "0.1.0"), (3, "web1"), (4, b"f" * 32), (5, b"b" * 16), (6, START))
HELLO_PAST = HELLO + message((7, 4), (8, struct.pack("<QQ", 4, 4)))
HELLO_AHEAD = HELLO + message((7, 9), (8, HASH), (9, OPEN))
OPEN_DISK = message((1, "serial"), (2, 1 << 30), (3, "vda"))


def begin(number, kind):
    return message((1, number), (2, kind), (3, DISK_SIZE))


def commit(number):
    return message((1, number), (2, START), (3, 2), (4, 1), (5, HASH))


MESSAGES = {
    1: HELLO_AHEAD,
    2: message((1, 1), (2, "0.1.0"), (3, "web1"), (4, 4), (5, HASH), (6, OPEN), (7, DISK_INFO), (8, 262144), (9, 1 << 20),
               (10, 20), (11, START), (12, 10), (13, 1), (15, "x")),
    3: OPEN_DISK,
    4: message((1, 1), (2, "serial"), (3, 1 << 30)),
    5: begin(1, KIND_INITIAL),
    7: commit(1),
    8: message((1, 1), (2, "why")),
    9: message((1, 4), (2, HASH), (3, OPEN)),
    10: message((1, 4096)),
    11: message((1, 0), (2, 5), (3, 16), (4, 4)),
    12: message((1, 0), (2, 5), (3, b"s" * 64)),
    13: message((1, 4), (2, START)),
    14: message((1, "backlog"), (2, 1), (3, 2), (4, 3), (5, 4), (6, "cause"), (7, "remedy")),
    15: message((1, 50), (2, "the disk is slow")),
    16: message((1, 6), (2, "vda"), (3, "what"), (4, "remedy"), (5, 1000)),
    17: message((1, "bye"), (2, 1000)),
    18: message((1, 7)),
    19: message((1, 7)),
    20: message((1, "-----BEGIN CERTIFICATE REQUEST-----")),
    21: message((1, "-----BEGIN CERTIFICATE-----")),
    22: message((1, 1), (2, b"secret"), (3, "web1"), (4, "csr"), (5, b"f" * 32), (6, "0.1.0")),
    23: message((1, "0123456789abcdef" * 2), (2, "web1"), (3, "cert"), (4, "ca")),
    24: message((1, 1)),
    25: message((1, message((1, 0), (2, 16), (3, 32))), (1, message((2, 4096), (3, 1)))),
    26: "any t\u00e4xt\n\x1b[31m".encode(),
}


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frame(kind, number, payload, disk=0):
    head = struct.pack("<IBBHIIQI", 0x464D4454, kind, 1, 0, len(payload), disk, number, 0)
    return head + struct.pack("<I", crc32c(head)) + payload


def block(granule, granules, encoding, stored):
    return struct.pack("<QQIIIB3xQQ", granule, 1, granules, len(stored), 0, encoding, 0, 0) + stored


def zstd_of_zeroes(size):
    """A frame with one run-length block: magic, single segment with a 4-byte content size, last RLE block."""
    return struct.pack("<IBI", 0xFD2FB528, 0xA0, size) + (size << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"


def items(*pairs):
    return b"".join(struct.pack("<BH", what, len(data)) + data for what, data in pairs)


def seeds():
    frames = b"".join(frame(kind, number, payload) for number, (kind, payload) in enumerate(sorted(MESSAGES.items())) if kind < 25)
    yield "frame_fuzz", "all", b"\x51" + frames
    yield "frame_fuzz", "large", b"\xf1" + frame(6, 0, b"x" * 3000, 3)
    for kind, payload in MESSAGES.items():
        yield "message_fuzz", str(kind), bytes([kind]) + payload
    yield "block_fuzz", "raw", block(0, 1, 0, b"r" * 4096)
    yield "block_fuzz", "zero", block(5, 1000, 2, b"")
    yield "block_fuzz", "zstd", block(0, 16, 1, zstd_of_zeroes(65536)) + block(16, 1, 1, zstd_of_zeroes(4096))
    yield "block_fuzz", "frame", zstd_of_zeroes(65536)
    blocks, fits, busy, free, settle = (32, b"\x03"), (96, b""), (128, b"\x01"), (128, b"\x00"), (160, b"")
    first = [(1, HELLO), (3, OPEN_DISK), (5, begin(1, KIND_INITIAL)), blocks, fits, settle]
    yield "server_session_fuzz", "first", b"\x00" + items(*first)
    yield "server_session_fuzz", "pipelined", b"\x00" + items(
        *first, (5, begin(2, KIND_DELTA)), blocks, fits, (5, begin(3, KIND_DELTA)), busy, blocks, free, blocks, fits, settle, settle)
    yield "server_session_fuzz", "past", b"\x01" + items(
        (1, HELLO_PAST), (5, begin(5, KIND_DELTA)), blocks, (8, message((1, 5), (2, "no"))), (13, message((1, 4), (2, START))),
        (11, MESSAGES[11]), (224, b""), (18, MESSAGES[18]), (14, MESSAGES[14]), (20, MESSAGES[20]), (192, b"\x09"), (208, b"slow"),
        (17, MESSAGES[17]))
    yield "server_session_fuzz", "ahead", b"\x01" + items((1, HELLO_AHEAD), (5, begin(10, KIND_RESCAN)), blocks, fits, settle)
    yield "server_session_fuzz", "resume", b"\x07" + items((1, HELLO_PAST), (5, begin(6, KIND_INITIAL)), blocks, fits, settle)
    yield "server_session_fuzz", "cut", b"\x03" + items(busy, (1, HELLO_PAST), free, (1, HELLO_PAST), (5, begin(7, KIND_DELTA)))
    yield "server_session_fuzz", "wrong", b"\x00" + items(*first[:4], (7, commit(1)))
    welcome, told = (64, b"\x00"), (96, b"\x40")
    wishes = [(128, bytes([n])) for n in (1, 2, 3, 2, 4)]
    yield "agent_session_fuzz", "first", b"\x00" + items(welcome, *wishes, (96, b"\x00"), *wishes, told)
    yield "agent_session_fuzz", "diverged", b"\x05" + items((64, b"\x03"), (128, b"\x21"), (128, b"\x02"), (128, b"\x04"), (96, b"\x00"))
    yield "agent_session_fuzz", "resume", b"\x10" + items((64, b"\x10"), *wishes, (96, b"\x00"))
    yield "agent_session_fuzz", "messages", b"\x00" + items(
        welcome, (128, b"\x00serial-2"), (4, message((1, 1), (2, b"\x00serial-2"), (3, 1))), (128, b"\x08csr"), (21, MESSAGES[21]),
        (10, MESSAGES[10]), (15, MESSAGES[15]), (18, MESSAGES[18]), (19, MESSAGES[19]), (128, b"\x07"), (128, b"\x06"), (16, MESSAGES[16]))


def main():
    root = pathlib.Path(sys.argv[1])
    for fuzzer, name, data in seeds():
        (root / fuzzer).mkdir(parents=True, exist_ok=True)
        (root / fuzzer / name).write_bytes(data)


if __name__ == "__main__":
    main()
