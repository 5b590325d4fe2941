#!/usr/bin/env python3
"""What stays and what goes: ladders, pins, removals with a hold-off, the audit log, through the real binaries."""
import json
import os

from harness import MIB, Case, change, main, run, wait_for, BIN


class Retention(Case):
    def points_of(self, count, config='[retention]\nremoval_holdoff = "0s"\n'):
        """A server, and a machine with so many points."""
        self.staging = self.server(config=config)
        self.web1 = self.agent("web1", disks={"vda.img": 1 * MIB})
        for i in range(count):
            change(self.web1.disks[0], 100 + i)
            self.web1.sync()
        return self.staging.points("web1")

    def epochs(self):
        return [point["epoch"] for point in self.staging.points("web1")]

    def told(self):
        """All there is to say of the machine but the time."""
        ladder = self.staging.ask("ladder", "show", "web1")
        del ladder["clock"]
        return {"epochs": self.epochs(), "ladder": ladder, "clones": self.staging.ask("clone", "list")}

    def failed(self, *arguments):
        done = self.staging.cli(*arguments)
        self.assertEqual(done.status, 1, f"{arguments}: {done}")
        self.assertRegex(done.err, "^tidemark: ")
        return done.error

    def test_pins_and_ladders_are_told_and_outlive_a_restart(self):
        points = self.points_of(3)
        middle = points[1]["epoch"]
        pin = self.staging.ask("pin", "web1", "--at", f"epoch:{middle}", "--name", "before", "--until", "30d", "--reason", "trial")
        self.assertEqual((pin["epoch"], pin["time"]), (middle, points[1]["time"]))
        self.staging.ask("ladder", "set", "web1", "--dense", "2h", "--rung", "1h:24h")
        self.staging.restart()
        shown = self.staging.ask("ladder", "show", "web1")
        self.assertEqual(shown["ladder"]["text"], "all for 2h, 1h for 1d")
        self.assertEqual([one["name"] for one in self.staging.ask("pins", "web1")["pins"]], ["before"])
        held = {point["epoch"]: [hold["kind"] for hold in point["holds"]] for point in self.staging.points("web1")}
        self.assertIn("pin", held[middle])
        self.assertIn("newest-point", held[points[0]["epoch"]])
        human = run([BIN / "tidemark", "--data", self.staging.data, "points", "web1"])
        self.assertRegex(human.out, r"(?m)^ *\d+ .* pin before")
        self.staging.ask("unpin", "web1", "before")
        self.assertEqual(self.staging.ask("pins", "web1")["pins"], [])

    def test_the_preset_of_sixty(self):
        self.points_of(1)
        rungs = self.staging.ask("ladder", "set", "web1", "--preset", "60")["ladder"]["rungs"]
        self.assertEqual([(rung["every_seconds"], rung["points"]) for rung in rungs], [(600, 6), (3600, 24), (86400, 30)])

    def test_what_cannot_be_is_said_and_changes_nothing(self):
        newest = self.points_of(2)[0]["epoch"]
        before = self.staging.ask("ladder", "show", "web1")
        self.staging.ask("pin", "web1", "--at", "latest", "--name", "taken")
        for arguments, code, words in (
                (("ladder", "show", "web9"), "not-found", "web9"),
                (("ladder", "set", "web9", "--preset", "60"), "not-found", "web9"),
                (("ladder", "set", "web1", "--dense", "0s"), "invalid-argument", "keeps nothing"),
                (("ladder", "set", "web1", "--rung", "1h:10m"), "invalid-argument", "keeps nothing"),
                (("ladder", "set", "web1", "--rung", "1s:30d"), "invalid-argument", "points"),
                (("ladder", "set", "web1", "--preset", "61"), "invalid-argument", "preset"),
                (("pin", "web9", "--at", "latest"), "not-found", "web9"),
                (("pin", "web1", "--at", f"epoch:{newest + 7}"), "not-found", "no such point"),
                (("pin", "web1", "--at", "2001-01-01T00:00:00Z"), "not-found", "2001"),
                (("pin", "web1", "--at", "2199-01-01T00:00:00Z"), "invalid-argument", "future"),
                (("pin", "web1", "--at", "latest", "--name", "taken"), "already-exists", "taken"),
                (("pin", "web1", "--at", "latest", "--until", "yesterday"), "invalid-argument", "yesterday"),
                (("unpin", "web1", "nobody"), "not-found", "nobody"),
                (("point", "remove", "web1", "--at", "latest"), "busy", ""),
                (("point", "remove", "web1", "--at", f"epoch:{newest + 7}"), "not-found", ""),
                (("point", "keep", "web1", "--at", f"epoch:{newest}"), "not-found", "not to be removed"),
                (("machine", "unremove", "web1"), "not-found", "not to be removed"),
                (("machine", "unremove", "web9"), "not-found", "web9")):
            error = self.failed(*arguments)
            self.assertEqual(error["code"], code, arguments)
            self.assertIn(words, json.dumps(error))
        after = self.staging.ask("ladder", "show", "web1")
        self.assertEqual((after["ladder"], after["removals"], len(after["pins"])), (before["ladder"], [], 1))

    def test_a_point_that_was_dropped_is_no_point(self):
        gone = self.points_of(4)[2]["epoch"]
        self.staging.ask("point", "remove", "web1", "--at", f"epoch:{gone}")
        wait_for("it to go", lambda: gone not in self.epochs())
        wait_for("nobody to wait for it", lambda: self.staging.ask("ladder", "show", "web1")["removals"] == [])
        before = self.told()
        output = self.directory / "never"
        for arguments, code, words in (
                (("pin", "web1", "--at", f"epoch:{gone}"), "not-found", "no such point"),
                (("clone", "create", "web1", "--at", f"epoch:{gone}", "--name", "late"), "not-found", "no such point"),
                (("point", "remove", "web1", "--at", f"epoch:{gone}"), "not-found", "no such point"),
                (("verify", "web9", "--at", "latest"), "not-found", "web9"),
                (("points", "web9"), "not-found", "web9"),
                (("export", "web9", "--at", "latest", "--output", str(output)), "not-found", "web9"),
                (("export", "web1", "--at", "2001-01-01T00:00:00Z", "--output", str(output)), "not-found", "2001"),
                (("export", "web1", "--at", "2199-01-01T00:00:00Z", "--output", str(output)), "invalid-argument", "future"),
                (("pins", "web9"), "not-found", "web9"),
                (("machine", "rename", "web9", "web8"), "not-found", "web9"),
                (("machine", "remove", "web9", "--confirm", "web9"), "not-found", "web9")):
            error = self.failed(*arguments)
            self.assertEqual(error["code"], code, arguments)
            self.assertIn(words, json.dumps(error), arguments)
        self.assertEqual(self.told(), before)
        # Reading takes the newest point at or before what was asked for, and says which.
        older = [epoch for epoch in before["epochs"] if epoch < gone][0]
        self.assertEqual(self.staging.ask("verify", "web1", "--at", f"epoch:{gone}")["epoch"], older)
        self.assertFalse(output.exists() and any(output.iterdir()))

    def test_a_removal_waits_and_is_taken_back(self):
        oldest = self.points_of(2, config=None)[-1]["epoch"]
        removal = self.staging.ask("point", "remove", "web1", "--at", f"epoch:{oldest}", "--reason", "secrets")
        self.assertEqual(removal["epoch"], oldest)
        waiting = self.staging.ask("machine", "remove", "web1", "--confirm", "web1", "--reason", "retired")
        self.assertIsNone(waiting["removed"])
        self.staging.restart()
        self.assertEqual(self.staging.machine("web1")["removal"]["reason"], "retired")
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests(), "until then everything is as before")
        self.web1.sync()
        self.staging.ask("machine", "unremove", "web1")
        self.staging.ask("point", "keep", "web1", "--at", f"epoch:{oldest}")
        self.assertIsNone(self.staging.machine("web1")["removal"])
        self.assertEqual(self.staging.ask("ladder", "show", "web1")["removals"], [])
        self.assertIn(oldest, self.epochs())

    def test_a_removal_that_was_not_taken_back_is_carried_out(self):
        self.points_of(1, config='[retention]\nremoval_holdoff = "2s"\n')
        self.staging.ask("machine", "remove", "web1", "--confirm", "web1")
        wait_for("the machine to be removed", lambda: self.staging.ask("machines")["machines"] == [])
        wait_for("the audit log to say so", lambda: "machine.removed" in self.actions())

    def test_what_nothing_holds_is_dropped_and_what_stays_is_exact(self):
        pinned = self.points_of(1)[0]["epoch"]
        self.staging.ask("pin", "web1", "--at", f"epoch:{pinned}", "--name", "first")
        first = self.web1.digests()
        self.staging.ask("ladder", "set", "web1", "--dense", "2s", "--rung", "4s:12s")
        made, images = [], {pinned: first}

        def thinned():
            change(self.web1.disks[0], 200 + len(made))
            self.web1.sync()
            made.append(self.epochs()[0])
            images[made[-1]] = self.web1.digests()
            return len(set(made) - set(self.epochs())) >= 5

        wait_for("the ladder to thin the points out", thinned)
        left = self.epochs()
        self.assertIn(pinned, left)
        self.assertIn(made[-1], left)
        gone = next(epoch for epoch in made if epoch not in left)
        error = self.failed("pin", "web1", "--at", f"epoch:{gone}")
        self.assertEqual(error["code"], "not-found")
        self.assertIn(f"epoch:{gone}", json.dumps(error))
        for epoch in (pinned, made[-1]):
            self.assertEqual(self.export(self.staging, "web1", f"epoch:{epoch}"), images[epoch])
        self.staging.restart()
        self.assertIn(pinned, self.epochs())
        self.assertNotIn(gone, self.epochs(), "what was dropped does not come back")
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{pinned}"), first)

    def test_a_removed_point_is_gone_and_the_others_are_exact(self):
        oldest = self.points_of(3)[-1]["epoch"]
        removal = self.staging.ask("point", "remove", "web1", "--at", f"epoch:{oldest}")
        self.assertEqual(removal["epoch"], oldest)
        wait_for("the point to be gone", lambda: oldest not in self.epochs())
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())
        wait_for("the audit log to say so", lambda: "point.removed" in self.actions())
        self.assertEqual(self.staging.ask("ladder", "show", "web1")["removals"], [])

    def actions(self):
        return [entry["action"] for entry in self.staging.ask("audit")["entries"]]

    def test_whoever_did_something_is_in_the_audit_log(self):
        self.points_of(1)
        self.staging.ask("pin", "web1", "--at", "latest", "--name", "p")
        self.failed("pin", "web1", "--at", "latest", "--name", "p")
        self.staging.ask("unpin", "web1", "p")
        entries = self.staging.ask("audit")["entries"][-3:]
        self.assertEqual([(entry["action"], entry["result"]) for entry in entries],
                         [("pin.add", "done"), ("pin.add", "failed"), ("pin.remove", "done")])
        self.assertEqual({entry["uid"] for entry in entries}, {os.geteuid()})
        with open(self.staging.data / "audit.log") as file:
            self.assertEqual([json.loads(line) for line in file][-3:], entries)
        self.assertEqual(os.stat(self.staging.data / "audit.log").st_mode & 0o777, 0o600)
        human = run([BIN / "tidemark", "--data", self.staging.data, "audit", "--limit", "2"])
        self.assertRegex(human.out, r"(?m)^TIME +WHO +ACTION +OBJECT +RESULT +DETAILS\n.* failed .*\n.* pin.remove ")


if __name__ == "__main__":
    main()
