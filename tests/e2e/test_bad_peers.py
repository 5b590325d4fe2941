#!/usr/bin/env python3
"""Bad input from the network, and what it gets: tokens, certificates, clones, versions, frames, slow senders.

Each case: one clear error to the one who caused it, a line in the server's log, a metric that counts it; the session of
another machine goes on all the while, and nothing is lost.
"""
import contextlib
import re
import shutil
import socket
import ssl
import struct
import time

import rawwire
from harness import KIB, MIB, Case, change, main, wait_for

BROKEN = r"session broke the protocol machine=\w+ peer=\S+ code=protocol "


class Peers(Case):
    """A server, and a bystander whose session must not be disturbed by anything that happens here."""

    def setUp(self):
        super().setUp()
        # A credit that one frame can exceed: with a larger one it would depend on how fast the disk returns it.
        self.staging = self.server(config='[limits]\nsession_credit = "256KiB"\n')
        self.bystander = self.agent("bystander", disks={"vda.img": 1 * MIB})
        self.bystander.set_option("interval_s = 0.2")
        self.bystander.start()
        wait_for("the bystander's first point", lambda: self.staging.points("bystander"))
        self.raw_count = 0

    def tearDown(self):
        change(self.bystander.disks[0], 99)
        self.goes_on(self.bystander.digests())
        self.assertTrue(self.staging.ask("health")["ok"])

    def goes_on(self, digests):
        """The bystander makes a point of what its disk holds, in the session that it has had from the beginning."""
        wait_for("the bystander's next point", lambda: self.export(self.staging, "bystander") == digests)
        self.assertEqual(len(re.findall("connected server=", self.bystander.log())), 1, self.bystander.log())

    def refused(self, reason, line, by=1):
        """Not let in: counted under this reason and logged."""
        return self.tells(self.staging, rf'^tidemark_refused_total\{{reason="{reason}"\}}', line, by)

    def errors(self, code, line, by=1):
        """Sessions that the server ended with this code: counted and logged."""
        return self.tells(self.staging, rf'^tidemark_session_errors_total\{{code="{code}"\}}', line, by)

    def raw_machine(self, name=None, **options):
        """A machine enrolled by hand: (state directory, id)."""
        self.raw_count += 1
        name = name or f"raw{self.raw_count}"
        state = self.directory / f"state-{name}"
        machine_id = rawwire.enroll(self.staging.address, self.staging.token(), state, name, **options)
        self.assertIsInstance(machine_id, str, getattr(machine_id, "error", None))
        return state, machine_id

    def session(self, state, machine_id):
        session = rawwire.Session(self.staging.address, state, machine_id)
        self.addCleanup(session.close)
        return session


class Tokens(Peers):
    def token_refused(self, token, what, code, name="web1"):
        agent = self.agent(name, enroll=False)
        agent.state = self.directory / f"state-{len(self.agents)}"
        with self.refused("token", f"enrolment ended peer=.*code={code} .*{what}"):
            done = agent.run("enroll", self.staging.address, "--token", token, "--name", name)
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, what, code)
        self.assertTrue(done.error["remedy"], done)
        self.assertFalse((agent.state / "certificate.pem").exists(), "a certificate was given out")

    def test_a_token_this_server_never_made(self):
        address, ca, _ = rawwire.token_parts(self.staging.token())
        self.token_refused(rawwire.token_text(address, ca, b"s" * 32), "this server does not know it", "unauthenticated")

    def test_a_mistyped_or_cut_token_is_recognised_without_asking(self):
        token = self.staging.token()
        agent = self.agent("web1", enroll=False)
        for wrong, what in ((token[:-5], "cut short|mistyped"), (token[:20] + ("A" if token[20] != "A" else "B") + token[21:], "mistyped"),
                            ("hunter2", "not a Tidemark token"), ("", "empty|token")):
            done = agent.run("enroll", self.staging.address, "--token", wrong, "--name", "web1")
            self.assertIn(done.status, (1, 2), done)
            self.assertRegex(done.err, what)
        agent.enroll(token)  # it was not spent by that

    def test_a_used_token(self):
        token = self.staging.token()
        self.agent("first", enroll=False).enroll(token)
        self.token_refused(token, "token was already used", "already-exists")

    def test_an_expired_token(self):
        made = self.staging.ask("token", "create", "--ttl", "1s")
        wait_for("the token to expire", lambda: time.time() > self.staging_time(made["expires"]) + 0.1)
        self.token_refused(made["token"], "it expired at", "unauthenticated")

    @staticmethod
    def staging_time(text):
        import datetime
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

    def test_a_token_made_for_another_machine(self):
        token = self.staging.token("--machine", "bystander")
        self.token_refused(token, "it was made for the machine bystander, not for web1", "permission-denied")

    def test_a_name_that_is_taken_needs_a_token_made_for_it(self):
        agent = self.agent("again", enroll=False)
        with self.refused("token", "enrolment ended .*code=already-exists .*bystander"):
            done = agent.run("enroll", self.staging.address, "--token", self.staging.token(), "--name", "bystander")
        self.assertEqual(done.status, 1)
        self.assert_error(done.error, "bystander", "already-exists")

    def test_a_token_of_another_server(self):
        other = self.server("other")
        agent = self.agent("web1", enroll=False)
        with self.refused("handshake_failed", "handshake failed .*issued by an authority it does not know"):
            done = agent.run("enroll", self.staging.address, "--token", other.token(), "--name", "web1")
        self.assertEqual(done.status, 1)
        self.assert_error(done.error, "authority|not the server", "unauthenticated")


