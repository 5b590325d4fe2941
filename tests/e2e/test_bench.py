#!/usr/bin/env python3
"""tidemark-bench against a real server: every profile, every byte read back; a storm; what it refuses, and Ctrl-C."""
import contextlib
import http.server
import json
import resource
import signal
import socketserver
import struct
import subprocess
import threading
import unittest

from harness import BIN, AdminSocket, Case, main, run, wait_for

TOOL = BIN / "tidemark-bench"


def record(time_us, sector, length, command=0x2A, version=0x100):
    return struct.pack("<IIIHHQQ", 1, length, 1, command, version, sector, time_us)


@unittest.skipUnless(TOOL.exists(), "tidemark-bench is not built")
class Bench(Case):
    def bench(self, command, *options, staging=None, **more):
        staging = staging or self.servers[0]
        return run([TOOL, command, "--server", staging.address, "--socket", staging.data / "admin.sock", "--quiet", "--json", "-",
                    *options], **more)

    def load(self, profile, *options, **more):
        done = self.bench("load", "--profile", profile, "--prefix", profile, "--ramp", 0.2, "--seconds", 1.5, *options, **more)
        self.assertEqual(done.status, 0, done)
        self.assertEqual(done.json["errors"], 0)
        return done.json


class Profiles(Bench):
    def setUp(self):
        super().setUp()
        self.server()

    def verified(self, profile, *options, machines=3):
        report = self.load(profile, "--machines", machines, "--verify", machines, "--disk-size", "64M", *options)
        self.assertEqual(report["verified"]["machines"], machines)
        self.assertGreater(report["verified"]["written_bytes"], 0)
        self.assertGreater(report["ack_samples"] + report["durable_mib_per_s"], 0)
        return report

    def test_bulk_is_read_back_whole(self):
        self.verified("bulk", "--compressible", 0.5, "--zero-share", 0.2)

    def test_random4k_is_read_back_whole(self):
        report = self.verified("random4k", "--blocks-per-epoch", 8, "--interval-ms", 50, "--disks", 2)
        self.assertEqual(report["verified"]["disks"], 2 * report["verified"]["points"])
        self.assertGreater(report["verified"]["points"], report["verified"]["machines"], "no older point was read")

    def test_oltp_is_read_back_whole(self):
        self.verified("oltp", "--zero-share", 0.5, "--compressible", 0.6)

    def test_burst_is_read_back_whole(self):
        # 2,000 blocks of 64 KiB in a burst: far more than a session may have in flight.
        self.verified("burst", "--block-size", 65536, "--blocks-per-epoch", 40, "--interval-ms", 50)

    def test_a_trace_is_read_back_whole(self):
        trace = self.directory / "small.vscsi"
        writes = [record(i * 100_000, (i * 7919) % 60_000, 4096 * (1 + i % 20) - 512 * (i % 3)) for i in range(600)]
        reads = [record(i * 100_000, 8, 4096, command=0x28) for i in range(50)]
        trace.write_bytes(b"".join(writes + reads))
        self.verified("replay", "--trace", trace, "--speed", "flat")
        paced = self.bench("load", "--profile", "replay", "--trace", trace, "--speed", "20x", "--interval-ms", 100, "--machines", 2,
                           "--prefix", "paced", "--seconds", 1, "--verify", 2)
        self.assertEqual(paced.status, 0, paced)

    def test_without_a_trace_a_synthetic_one_is_said_aloud(self):
        done = self.bench("load", "--profile", "replay", "--speed", "flat", "--machines", 2, "--seconds", 1, "--disk-size", "256M", "--verify", 1)
        self.assertEqual(done.status, 0, done)
        self.assertIn("synthetic", done.err)
        self.assertIn("synthetic", done.json["note"])

    def test_idle_machines_stay(self):
        report = self.load("idle", "--machines", 40)
        self.assertEqual((report["connected"], report["epochs_per_s"]), (40, 0))
        self.assertGreater(report["server_bytes_per_session"], 0)

    def test_the_page_holds_the_report(self):
        page = self.directory / "report.html"
        self.load("random4k", "--html", page)
        text = page.read_text()
        held = json.loads(text.split('id="report">')[1].split("</script>")[0])
        self.assertEqual(held["profile"], "random4k")
        self.assertNotIn("http://", text.replace("http://www.w3.org/2000/svg", ""))


