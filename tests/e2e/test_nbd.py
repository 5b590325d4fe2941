#!/usr/bin/env python3
"""Recovery points and clones over NBD, with the programs that people have: libnbd, qemu, fio, nbdkit."""
import contextlib
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import unittest

from harness import BIN, MIB, Case, change, free_port, main, needs_root, run, sha256, wait_for

NEEDED = ("nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio", "nbdkit")
MISSING = [program for program in NEEDED if shutil.which(program) is None]
SIZE = 8 * MIB


class NbdCase(Case):
    config = '[retention]\nremoval_holdoff = "0s"\n'

    def setUp(self):
        super().setUp()
        self.staging = self.server(config=self.config)
        self.web1 = self.agent("web1", disks={"vda.img": SIZE})
        self.web1.sync()
        self.disk = self.web1.disks[0]
        self.point = self.directory / "point.img"  # what the disk was when it was cloned
        shutil.copy(self.disk, self.point)
        self.socket = self.staging.data / "nbd.sock"

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def well(self, *command, **options):
        done = run(command, **options)
        self.assertEqual(done.status, 0, f"{command}: {done}")
        return done.out

    def clone(self, name="check"):
        self.staging.ask("clone", "create", "web1", "--at", "latest", "--name", name)
        return self.uri(f"clone/{name}/vda.img")

    def read(self, uri):
        out = self.directory / "read.img"
        self.well("nbdcopy", uri, out)
        return out.read_bytes()