class Certificates(Peers):
    def handshake_refused(self, certificate, key, line):
        with self.refused("handshake_failed", f"handshake failed .*code=unauthenticated .*{line}"), self.assertRaises((ssl.SSLError, ConnectionError, EOFError)) as caught:
            connection = rawwire.connect(self.staging.address, certificate, key)
            self.addCleanup(connection.close)
            connection.sendall(rawwire.frame("hello"))
            if not connection.recv(1):
                raise EOFError("closed without a word")
        return str(caught.exception)

    def test_a_certificate_of_another_authority(self):
        state, machine_id = self.raw_machine()
        rawwire.sign_machine(rawwire.make_authority(self.directory / "other-ca"), state, machine_id)
        said = self.handshake_refused(state / "certificate.pem", state / "key.pem", "its certificate was issued by an unknown authority")
        self.assertRegex(said, "(?i)unknown.ca")

    def test_an_expired_certificate(self):
        state, machine_id = self.raw_machine()
        rawwire.sign_machine(self.staging.data / "authority", state, machine_id, "20200101000000Z", "20200201000000Z")
        said = self.handshake_refused(state / "certificate.pem", state / "key.pem", "its certificate has expired")
        self.assertRegex(said, "(?i)expired")

    def test_the_agent_says_that_its_certificate_expired_and_what_to_do(self):
        web1 = self.agent("web1", disks={"vda.img": MIB})
        machine_id = web1.id
        work = self.directory / "work"
        work.mkdir()
        shutil.copy(web1.state / "key.pem", work)
        rawwire.openssl("req", "-new", "-key", work / "key.pem", "-subj", "/CN=web1", "-out", work / "request.pem")
        rawwire.sign_machine(self.staging.data / "authority", work, machine_id, "20200101000000Z", "20200201000000Z")
        shutil.copy(work / "certificate.pem", web1.state / "certificate.pem")
        with self.refused("handshake_failed", "handshake failed .*its certificate has expired", by=None):
            done = web1.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "refuses our certificate: it has expired .*token create --machine", "unauthenticated")
        web1.enroll(self.staging.token("--machine", "web1"), "--replace").sync()  # what the remedy says
        self.assertEqual(web1.id, machine_id)

    def test_no_certificate(self):
        said = b""
        with self.refused("no_certificate", "connection refused .*code=unauthenticated .*no machine certificate was shown"):
            connection = rawwire.connect(self.staging.address)
            self.addCleanup(connection.close)
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                while piece := connection.recv(65536):
                    said += piece
        self.assertTrue(said, "no Error frame came")
        self.assertEqual(rawwire.NAMES[said[4]], "error")
        self.assert_error(rawwire.Told(said[32:32 + struct.unpack_from("<I", said, 8)[0]]).error, "no machine certificate was shown .*enrol", "unauthenticated")

    def test_a_revoked_machine(self):
        web1 = self.agent("web1", disks={"vda.img": MIB})
        web1.sync()
        self.staging.ask("machine", "revoke", "web1")
        with self.refused("revoked", "session refused .*code=permission-denied .*revoked"):
            done = web1.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "revoked.*token create --machine web1", "permission-denied")
        self.assertEqual(self.export(self.staging, "web1"), web1.digests(), "its points stay")
        web1.enroll(self.staging.token("--machine", "web1"), "--replace")
        self.assertTrue(web1.sync()["point"], "what the remedy says lets it back in")

    def test_revoking_ends_a_running_session(self):
        state, machine_id = self.raw_machine("raw")
        session = self.session(state, machine_id)
        session.hello()
        with self.errors("permission-denied", "session ended .*code=permission-denied .*revoked"):
            self.staging.ask("machine", "revoke", "raw")
            self.assert_error(session.expect_error().error, "revoked.*enrol it again", "permission-denied")
            session.close()

    def test_a_state_that_goes_with_another_certificate(self):
        state, machine_id = self.raw_machine()
        _, other_id = self.raw_machine()
        session = self.session(state, other_id)
        with self.errors("permission-denied", "session refused .*code=permission-denied .*another certificate"):
            session.send("hello", session.hello_payload())
            self.assert_error(session.expect_error().error, "another certificate.*state directory", "permission-denied")
            session.close()