class Tampering(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Stands before an admin socket and changes one byte of the first disk's data that passes through."""

    daemon_threads = True

    def __init__(self, path, admin_socket):
        super().__init__(str(path), TamperingHandler)
        self.admin_socket, self.tampered = admin_socket, None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def tamper(self, path, body):
        if self.tampered is None and path.endswith("/data") and len(body) > 5000:
            self.tampered = path
            body[5000] ^= 1
        return body


class TamperingHandler(http.server.BaseHTTPRequestHandler):
    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with contextlib.closing(AdminSocket(self.server.admin_socket)) as connection:
            names = ("Content-Type", "Range")
            connection.request(self.command, self.path, body or None, {n: self.headers[n] for n in names if n in self.headers})
            answer = connection.getresponse()
            content = self.server.tamper(self.path, bytearray(answer.read()))
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Range", "Tidemark-Epoch"):
            if answer.headers[name]:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has seen enough
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = forward

    def address_string(self):
        return "the test"

    def log_message(self, *_):
        pass


class WrongBytes(Bench):
    def test_one_wrong_byte_is_found(self):
        staging = self.server()
        tampering = Tampering(self.directory / "tampering.sock", staging.data / "admin.sock")
        self.addCleanup(tampering.server_close)
        self.addCleanup(tampering.shutdown)
        command = [TOOL, "load", "--server", staging.address, "--socket", self.directory / "tampering.sock", "--quiet", "--json", "-",
                   "--machines", 2, "--disk-size", "16M", "--ramp", 0.1, "--seconds", 1, "--verify", 2]
        done = run([*command, "--profile", "bulk"])
        self.assertIsNotNone(tampering.tampered, "nothing was read back")
        self.assertEqual(done.status, 1, done)
        self.assertRegex(done.json["verified"]["error"], r"bench-\d/disk0 at epoch \d+: byte 5000 is not what was written there")
        # What is told by the server's metrics alone, as of one that runs elsewhere.
        self.assertGreater(done.json["server_cpu_share"], 0)
        self.assertGreater(done.json["server_resident_mib"], 0)
        # With nothing changed any more it goes well: the test found the byte, not the proxy.
        done = run([*command, "--profile", "bulk", "--prefix", "again"])
        self.assertEqual(done.status, 0, done)
        self.assertEqual(done.json["verified"]["machines"], 2)


class KnownMachines(Bench):
    def test_machines_of_a_former_run_are_used_again(self):
        staging = self.server()
        known = self.directory / "machines"
        for machines in (2, 3):
            report = self.load("random4k", "--machines", machines, "--enrolled", known)
            self.assertEqual(report["connected"], machines)
        self.assertEqual(len(staging.ask("machines")["machines"]), 3)
        self.assertEqual(known.stat().st_mode & 0o777, 0o600)
        refused = self.bench("load", "--enrolled", known, "--verify", 1)
        self.assertEqual(refused.status, 1, refused)
        self.assertRegex(refused.err, "former runs")
        known.write_text("no machine\n")
        refused = self.bench("load", "--enrolled", known)
        self.assertEqual(refused.status, 1, refused)
        self.assertRegex(refused.err, "line 1 is no machine")


class Storm(Bench):
    def test_all_come_back_and_the_healthy_stay(self):
        self.server(config="[limits]\nper_source_handshakes = 100000\n")
        done = self.bench("storm", "--machines", 60, "--healthy", 4)
        self.assertEqual(done.status, 0, done)
        resumed, full = done.json["rounds"]
        self.assertEqual((resumed["kind"], resumed["connected"], full["connected"]), ("resumed", 60, 60))
        self.assertEqual((resumed["resumed"], full["resumed"]), (60, 0))
        self.assertEqual(done.json["dropped"], 0)
        self.assertGreater(done.json["healthy_epochs"], 0)


class Capacity(Bench):
    def test_it_says_how_many_machines_are_held(self):
        self.server()
        done = self.bench("find-capacity", "--profile", "random4k", "--machines", 2, "--machines-max", 4, "--interval-ms", 200,
                          "--blocks-per-epoch", 1, "--trial-seconds", 1, "--staleness-ms", 60000)
        self.assertEqual(done.status, 0, done)
        self.assertEqual((done.json["machines_held"], done.json["limit_reached"]), (4, False))
        self.assertEqual([trial["machines"] for trial in done.json["trials"]], [2, 4])


class Refused(Bench):
    def refused(self, words, status, *options, command="load", staging=None, **more):
        done = self.bench(command, *options, staging=staging, **more)
        self.assertEqual(done.status, status, done)
        self.assertRegex(done.err, words)
        self.assertEqual(done.out, "")

    def test_what_cannot_be(self):
        staging = self.server()
        self.refused("whole multiples of 4096", 1, "--block-size", 5000, "--profile", "random4k")
        self.refused("whole multiples of 4096", 1, "--disk-size", 5000)
        self.refused("no rate of its own", 1, "--profile", "bulk", "--interval-ms", 10)
        self.refused("1 to 20000 machines", 1, "--machines", 0)
        self.refused("profile", 2, "--profile", "everything")
        self.refused("no speed", 1, "--profile", "replay", "--speed", "quick")
        self.refused("needs a profile", 1, "--profile", "bulk", command="find-capacity")
        self.refused("never that fresh", 1, "--profile", "oltp", "--interval-ms", 5000, command="find-capacity")
        self.assertEqual(staging.ask("machines")["machines"], [], "something was enrolled before the load was refused")

    def test_traces_that_are_none(self):
        self.server()
        trace = self.directory / "bad.vscsi"
        for content, words in ((b"", "is empty"), (record(1, 8, 4096) * 3 + b"\0" * 13, "cut off within record 3"),
                               (b"this is no trace at all, it is text" * 32, "record 0 is none"),
                               (record(1, 8, 4096) + record(2, 1 << 50, 4096), "record 1 is none"),
                               (record(1, 8, 4096, command=0x28), "no writes")):
            trace.write_bytes(content)
            self.refused(words, 1, "--profile", "replay", "--trace", trace)
        self.refused("cannot be opened", 1, "--profile", "replay", "--trace", self.directory / "none.vscsi")

    def test_servers_that_are_not_there(self):
        staging = self.server()
        nowhere = run([TOOL, "load", "--server", "127.0.0.1:1", "--socket", staging.data / "admin.sock"])
        self.assertEqual(nowhere.status, 1)
        self.assertRegex(nowhere.err, r"127\.0\.0\.1:1: .*refused.*\(")
        no_socket = run([TOOL, "load", "--server", staging.address, "--socket", self.directory / "none.sock"])
        self.assertEqual(no_socket.status, 1)
        self.assertRegex(no_socket.err, "none.sock: there is no admin socket")

    def test_another_servers_certificate(self):
        self.allow("handshake")
        one, other = self.server("one"), self.server("other")
        done = run([TOOL, "load", "--server", other.address, "--socket", one.data / "admin.sock"])
        self.assertEqual(done.status, 1, done)
        self.assertRegex(done.err, "certificate|authority")

    def test_fewer_descriptors_than_machines(self):
        staging = self.server()
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        self.refused("200 machines: .*limit is 256.*ulimit -n", 1, "--machines", 200, preexec_fn=limit)
        self.assertEqual(staging.ask("machines")["machines"], [])


class Stopped(Bench):
    def test_ctrl_c_ends_with_a_report(self):
        staging = self.server()
        tool = subprocess.Popen([TOOL, "load", "--server", staging.address, "--socket", staging.data / "admin.sock", "--quiet", "--json", "-",
                                 "--profile", "random4k", "--machines", "4", "--seconds", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not tool.stderr.readline().startswith("connected "):
            self.assertIsNone(tool.poll(), "the load did not begin")
        wait_for("epochs", lambda: staging.metric("tidemark_epochs_durable_total") > 20)
        tool.send_signal(signal.SIGINT)
        out, err = tool.communicate(timeout=60)
        report = json.loads(out)
        self.assertEqual((tool.returncode, report["interrupted"], report["errors"]), (0, True, 0), err)


if __name__ == "__main__":
    main()
