#!/usr/bin/env python3
"""Clones of recovery points: made, listed, read, dropped, through the real binaries."""
import json

from harness import MIB, Case, change, main, run, BIN


class Clones(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server(config='[retention]\nremoval_holdoff = "0s"\n')
        self.web1 = self.agent("web1", disks={"vda.img": 3 * MIB})
        self.images = {}
        for i in range(3):
            change(self.web1.disks[0], 100 + i)
            self.web1.sync()
            self.images[self.staging.points("web1")[0]["epoch"]] = self.web1.digests()
        self.epochs = sorted(self.images)

    def failed(self, *arguments):
        done = self.staging.cli(*arguments)
        self.assertEqual(done.status, 1, f"{arguments}: {done}")
        self.assertRegex(done.err, "^tidemark: ")
        return done.error

    def create(self, epoch, name, *options):
        return self.staging.ask("clone", "create", "web1", "--at", f"epoch:{epoch}", "--name", name, *options)["clones"]

    def names(self):
        return [clone["name"] for clone in self.staging.ask("clone", "list")["clones"]]

    def test_a_clone_is_its_point_whatever_becomes_of_the_machine(self):
        middle = self.epochs[1]
        [clone] = self.create(middle, "check")
        self.assertEqual((clone["parent"], clone["epoch"], clone["depth"]), ("web1", middle, 1))
        change(self.web1.disks[0], 500)
        self.web1.sync()
        self.staging.ask("ladder", "set", "web1", "--dense", "1s", "--rung", "1d:1d")
        self.assertEqual(self.export(self.staging, "clone:check"), self.images[middle])
        self.staging.restart()
        self.assertEqual(self.names(), ["check"])
        self.assertEqual(self.export(self.staging, "clone:check"), self.images[middle])
        self.assertEqual(self.staging.cli("verify", "clone:check", "--at", "latest").status, 0)
        holds = {point["epoch"]: [hold["kind"] for hold in point["holds"]] for point in self.staging.points("web1")}
        self.assertIn("in-use", holds[middle])
        human = run([BIN / "tidemark", "--data", self.staging.data, "clone", "list"])
        self.assertRegex(human.out, rf"(?m)^check +web1 +{middle} +1 +no ")
        self.assertEqual([one["name"] for one in self.staging.ask("machines")["machines"]], ["web1"])
        self.assertEqual(self.staging.metric("tidemark_clones"), 1)

        self.assertEqual(self.failed("machine", "remove", "web1", "--confirm", "web1")["code"], "busy")
        self.assertEqual(self.staging.ask("clone", "drop", "check"), {"dropped": ["check"]})
        self.assertEqual(self.names(), [])
        self.staging.ask("machine", "remove", "web1", "--confirm", "web1")
        actions = [(one["action"], one["result"]) for one in self.staging.ask("audit")["entries"]]
        self.assertIn(("clone.create", "done"), actions)
        self.assertIn(("clone.drop", "done"), actions)

    def test_a_thousand_at_once_and_clones_of_clones(self):
        made = self.create(self.epochs[0], "drill", "--count", "1000")
        self.assertEqual(len(made), 1000)
        self.assertEqual(len(self.names()), 1000)
        self.assertEqual(self.export(self.staging, "clone:drill-777"), self.images[self.epochs[0]])
        # One that was never written to is no step: what is made of it stands on the point itself.
        [again] = self.staging.ask("clone", "create", "clone:drill-1", "--at", "latest", "--name", "again")["clones"]
        self.assertEqual((again["parent"], again["epoch"], again["depth"]), ("web1", self.epochs[0], 1))
        self.staging.kill()
        self.staging.start()
        self.assertEqual(len(self.names()), 1001)
        self.assertEqual(self.export(self.staging, "clone:again"), self.images[self.epochs[0]])

    def test_what_cannot_be_is_said_and_changes_nothing(self):
        self.create(self.epochs[0], "taken")
        newest = self.epochs[-1]
        for arguments, code, words in (
                (("clone", "create", "web9", "--at", "latest"), "not-found", "web9"),
                (("clone", "create", "web1", "--at", f"epoch:{newest + 7}"), "not-found", "no such point"),
                (("clone", "create", "web1", "--at", "2001-01-01T00:00:00Z"), "not-found", "2001"),
                (("clone", "create", "web1", "--at", "2199-01-01T00:00:00Z"), "invalid-argument", "future"),
                (("clone", "create", "web1", "--at", "soon"), "invalid-argument", "soon"),
                (("clone", "create", "web1", "--name", "taken", "--at", "latest"), "already-exists", "taken"),
                (("clone", "create", "web1", "--name", "a/b", "--at", "latest"), "invalid-argument", "a/b"),
                (("clone", "create", "clone:nobody", "--at", "latest"), "not-found", "nobody"),
                (("clone", "drop", "nobody"), "not-found", "nobody"),
                (("clone", "drop", "web1"), "not-found", "web1"),
                (("machine", "rename", "clone:taken", "other"), "invalid-argument", "clone"),
                (("machine", "remove", "clone:taken", "--confirm", "clone:taken"), "invalid-argument", "clone"),
                (("ladder", "set", "clone:taken", "--preset", "60"), "invalid-argument", "clone"),
                (("pin", "clone:taken", "--at", "latest"), "invalid-argument", "clone")):
            error = self.failed(*arguments)
            self.assertEqual(error["code"], code, arguments)
            self.assertIn(words, json.dumps(error))
        self.assertEqual(self.staging.cli("clone", "create", "web1", "--at", "latest", "--count", "5000").status, 2)
        # All or none: the second name of these is taken.
        self.create(self.epochs[0], "some-2")
        self.assertEqual(self.failed("clone", "create", "web1", "--at", "latest", "--name", "some", "--count", "3")["code"], "already-exists")
        self.assertEqual(self.names(), ["some-2", "taken"])


if __name__ == "__main__":
    main()