class Clones(Peers):
    def test_a_clone_is_quarantined_until_an_admin_decides(self):
        web1 = self.agent("web1", disks={"vda.img": 2 * MIB})
        web1.sync()
        before = web1.digests()
        clone = self.agent("clone", enroll=False)
        shutil.copytree(web1.state, clone.root / "state")
        clone.set_option('fingerprint_override = "somewhere else"')
        clone.disks = web1.disks
        self.allow("machine quarantined machine=web1 ")
        with self.refused("quarantined", "machine quarantined machine=web1 .*a machine with another fingerprint"):
            done = clone.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "its fingerprint changed.*machine accept web1", "quarantined")
        self.assertEqual(self.staging.metric("^tidemark_machines_quarantined"), 1)
        self.assertTrue(self.staging.machine("web1")["quarantine"])
        self.assertEqual(self.export(self.staging, "web1"), before, "the original's history is untouched")
        change(web1.disks[0], 3)
        self.assertTrue(web1.sync()["point"], "the original goes on")
        self.staging.ask("machine", "keep", "web1")
        self.assertFalse(self.staging.machine("web1")["quarantine"])
        # The other decision: the newcomer took the machine's place.
        self.assertEqual(clone.run("sync", "--once", "--retry-for", "1").error.get("code"), "quarantined")
        self.staging.ask("machine", "accept", "web1")
        shutil.copy(web1.state / "memory", clone.state / "memory")
        self.assertEqual(clone.run("sync", "--once").status, 0)
        self.assertEqual(web1.run("sync", "--once", "--retry-for", "1").error.get("code"), "quarantined", "now the old one is the clone")

    def test_two_sessions_with_one_certificate(self):
        state, machine_id = self.raw_machine()
        first = self.session(state, machine_id)
        first.hello()
        second = self.session(state, machine_id)
        with self.refused("second_session", "session refused .*code=already-exists .*has a session already"):
            second.send("hello", second.hello_payload(boot_id=b"c" * 16))
            self.assert_error(second.expect_error().error, "session already, from .*if this is a clone, enrol it", "already-exists")
            second.close()
        disk = first.open_disk("vda", MIB)  # the first one goes on
        self.assertEqual(disk, 0)