@unittest.skipIf(MISSING, f"not installed: {MISSING}")
class Points(NbdCase):
    def test_programs_read_a_point_as_it_was(self):
        uri = self.uri("web1/disk0@latest")
        epoch = self.staging.points("web1")[0]["epoch"]
        time = self.staging.points("web1")[0]["time"]
        change(self.disk, 7)
        self.web1.sync()
        old = self.uri(f"web1/vda.img@epoch:{epoch}")
        names = self.well("nbdinfo", "--list", f"nbd+unix:///?socket={self.socket}")
        self.assertIn("web1/vda.img@", names)
        self.assertEqual(int(self.well("nbdinfo", "--size", uri)), SIZE)
        for at, image in ((f"epoch:{epoch}", self.point), (time, self.point), ("latest", self.disk)):
            self.assertEqual(self.read(self.uri(f"web1/0@{at}")), image.read_bytes(), at)
        self.well("qemu-img", "compare", "-f", "raw", "-F", "raw", self.point, old)
        self.assertIn(str(SIZE), self.well("qemu-img", "info", "--output=json", old))
        mapped = sum(part["length"] for part in json.loads(self.well("nbdinfo", "--map", "--json", old)))
        self.assertEqual(mapped, SIZE)
        self.assertIn("zero", self.well("nbdinfo", "--map", old))
        converted = self.directory / "point.qcow2"
        self.well("qemu-img", "convert", "-f", "raw", "-O", "qcow2", old, converted)
        self.well("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.point, converted)
        self.assertNotEqual(run(["qemu-io", "-f", "raw", "-c", "write -P 1 0 4096", old]).status, 0)
        self.assertEqual(self.read(old), self.point.read_bytes())
        self.assertNotEqual(run(["nbdinfo", self.uri("web1/disk9@latest")]).status, 0)
        self.assertNotEqual(run(["nbdinfo", self.uri("web9/disk0@latest")]).status, 0)

    def test_many_clients_and_a_proxy_in_front(self):
        uri = self.uri("web1/vda.img@latest")
        with contextlib.closing(Raw(self.socket)) as client:
            client.go("web1/vda.img@latest")
            client.send(5, 0, MIB)  # cache
            self.assertEqual(client.error(), 0)
            wait_for("it to be there", lambda: self.staging.metric("tidemark_nbd_cache_bytes") > 0)
            content = self.disk.read_bytes()
            for i in range(100):  # where it stands is known now: no worker is needed
                client.send(0, i * 8192, 4096)
                self.assertEqual(client.error(), 0)
                self.assertEqual(client.take(4096), content[i * 8192:i * 8192 + 4096])
        self.assertGreaterEqual(self.staging.metric('tidemark_nbd_reads_total{by="shard"}'), 100)
        copies = [subprocess.Popen(["nbdcopy", uri, self.directory / f"{i}.img"]) for i in range(32)]
        self.assertEqual([copy.wait(90) for copy in copies], [0] * 32)
        digests = {sha256(self.directory / f"{i}.img") for i in range(32)}
        self.assertEqual(digests, {sha256(self.disk)})
        self.well("nbdkit", "-U", "-", "nbd", f"uri={uri}", "--run", f'nbdcopy "$uri" {self.directory}/proxy.img')
        self.assertEqual(sha256(self.directory / "proxy.img"), sha256(self.disk))
        wait_for("all to have left", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
        self.assertEqual(self.staging.metric("tidemark_nbd_memory_bytes"), 0)


@unittest.skipIf(MISSING, f"not installed: {MISSING}")
class Clones(NbdCase):
    def test_what_is_written_is_read_and_the_point_stays(self):
        uri = self.clone()
        expected = bytearray(self.point.read_bytes())
        commands = []
        for pattern, offset, length in ((1, 0, 4096), (2, 512, 512), (3, 70_000, 300_000), (4, SIZE - 1024, 1024),
                                        (5, 3 * MIB - 100, 200)):
            commands += ["-c", f"write -P {pattern} {offset} {length}", "-c", f"read -P {pattern} {offset} {length}"]
            expected[offset:offset + length] = bytes([pattern]) * length
        for offset, length in ((2 * MIB + 512, 1_000_000), (5 * MIB, 65536)):
            commands += ["-c", f"write -z {offset} {length}", "-c", f"read -P 0 {offset} {length}"]
            expected[offset:offset + length] = bytes(length)
        self.well("qemu-io", "-f", "raw", *commands, "-c", "flush", uri)
        self.assertEqual(self.read(uri), bytes(expected))
        self.well("qemu-io", "-f", "raw", "-c", f"discard {6 * MIB} {MIB}", "-c", f"read -P 0 {6 * MIB} {MIB}", uri)
        expected[6 * MIB:7 * MIB] = bytes(MIB)
        self.assertEqual(self.read(uri), bytes(expected))
        self.assertEqual(self.read(self.uri("web1/vda.img@latest")), self.point.read_bytes())
        # A clone of the clone shows the same, and the store agrees with what NBD shows.
        wait_for("all to be in the clone", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
        self.assertEqual(self.export(self.staging, "clone:check"), {"vda.img": hashlib.sha256(expected).hexdigest()})
        new = self.directory / "new.img"
        new.write_bytes(os.urandom(SIZE))
        self.well("nbdcopy", "--flush", new, uri)
        self.assertEqual(self.read(uri), new.read_bytes())

    def test_fio_verifies_what_it_wrote(self):
        uri = self.clone()
        for size in ("512", "4k", "1m"):
            self.well("fio", "--name=v", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", f"--bs={size}", "--size=8m",
                      "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=64", "--io_size=2m",
                      "--randrepeat=1")

    def test_what_was_flushed_survives_a_kill(self):
        uri = self.clone()
        expected = bytearray(self.point.read_bytes())
        for round in range(3):
            flushed = []
            for i in range(20):
                offset = (round * 20 + i) * 100_352 % (SIZE - 65536)
                expected[offset:offset + 8192] = bytes([round * 20 + i + 1]) * 8192
                flushed += ["-c", f"write -P {round * 20 + i + 1} {offset} 8192"]
            self.well("qemu-io", "-f", "raw", *flushed, "-c", "flush", uri)
            with subprocess.Popen(["fio", "--name=k", "--ioengine=nbd", f"--uri={self.clone(f'noise{round}')}", "--rw=randwrite",
                                   "--bs=4k", "--size=4m", "--time_based", "--runtime=60"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as noise:
                wait_for("writes under way", lambda: self.staging.metric('tidemark_nbd_bytes_total{what="written"}') > 0)
                self.staging.kill()
                noise.wait(90)
            self.staging.start()
            self.assertEqual(self.read(uri), bytes(expected))

    def test_a_socket_of_its_own_and_no_drop_while_it_is_used(self):
        self.clone()
        path = self.directory / "check.sock"
        served = self.staging.ask("clone", "serve", "check", "--nbd", f"unix:{path}")
        self.assertIn(str(path), served["uri"])
        self.assertEqual(int(self.well("nbdinfo", "--size", f"nbd+unix:///?socket={path}")), SIZE)
        self.assertEqual(int(self.well("nbdinfo", "--size", f"nbd+unix:///vda.img?socket={path}")), SIZE)
        self.assertNotEqual(run(["nbdinfo", f"nbd+unix:///web1/vda.img@latest?socket={path}"]).status, 0)
        refused = self.staging.cli("clone", "drop", "check")
        self.assertEqual(refused.status, 1)
        self.assert_error(refused.error, f"in use over NBD: socket unix:{path}", "busy")
        self.staging.ask("clone", "unserve", "check")
        self.assertFalse(path.exists())
        with contextlib.closing(Raw(self.socket)) as client:
            client.go("clone/check/vda.img")
            self.assert_error(self.staging.cli("clone", "drop", "check").error, "in use over NBD: uid:", "busy")
        wait_for("it to have left", lambda: self.staging.cli("clone", "drop", "check").status == 0)

    @needs_root
    def test_a_file_system_on_a_clone(self):
        if not os.path.exists("/dev/fuse") or shutil.which("nbdfuse") is None:
            self.skipTest("FUSE or nbdfuse is not there")
        uri = self.clone()
        mount = self.directory / "fuse"
        mount.mkdir()
        fuse = subprocess.Popen(["nbdfuse", mount, uri])
        try:
            wait_for("nbdfuse to serve", (mount / "nbd").exists)
            self.well("mke2fs", "-q", "-t", "ext4", "-F", mount / "nbd")
            self.well("e2fsck", "-fn", mount / "nbd")
        finally:
            run(["umount", mount])
            fuse.wait(30)
        image = self.directory / "fs.img"
        self.well("nbdcopy", uri, image)
        self.well("e2fsck", "-fn", image)


class Raw:
    """NBD by hand."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(path))

    def close(self):
        self.sock.close()

    def take(self, size):
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def option(self, code, data=b""):
        self.sock.sendall(struct.pack(">QII", 0x49484156454F5054, code, len(data)) + data)

    def go(self, name):
        self.take(18)
        self.sock.sendall(struct.pack(">I", 3))
        self.option(7, struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0))
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == 1:
                return
            if kind & 0x80000000:
                raise PermissionError(kind)

    @staticmethod
    def request(command, offset, length, flags=0, cookie=7):
        return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)

    def send(self, command, offset, length, flags=0, data=b""):
        self.sock.sendall(self.request(command, offset, length, flags) + data)

    def error(self):
        return struct.unpack(">IIQ", self.take(16))[1]


class Rough(NbdCase):
    """Clients that do not do as they should harm nobody but themselves."""

    def test_garbage_and_requests_that_cannot_be(self):
        name = "web1/vda.img@latest"
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", bytes(100), os.urandom(4096)):
            with contextlib.closing(Raw(self.socket)) as client:
                client.sock.sendall(garbage)
                with contextlib.suppress(ConnectionResetError):
                    while client.sock.recv(4096):
                        pass
        with contextlib.closing(Raw(self.socket)) as client:
            client.go(name)
            for request, error in (((0, SIZE, 1), 22), ((0, SIZE - 10, 100), 22), ((0, 2**63, 4096), 22), ((1, 0, 0), 1),
                                   ((0, 0, 0, 0x8000), 22), ((99, 0, 0), 22), ((7, 0, 4096), 22), ((4, 0, 4096), 1)):
                client.send(*request)
                self.assertEqual(client.error(), error, request)
            client.send(1, 0, 4096, data=bytes(4096))  # what was refused is read over
            self.assertEqual(client.error(), 1)
            client.send(0, 0, 512)
            self.assertEqual(client.error(), 0)
            self.assertEqual(client.take(512), self.point.read_bytes()[:512])
            client.sock.sendall(bytes(28))  # no request at all
            with self.assertRaises((EOFError, ConnectionResetError)):
                client.take(1)
        with self.assertRaises(PermissionError), contextlib.closing(Raw(self.socket)) as client:
            client.go("clone/nobody/disk0")

    def test_clients_that_die_or_do_not_read_hold_up_nobody(self):
        self.staging.ask("clone", "create", "web1", "--at", "latest", "--name", "check")
        deaf = Raw(self.socket)
        deaf.go("web1/vda.img@latest")
        deaf.sock.sendall(b"".join(Raw.request(0, 0, MIB, cookie=i) for i in range(200)))  # answers that are never taken
        for i in range(20):  # in the midst of a write, of a header
            client = Raw(self.socket)
            client.go("clone/check/vda.img")
            if i % 2:
                client.send(1, 0, MIB, data=bytes(1000))
            else:
                client.sock.sendall(b"\x25\x60\x95")
            client.close()
        with contextlib.closing(Raw(self.socket)) as client:
            client.go("clone/check/vda.img")
            client.send(0, 0, 4096)
            self.assertEqual(client.error(), 0)
            self.assertEqual(client.take(4096), self.point.read_bytes()[:4096])  # half a write was no write
        self.assertLessEqual(self.staging.metric("tidemark_nbd_memory_bytes"), 64 * MIB)
        deaf.close()
        wait_for("all to have left", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
        wait_for("what was being read for them to be given back", lambda: self.staging.metric("tidemark_nbd_memory_bytes") == 0)

    def test_a_server_that_stops_ends_its_clients(self):
        client = Raw(self.socket)
        client.go("web1/vda.img@latest")
        self.assertEqual(self.staging.stop(), 0)
        with self.assertRaises((EOFError, ConnectionResetError)):
            client.take(1)
        client.close()
        self.staging.start()
        with contextlib.closing(Raw(self.socket)) as again:
            again.go("web1/vda.img@latest")


@unittest.skipIf(MISSING, f"not installed: {MISSING}")
class Tcp(NbdCase):
    def setUp(self):
        self.port = free_port()
        self.config = NbdCase.config + f'[nbd]\nlisten = "127.0.0.1:{self.port}"\n'
        super().setUp()

    def test_only_with_a_certificate_for_clients(self):
        self.well(BIN / "tidemarkd", "certificate", "client", "alice", "--out", self.directory / "pki", "--data", self.staging.data)
        name = "web1/vda.img@latest"
        uri = f"nbds://localhost:{self.port}/{name}?tls-certificates={self.directory}/pki"
        self.assertEqual(self.read(uri), self.point.read_bytes())
        self.assert_logged(self.staging, "nbd client served .*client=alice")
        self.well("qemu-img", "compare", "--object", f"tls-creds-x509,id=t,endpoint=client,dir={self.directory}/pki", "--image-opts",
                  f"driver=raw,file.driver=file,file.filename={self.point}",
                  f"driver=nbd,host=localhost,port={self.port},export={name},tls-creds=t")
        self.assertNotEqual(run(["nbdinfo", f"nbd://localhost:{self.port}/{name}"]).status, 0)  # in the clear
        # The certificate of a machine is none of a client.
        machine = self.directory / "machine"
        machine.mkdir()
        shutil.copy(self.directory / "pki/ca-cert.pem", machine)
        state = self.web1.state
        certificate, key = state / "certificate.pem", state / "key.pem"
        shutil.copy(certificate, machine / "client-cert.pem")
        shutil.copy(key, machine / "client-key.pem")
        refused = run(["nbdinfo", f"nbds://localhost:{self.port}/{name}?tls-certificates={machine}"])
        self.assertNotEqual(refused.status, 0)
        # Nor is one of a client that of a machine.
        shutil.copy(self.directory / "pki/client-cert.pem", certificate)
        shutil.copy(self.directory / "pki/client-key.pem", key)
        self.assertNotEqual(self.web1.run("sync", "--once").status, 0)

    def certificate(self, client, directory):
        self.well(BIN / "tidemarkd", "certificate", "client", client, "--out", self.directory / directory, "--data", self.staging.data)

    def opens(self, directory):
        uri = f"nbds://localhost:{self.port}/web1/vda.img@latest?tls-certificates={self.directory}/{directory}"
        return run(["nbdinfo", "--size", uri]).status == 0

    def test_a_revoked_certificate_opens_nothing_and_ends_its_connections(self):
        for client, directory in (("alice", "first"), ("alice", "second"), ("bob", "bob")):
            self.certificate(client, directory)
        known = self.staging.ask("client", "list")["clients"]
        self.assertEqual([(one["client"], one["revoked"]) for one in known], [("alice", False), ("alice", False), ("bob", False)])
        tls = f"tls-creds-x509,id=t,endpoint=client,dir={self.directory}/first"
        image = f"driver=nbd,host=localhost,port={self.port},export=web1/vda.img@latest,tls-creds=t"
        with subprocess.Popen(["qemu-io", "-r", "--object", tls, "--image-opts", image], stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as connected:
            wait_for("alice to be connected", lambda: self.staging.metric("tidemark_nbd_connections") == 1)
            revoked = self.staging.ask("client", "revoke", known[0]["serial"].upper(), "--reason", "lost")["clients"]
            self.assertEqual([one["serial"] for one in revoked], [known[0]["serial"]])
            wait_for("the connection to be ended", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
            connected.communicate(b"q\n")
        self.assertEqual([self.opens(directory) for directory in ("first", "second", "bob")], [False, True, True])
        self.assert_logged(self.staging, "nbd client refused .*client=alice .*it was revoked")
        self.staging.ask("client", "revoke", "alice")  # what is left of hers
        self.certificate("alice", "third")
        self.staging.stop()
        self.staging.start()
        self.assertEqual([self.opens(directory) for directory in ("first", "second", "bob", "third")], [False, False, True, True])
        self.assert_error(self.staging.cli("client", "revoke", "carol").error, "no certificate was issued", "not-found")
        self.assert_error(self.staging.cli("client", "revoke", known[0]["serial"]).error, "revoked already", "already-exists")
        self.assertEqual(self.staging.ask("client", "revoke", "00ff" * 4)["clients"][0]["client"], "")  # known by its serial alone


if __name__ == "__main__":
    main()
