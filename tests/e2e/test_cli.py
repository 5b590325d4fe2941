#!/usr/bin/env python3
"""The command line of the admin: help, tables, JSON, errors and exit statuses, against a real server."""
import json
import os
import signal
import subprocess

from harness import BIN, MIB, Case, change, main, needs_root, run, sha256, wait_for


def tidemark(*arguments, **options):
    return run([BIN / "tidemark", *arguments], **options)


class WithoutServer(Case):
    def test_help_is_there_for_every_command(self):
        for command in ([], ["token", "create"], ["machines"], ["machine"], ["machine", "show"], ["machine", "rename"],
                        ["machine", "remove"], ["machine", "unremove"], ["machine", "accept"], ["machine", "keep"], ["machine", "revoke"], ["points"],
                        ["export"], ["verify"], ["diff"], ["server"], ["health"], ["ladder"], ["ladder", "show"], ["ladder", "set"], ["pin"],
                        ["unpin"], ["pins"], ["point"], ["point", "remove"], ["point", "keep"], ["audit"]):
            done = tidemark(*command, "--help")
            self.assertEqual(done.status, 0, command)
            self.assertIn("Usage: tidemark", done.out)

    def test_no_server_is_said_so_with_the_remedy(self):
        missing = self.directory / "admin.sock"
        done = tidemark("machines", "--socket", missing)
        self.assertEqual((done.status, done.out), (1, ""))
        self.assertRegex(done.err, rf"^tidemark: {missing}: there is no admin socket \(.*tidemarkd run.*\)\n$")
        self.assertEqual(tidemark("machines", "--socket", missing, "--json").error["code"], "unavailable")

    def test_a_stopped_server_is_said_so(self):
        server = self.server()
        server.kill()  # leaves its socket behind
        done = tidemark("machines", "--data", server.data)
        self.assertEqual(done.status, 1)
        self.assertRegex(done.err, "no server answers|no admin socket")

    def test_wrong_usage_is_two(self):
        for command in ([], ["bogus"], ["points"], ["export", "web1"], ["verify", "web1"], ["token"]):
            self.assertEqual(tidemark(*command).status, 2, command)