class Frames(Peers):
    """Each ends its session with one Error; whatever was durable is still there, and the machine can come back."""

    def setUp(self):
        super().setUp()
        self.allow(BROKEN)
        self.state, self.machine_id = self.raw_machine("raw")
        self.committed = []
        self.ended = {}  # by code, as the server must have counted them

    def open_session(self):
        session = self.session(self.state, self.machine_id)
        durable = self.committed[-1] if self.committed else (0, b"")
        self.welcome = session.hello(durable=durable)
        self.next_epoch = self.welcome.get(12, [1])[0]
        return session

    def in_epoch(self):
        session = self.open_session()
        disk = session.open_disk("vda", MIB)
        session.begin(self.next_epoch, {disk: MIB}, rawwire.DELTA if self.committed else rawwire.INITIAL)
        return session, disk, self.next_epoch

    def commit_one(self):
        """A good epoch, so that there is something to lose."""
        session, disk, number = self.in_epoch()
        data = bytes([number % 251]) * 8192
        payload, digest = rawwire.block(self.machine_id, disk, number, 4, data)
        session.send("blocks", payload, disk)
        previous = struct.unpack("<QQ", self.committed[-1][1]) if self.committed else (0, 0)
        committed = session.commit(number, [digest], previous)
        session.durable(number)
        self.committed.append((number, committed))
        session.send("goodbye", rawwire.message(_1="done"))
        session.close()
        return number

    def ends_with(self, session, what, code="protocol"):
        error = session.expect_error().error
        session.close()  # else the server waits a moment for our end of the shutdown
        self.assert_error(error, what, code)
        self.ended[code] = self.ended.get(code, 0) + 1
        counted = self.staging.metric(rf'^tidemark_session_errors_total\{{code="{code}"\}}')
        self.assertEqual(counted, self.ended[code], f"ended sessions counted with the code {code}")
        line = rf"session (broke the protocol|ended|refused) machine={self.machine_id} peer=\S+ code={code} .*({what})"
        logged = lambda: len(re.findall(rf"session (?:broke the protocol|ended|refused) machine={self.machine_id} peer=\S+ code={code} ", self.staging.log()))
        wait_for("a log line for each", lambda: logged() >= self.ended[code])
        self.assertEqual(logged(), self.ended[code], "one log line for each")
        self.assertRegex(self.staging.log(), line)
        return error

    def check_nothing_lost(self):
        session = self.open_session()
        durable = self.committed[-1] if self.committed else (0, b"")
        self.assertEqual((self.welcome.get(4, [0])[0], self.welcome.get(5, [b""])[0]), durable)
        session.close()
        self.assertEqual([point["epoch"] for point in self.staging.points("raw")], [number for number, _ in reversed(self.committed)])

    def test_a_good_session_by_hand(self):
        first = self.commit_one()
        self.check_nothing_lost()
        out = self.directory / "raw.img"
        self.staging.ask("export", "raw", "--at", f"epoch:{first}", "--output", out)
        content = out.read_bytes()
        self.assertEqual(content[16384:16384 + 8192], bytes([first]) * 8192)
        self.assertEqual(content.count(0), MIB - 8192)

    def test_a_protocol_version_of_the_future(self):
        session = self.session(self.state, self.machine_id)
        session.send("hello", session.hello_payload(version=9))
        self.ends_with(session, "version 9", "unsupported")
        session = self.session(self.state, self.machine_id)
        session.send("hello", session.hello_payload(), version=9)
        self.ends_with(session, "version 9", "unsupported")

    def test_frames_that_are_none(self):
        self.commit_one()
        hello = rawwire.Session.hello_payload
        for odd, what in (({"magic": 0x12345678}, "do not begin a frame"), ({"crc": 1}, "checksum"), ({"flags": 1}, "reserved"),
                          ({"size": 65537}, "limit"), ({"size": 0xFFFFFFFF}, "limit"), ({"disk": 3}, "names a disk")):
            with self.subTest(**odd):
                session = self.session(self.state, self.machine_id)
                session.raw(rawwire.frame("hello", hello(session), **odd))
                self.ends_with(session, what)
        session = self.open_session()
        session.send(99)
        self.ends_with(session, "type 99")
        self.check_nothing_lost()

    def test_frames_out_of_order_or_twice(self):
        self.commit_one()
        for number in (0, 2, 7, 2**64 - 1):
            with self.subTest(number=number):
                session = self.open_session()
                session.send("ping", rawwire.message(_1=5), number=number)
                self.ends_with(session, "lost, repeated or reordered")
        session = self.open_session()
        session.send("hello", session.hello_payload())
        self.ends_with(session, "twice")
        session = self.session(self.state, self.machine_id)
        session.send("ping", rawwire.message(_1=5))
        self.ends_with(session, "before Hello|Hello")
        session = self.open_session()
        session.send("welcome", b"")
        self.ends_with(session, "does not send")
        self.check_nothing_lost()

    def test_a_replayed_blocks_frame(self):
        self.commit_one()
        session, disk, number = self.in_epoch()
        payload, _ = rawwire.block(self.machine_id, disk, number, 0, b"r" * 4096)
        whole = rawwire.frame("blocks", payload, session.sent, disk)
        session.raw(whole)
        session.raw(whole)
        self.ends_with(session, "repeated")
        self.check_nothing_lost()

    def test_a_bit_flipped_anywhere_in_a_block(self):
        self.commit_one()
        for bit in (0, 8 * 8, 8 * 16, 8 * 28, 8 * 32 + 5, 8 * 48 + 77):
            with self.subTest(bit=bit):
                session, disk, number = self.in_epoch()
                payload, _ = rawwire.block(self.machine_id, disk, number, 8, b"x" * 4096)
                damaged = bytearray(payload)
                damaged[bit // 8] ^= 1 << bit % 8
                session.send("blocks", bytes(damaged), disk)
                self.ends_with(session, "block at byte|hash|disk|epoch|encoding")
        self.check_nothing_lost()

    def test_blocks_of_another_machine_disk_or_place(self):
        self.commit_one()
        other = "ab" * 16

        def sends(make, what, frame_disk=None):
            session, disk, number = self.in_epoch()
            payload, _ = make(disk, number)
            session.send("blocks", payload, disk if frame_disk is None else frame_disk)
            self.ends_with(session, what)
        sends(lambda disk, number: rawwire.block(other, disk, number, 0, b"x" * 4096), "hash")
        sends(lambda disk, number: rawwire.block(self.machine_id, disk + 1, number, 0, b"x" * 4096), "belongs to disk")
        sends(lambda disk, number: rawwire.block(self.machine_id, disk, number + 1, 0, b"x" * 4096), "belongs to epoch")
        sends(lambda disk, number: rawwire.block(self.machine_id, disk, number, MIB // 4096, b"x" * 4096), "beyond")
        sends(lambda disk, number: rawwire.block(self.machine_id, 17, number, 0, b"x" * 4096), "not part of the open epoch", 17)
        sends(lambda disk, number: (rawwire.block(self.machine_id, disk, number, 0, b"x" * 4096)[0][:-1], None), "ends within")
        sends(lambda disk, number: (b"", None), "empty")
        self.check_nothing_lost()

    def test_a_disk_of_another_machine(self):
        self.commit_one()
        session = self.open_session()
        session.send("epoch_begin", rawwire.message(_1=self.next_epoch, _2=rawwire.DELTA, _3=rawwire.message(_1=5, _2=MIB)))
        self.ends_with(session, "disk 5 was never opened")
        session = self.open_session()
        session.send("digest_request", rawwire.message(_1=5, _2=0, _3=1, _4=1))
        self.ends_with(session, "disk 5.*never opened")
        self.check_nothing_lost()

    def test_blocks_beyond_the_credit(self):
        self.commit_one()
        session, disk, number = self.in_epoch()
        self.assertEqual(session.credit, 256 * KIB)
        blocks = [rawwire.block(self.machine_id, disk, number, at, b"c" * 65536)[0] for at in (0, 16, 32, 48)]
        session.send("blocks", b"".join(blocks), disk)
        self.ends_with(session, "credit")
        self.check_nothing_lost()

    def test_commits_that_cannot_be(self):
        self.commit_one()
        session = self.open_session()
        session.commit(self.next_epoch, [])
        self.ends_with(session, "never begun")

        session, disk, number = self.in_epoch()
        session.commit(number + 1, [])
        self.ends_with(session, "never begun")

        session, disk, number = self.in_epoch()
        payload, digest = rawwire.block(self.machine_id, disk, number, 0, b"d" * 4096)
        session.send("blocks", payload, disk)
        session.commit(number, [digest], previous=(1, 2))
        self.ends_with(session, "digests differ")

        session, disk, number = self.in_epoch()
        session.commit(number, [], struct.unpack("<QQ", self.committed[-1][1]), blocks=3)
        self.ends_with(session, "3 blocks")
        self.check_nothing_lost()
        self.commit_one()
        self.check_nothing_lost()

    def test_epochs_that_cannot_be(self):
        self.commit_one()
        session = self.open_session()
        disk = session.open_disk("vda", MIB)
        session.send("epoch_begin", rawwire.message(_1=self.committed[-1][0], _2=rawwire.DELTA, _3=rawwire.message(_1=disk, _2=MIB)))
        self.ends_with(session, "lowest number")
        session, disk, number = self.in_epoch()
        session.send("epoch_begin", rawwire.message(_1=number + 1, _2=rawwire.DELTA, _3=rawwire.message(_1=disk, _2=MIB)))
        self.ends_with(session, "still open")
        session = self.open_session()
        session.send("blocks", rawwire.block(self.machine_id, 0, 5, 0, b"x" * 4096)[0])
        self.ends_with(session, "no epoch is open")
        self.check_nothing_lost()

    def test_messages_that_are_none(self):
        self.commit_one()
        for kind, payload in (("epoch_begin", b"\xff" * 40), ("open_disk", rawwire.message(_1="x", _2=0, _3="x")),
                              ("epoch_commit", b""), ("unchanged", b"\x08"), ("open_disk", rawwire.message(_1="x", _2=2**60, _3="x"))):
            with self.subTest(kind=kind, payload=payload[:8].hex()):
                session = self.open_session()
                session.send(kind, payload)
                self.ends_with(session, ".")
        session = self.session(self.state, self.machine_id)
        session.send("hello", b"\x0a\xff\xff\xff\xff\x0f")
        self.ends_with(session, "Hello|malformed")
        self.check_nothing_lost()

    def test_an_agent_that_knows_more_than_the_server_is_an_alarm(self):
        self.commit_one()
        self.allow(f"history diverged machine={self.machine_id} ")
        with self.tells(self.staging, "^tidemark_history_diverged_total", f"history diverged machine={self.machine_id} .*code=history-diverged"):
            session = self.session(self.state, self.machine_id)
            welcome = session.hello(durable=(self.committed[-1][0] + 5, b"z" * 16))
        self.assertEqual(welcome[4][0], self.committed[-1][0], "the server says what it has")
        disk = session.open_disk("vda", MIB)
        session.send("epoch_begin", rawwire.message(_1=welcome[12][0], _2=rawwire.DELTA, _3=rawwire.message(_1=disk, _2=MIB)))
        self.ends_with(session, "no common base", "history-diverged")
        self.check_nothing_lost()

    def test_a_connection_cut_at_any_place_loses_nothing(self):
        self.commit_one()
        for cut in (1, 31, 32, 33, 2000, 4096 + 48 + 31):
            session, disk, number = self.in_epoch()
            payload, _ = rawwire.block(self.machine_id, disk, number, 0, b"t" * 4096)
            session.raw(rawwire.frame("blocks", payload, session.sent, disk)[:cut])
            session.connection.unwrap = None
            session.close()
        self.check_nothing_lost()


class SlowSenders(Peers):
    def test_slow_senders_are_sent_away_and_hold_nobody_up(self):
        """Who never says Hello (10 s), who never ends a frame (30 s), who never ends the TLS handshake (10 s)."""
        state, machine_id = self.raw_machine()
        dripping_state, dripping_id = self.raw_machine()
        host, port = self.staging.address.split(":")
        began = time.monotonic()
        plain = socket.create_connection((host, int(port)))
        plain.settimeout(90)
        plain.sendall(b"\x16\x03\x01")
        self.addCleanup(plain.close)
        silent = self.session(state, machine_id)
        dripping = self.session(dripping_state, dripping_id)
        dripping.hello()
        half = rawwire.frame("ping", rawwire.message(_1=5), dripping.sent)
        dripping.raw(half[:10])

        change(self.bystander.disks[0], 5)
        self.goes_on(self.bystander.digests())
        with self.refused("deadline", "session refused .*code=timed-out .*no Hello within 10 seconds"):
            self.assert_error(silent.expect_error().error, "no Hello within 10 seconds", "timed-out")
            silent.close()
        self.assertGreater(time.monotonic() - began, 5)
        plain.recv(1000)
        self.assertEqual(plain.recv(1000), b"", "the handshake's deadline closes")
        self.assert_logged(self.staging, "handshake failed .*code=timed-out")
        with self.errors("timed-out", "session ended .*code=timed-out .*a frame took longer than 30 seconds"):
            dripping.raw(half[10:11])
            self.assert_error(dripping.expect_error().error, "a frame took longer than 30 seconds", "timed-out")
            dripping.close()
        self.assertLess(time.monotonic() - began, 80)


class Strangers(Peers):
    def test_what_does_not_speak_tls_or_not_our_protocol(self):
        host, port = self.staging.address.split(":")
        for hello in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 64, bytes(range(256)) * 8):
            with self.refused("handshake_failed", "handshake failed .*code=protocol .*does not speak TLS"), socket.create_connection((host, int(port))) as connection:
                connection.settimeout(60)
                connection.sendall(hello)
                while connection.recv(4096):
                    pass
        for alpn in (None, "h2"):
            with self.refused("handshake_failed", "handshake failed .*code=unsupported .*ALPN"), self.assertRaises((ssl.SSLError, ConnectionError, EOFError)):
                connection = rawwire.connect(self.staging.address, alpn=alpn)
                if not connection.recv(1):
                    raise EOFError


if __name__ == "__main__":
    main()