class WithServer(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.web1 = self.agent("web1", disks={"vda.img": 3 * MIB, "vdb.img": 1 * MIB})
        self.web1.sync()

    def human(self, *arguments, **options):
        return tidemark("--data", self.staging.data, *arguments, **options)

    def test_tables_for_people(self):
        machines = self.human("machines")
        self.assertRegex(machines.out, r"(?m)^NAME +STATE +DONE +ETA +LAG")
        self.assertRegex(machines.out, r"(?m)^web1 .* \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ \(.* ago\) +\d\S* \w+ +none +2, 4 MiB$")
        points = self.human("points", "web1")
        self.assertRegex(points.out, r"(?m)^EPOCH +TIME +AGE +CONSISTENCY +VERIFIED +CHANGED +STORED")
        self.assertRegex(self.human("machine", "show", "web1").out, r"(?m)^newest point +epoch \d+, ")
        self.assertRegex(self.human("server").out, "(?m)^version +")
        self.assertIn("every partition serves", self.human("health").out)

    def test_json_is_what_the_api_says(self):
        machine = self.staging.ask("machine", "show", "web1")
        same = self.staging.ask("machine", "show", machine["id"])
        self.assertEqual((same["name"], same["newest_point"], same["disks"]), ("web1", machine["newest_point"], machine["disks"]))
        self.assertEqual(machine["newest_point"], self.staging.points("web1")[0]["epoch"])
        self.assertEqual([(disk["name"], disk["size"]) for disk in machine["disks"]], [("vda.img", 3 * MIB), ("vdb.img", MIB)])
        self.assertTrue(self.staging.ask("health")["ok"])
        self.assertIn("version", self.staging.ask("server"))

    def test_errors_name_what_and_what_to_do(self):
        for arguments, code, words in (
                (("machine", "show", "web9"), "not-found", "web9"),
                (("points", "web9"), "not-found", "web9"),
                (("export", "web9", "--at", "latest", "--output", self.directory / "x"), "not-found", "web9"),
                (("export", "web1", "--at", "soon", "--output", self.directory / "x"), "invalid-argument", "soon"),
                (("export", "web1", "--at", "epoch:0", "--output", self.directory / "x"), "not-found", ""),
                (("export", "web1", "--at", "epoch:x", "--output", self.directory / "x"), "invalid-argument", "epoch:x"),
                (("export", "web1", "--at", "2001-01-01T00:00:00Z", "--output", self.directory / "x"), "not-found", ""),
                (("export", "web1", "--at", "latest", "--disk", "vdz", "--output", self.directory / "x"), "not-found", "vda.img"),
                (("verify", "web1", "--at", "-1y"), "invalid-argument", "-1y"),
                (("verify", "web1", "--at", "2199-01-01T00:00:00Z"), "invalid-argument", "future"),
                (("machine", "rename", "web1", "no/slashes"), "invalid-argument", "no/slashes"),
                (("token", "create", "--ttl", "soon"), "invalid-argument", "soon"),
                (("token", "create", "--machine", "web9"), "not-found", "web9")):
            done = self.staging.cli(*arguments)
            self.assertEqual(done.status, 1, f"{arguments}: {done}")
            self.assertEqual(done.error.get("code"), code, f"{arguments}: {done}")
            self.assertIn(words, json.dumps(done.error))
            self.assertTrue(done.error["what"])
            self.assertRegex(done.err, "^tidemark: ")
        self.assertFalse((self.directory / "x").exists())
        newest = self.staging.points("web1")[0]["epoch"]
        made = self.staging.ask("export", "web1", "--at", "epoch:999", "--output", self.directory / "x")
        self.assertEqual(made["epoch"], newest, "the newest point at or before, and it says which")

    def test_rename(self):
        self.agent("web2")
        self.assertEqual(self.staging.ask("machine", "rename", "web1", "shop")["name"], "shop")
        self.assertEqual(self.staging.cli("machine", "show", "web1").error["code"], "not-found")
        self.assertEqual(self.staging.cli("machine", "rename", "shop", "web2").error["code"], "already-exists")
        self.assertEqual(self.export(self.staging, "shop"), self.web1.digests())

    def test_export_of_one_disk_is_sparse(self):
        sparse = self.agent("web3")
        path = sparse.root / "big.img"
        with open(path, "wb") as file:
            file.truncate(512 * MIB)
            file.seek(100 * MIB)
            file.write(os.urandom(MIB))
        sparse.disks.append(path)
        sparse.protect().sync()
        out = self.directory / "big.img"
        done = self.human("export", "web3", "--at", "latest", "--output", out)
        self.assertEqual(done.status, 0, done)
        self.assertIn(sha256(path), done.out)
        self.assertEqual(sha256(out), sha256(path))
        self.assertLess(os.stat(out).st_blocks * 512, 4 * MIB)
        self.assertEqual(done.err, "", "no progress bar where there is no terminal")

    def test_export_overwrites_only_when_told(self):
        out = self.directory / "vda.img"
        out.write_text("precious")
        options = ("export", "web1", "--at", "latest", "--disk", "vda.img", "--output", out)
        self.assertEqual(self.staging.cli(*options).error["code"], "already-exists")
        self.assertEqual(out.read_text(), "precious")
        self.staging.ask(*options, "--force")
        self.assertEqual(sha256(out), sha256(self.web1.disks[0]))

    def slow_export(self, out):
        """An export that is under way and cannot end: its server stands still."""
        self.staging.process.send_signal(signal.SIGSTOP)
        export = subprocess.Popen([str(BIN / "tidemark"), "--data", str(self.staging.data), "--json", "export", "web1", "--at", "latest",
                                   "--output", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: export.poll() is None and export.kill())
        return export

    def test_an_interrupted_export_leaves_nothing(self):
        out = self.directory / "out"
        out.mkdir()
        export = self.slow_export(out / "web1")
        # It blocks SIGINT once it has its handler: /proc tells.
        wait_for("the export to listen for signals", lambda: self.blocks_sigint(export.pid))
        export.send_signal(signal.SIGINT)
        said, _ = export.communicate(timeout=60)
        self.staging.process.send_signal(signal.SIGCONT)
        self.assertEqual(export.returncode, 1)
        self.assertEqual(json.loads(said)["error"]["code"], "cancelled")
        self.assertEqual(list(out.iterdir()), [])

    @staticmethod
    def blocks_sigint(pid):
        with open(f"/proc/{pid}/status") as status:
            masks = [int(line.split()[1], 16) for line in status if line.startswith("SigBlk")]
        return masks[0] >> (signal.SIGINT - 1) & 1

    def test_a_server_that_dies_leaves_no_short_file(self):
        out = self.directory / "out"
        out.mkdir()
        export = self.slow_export(out / "web1")
        wait_for("the export to begin", lambda: self.blocks_sigint(export.pid))
        self.staging.kill()
        said, _ = export.communicate(timeout=60)
        self.assertEqual(export.returncode, 1)
        self.assertEqual(json.loads(said)["error"]["code"], "unavailable")
        self.assertEqual(list(out.iterdir()), [])

    @needs_root
    def test_a_full_output_is_said_so_and_cleaned(self):
        mount = self.directory / "small"
        mount.mkdir()
        self.assertEqual(run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]).status, 0)
        try:
            done = self.staging.cli("export", "web1", "--at", "latest", "--output", mount / "web1")
            self.assertEqual(done.status, 1)
            self.assertEqual(done.error["code"], "no-space")
            self.assertRegex(done.error["object"], "small/web1")
            self.assertEqual([path for path in mount.iterdir() if not path.name.startswith(".")], [])
        finally:
            run(["umount", mount])

    def test_removing_needs_the_name(self):
        self.assertEqual(self.staging.cli("machine", "remove", "web1").error["code"], "invalid-argument")
        self.assertEqual(self.staging.cli("machine", "remove", "web1", "--confirm", "web2").error["code"], "invalid-argument")
        self.assertEqual(len(self.staging.points("web1")), 1)


if __name__ == "__main__":
    main()
