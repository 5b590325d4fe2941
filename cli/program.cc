#include "cli/program.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/clients.h"
#include "cli/clones.h"
#include "cli/commands.h"
#include "cli/diff.h"
#include "cli/export.h"
#include "cli/integrity.h"
#include "cli/interrupt.h"
#include "cli/mount.h"
#include "cli/partitions.h"
#include "cli/retention.h"
#include "cli/space.h"
#include "cli/verify.h"

namespace tidemark::cli {
namespace {

constexpr char kDefaultSocket[] = "/srv/tidemark/admin.sock";
constexpr char kAtHelp[] =
    "which point: latest, a time like 2026-11-20T10:15:03Z, an age like -15m (s, m, h, d), or epoch:N. A time means "
    "the "
    "newest point at or before it";

struct Options {
  bool json = false;
  std::string socket;
  std::string data;
  TokenRequest token;
  std::string machine;
  std::string name;
  std::string confirmation;
  std::string reason;
  LadderRequest ladder;
  PinRequest pin;
  CloneRequest clone;
  std::string nbd;
  std::vector<std::string> names;
  std::uint32_t partition = 0;
  std::uint64_t limit = 0;
  bool fuzzy = false;
  ExportRequest exported;
  DiffRequest diff;
  MountRequest mount;
  std::string at = "latest";
  std::function<Outcome(Context&)> command;
};

// Which socket: the most explicit wins.
std::string socket_of(const Options& options) {
  if (!options.socket.empty()) return options.socket;
  if (!options.data.empty()) return options.data + "/admin.sock";
  const char* const environment = ::getenv("TIDEMARK_SOCKET");
  return environment != nullptr && *environment != '\0' ? environment : kDefaultSocket;
}

CLI::App* add_command(CLI::App& to, Options& options, const std::string& name, const std::string& what,
                      const std::string& footer, std::function<Outcome(Context&)> command) {
  CLI::App* const added = to.add_subcommand(name, what);
  added->fallthrough();
  added->footer(footer);
  added->callback([&options, command = std::move(command)] { options.command = command; });
  return added;
}

void add_machine(CLI::App* to, Options& options) {
  to->add_option("MACHINE", options.machine, "its name or its id; `tidemark machines` lists them")->required();
}

void add_at(CLI::App* to, std::string& at) { to->add_option("--at", at, kAtHelp)->required()->type_name("MOMENT"); }

void add_token_commands(CLI::App& app, Options& options) {
  CLI::App* const token = app.add_subcommand("token", "enrolment tokens");
  token->require_subcommand(0, 1)->fallthrough();
  CLI::App* const create = add_command(*token, options, "create", "makes a one-time token with which a machine enrols",
                                       "Example:\n  tidemark token create --ttl 15m\n  then, on the source machine:\n"
                                       "  tidemark-agent enroll --token TOKEN",
                                       [&](Context& context) { return create_token(context, options.token); });
  create->add_option("--ttl", options.token.ttl, "how long it can be used: 90s, 15m, 1h, 2d")
      ->capture_default_str()
      ->type_name("TIME");
  create->add_option("--machine", options.token.machine, "only to enrol this known machine again, with its history");
  create
      ->add_option("--address", options.token.address, "the server's address to put into it, in place of its own idea")
      ->type_name("HOST:PORT");
}

void add_machine_commands(CLI::App& app, Options& options) {
  add_command(app, options, "machines", "lists all machines: state, progress, lag, newest point", "",
              [](Context& context) { return list_machines(context); });
  CLI::App* const machine =
      app.add_subcommand("machine", "one machine: show, rename, quota, remove, unremove, accept, keep, revoke");
  machine->require_subcommand(0, 1)->fallthrough();
  add_machine(add_command(*machine, options, "show", "everything the server knows of it", "",
                          [&](Context& context) { return show_machine(context, options.machine); }),
              options);
  CLI::App* const rename =
      add_command(*machine, options, "rename", "gives it another name", "Example:\n  tidemark machine rename web1 shop",
                  [&](Context& context) { return rename_machine(context, options.machine, options.name); });
  add_machine(rename, options);
  rename->add_option("NEW", options.name, "the new name")->required();
  CLI::App* const quota = add_command(
      *machine, options, "quota", "sets how much its versions may take on the server, or none",
      "From 90 % on a warning; at 100 % the machine is paused, with its points as they are, until pruning or a higher\n"
      "quota makes room.\nExamples:\n  tidemark machine quota web1 200GiB\n  tidemark machine quota web1 none",
      [&](Context& context) { return set_quota(context, options.machine, options.name); });
  add_machine(quota, options);
  quota->add_option("SIZE", options.name, "like 500MiB, 200GiB or 2TiB; or none")->required();
  CLI::App* const remove = add_command(
      *machine, options, "remove", "removes it and all of its recovery points, after the hold-off",
      "Asks for the name on a terminal; elsewhere --confirm is needed. Until the hold-off is over (24 h, unless the\n"
      "server's configuration says otherwise) nothing changes, and `tidemark machine unremove` takes it back.",
      [&](Context& context) { return remove_machine(context, options.machine, options.confirmation, options.reason); });
  add_machine(remove, options);
  remove->add_option("--confirm", options.confirmation, "the machine's name once more");
  remove->add_option("--reason", options.reason, "why, for the audit log");
  add_machine(add_command(*machine, options, "unremove", "takes back that it is to be removed", "",
                          [&](Context& context) { return unremove_machine(context, options.machine); }),
              options);
  add_machine(
      add_command(
          *machine, options, "accept", "ends its quarantine: the new fingerprint is this machine's from now on",
          "A machine is quarantined when its fingerprint (hardware, disks) changed: it was moved or given other\n"
          "disks (accept), or somebody booted a copy of it (keep).",
          [&](Context& context) { return decide_quarantine(context, options.machine, true); }),
      options);
  add_machine(add_command(*machine, options, "keep", "ends its quarantine: only the fingerprint it had is taken", "",
                          [&](Context& context) { return decide_quarantine(context, options.machine, false); }),
              options);
  add_machine(add_command(*machine, options, "revoke", "refuses all of its certificates from now on; its points stay",
                          "", [&](Context& context) { return revoke_machine(context, options.machine); }),
              options);
}

void add_point_commands(CLI::App& app, Options& options) {
  CLI::App* const points = add_command(
      app, options, "points", "lists a machine's recovery points, newest first, and what holds them", "",
      [&](Context& context) { return list_points(context, options.machine, options.limit, options.fuzzy); });
  add_machine(points, options);
  points->add_option("--limit", options.limit, "at most this many")->check(CLI::Range(1, 1'000'000));
  points->add_flag("--fuzzy", options.fuzzy,
                   "also the epochs that are no points, because the disks changed while they were read");
}

void add_data_commands(CLI::App& app, Options& options) {
  CLI::App* const exported = add_command(
      app, options, "export", "writes the disks of a recovery point as raw, sparse images, or to a block device",
      "One disk becomes a file, with PATH.manifest.json (sizes, SHA-256) beside it. Several become a directory with a "
      "file\n"
      "for each and manifest.json, and so does one when PATH ends in a slash. Nothing stands under the final name "
      "before\n"
      "everything is there; after an interruption the same command goes on where it stopped. A block device must not "
      "be\n"
      "mounted, and must be empty without --force.\n"
      "Examples:\n  tidemark export web1 --at latest --output ./web1/\n"
      "  tidemark export web1 --at -15m --disk vda --output vda.img\n"
      "  tidemark export web1 --at latest --disk vda --output vda.img --changed-since epoch:7\n"
      "  tidemark export web1 --at latest --disk vda --output /dev/sdx --force",
      [&](Context& context) {
        options.exported.machine = options.machine;
        options.exported.at = options.at;
        return run_export(context, options.exported);
      });
  add_machine(exported, options);
  add_at(exported, options.at);
  exported->add_option("--output,-o", options.exported.output, "the file or directory to make, or a block device")
      ->required()
      ->type_name("PATH");
  exported->add_option("--disk", options.exported.disk, "only the disk of this name")->type_name("NAME");
  exported
      ->add_option("--changed-since", options.exported.changed_since,
                   "PATH holds an export of this point: only what changed since is fetched and written to it")
      ->type_name("MOMENT");
  exported->add_option("--format", options.exported.format, "raw, or what qemu-img makes of it: qcow2, vmdk, vhdx")
      ->check(CLI::IsMember({"raw", "qcow2", "vmdk", "vhdx"}))
      ->capture_default_str();
  exported->add_option("--threads", options.exported.threads, "how many pieces are fetched at a time")
      ->check(CLI::Range(1, 6))
      ->capture_default_str();
  exported->add_flag("--force", options.exported.force, "replace what is there");

  CLI::App* const mount = add_command(
      app, options, "mount", "shows the files of a recovery point under a directory, read-only",
      "The journal of the file system is replayed, in a clone that goes with the mount. Needs root, and nbdfuse.\n"
      "Examples:\n  tidemark mount web1 /mnt --at -1h\n  tidemark unmount /mnt",
      [&](Context& context) {
        options.mount.machine = options.machine;
        options.mount.at = options.at;
        return mount_point(context, options.mount);
      });
  add_machine(mount, options);
  mount->add_option("DIR", options.mount.directory, "an empty directory")->required();
  add_at(mount, options.at);
  mount->add_option("--disk", options.mount.disk, "which disk, when it has several")->type_name("NAME");
  mount->add_option("--partition", options.mount.partition, "which partition, when several have a file system")
      ->check(CLI::Range(1, 1024));
  add_command(app, options, "unmount", "ends a mount", "",
              [&](Context& context) { return unmount_point(context, options.mount.directory); })
      ->add_option("DIR", options.mount.directory, "where it is")
      ->required();

  CLI::App* const verify =
      add_command(app, options, "verify", "has the server read and check every block of a recovery point",
                  "Tells at once what is damaged. Exit status 1 when anything is.\n"
                  "Example:\n  tidemark verify web1 --at latest",
                  [&](Context& context) { return run_verify(context, options.machine, options.at); });
  add_machine(verify, options);
  add_at(verify, options.at);

  CLI::App* const diff = add_command(
      app, options, "diff", "what changed between two recovery points: bytes and ranges, in granules of 4 KiB",
      "What was written in between is found in the index, and compared: only what is another content is told. With\n"
      "--written nothing is read or compared; what was written with the bytes that were there already is told too.\n"
      "Examples:\n  tidemark diff web1 -1h latest\n  tidemark diff web1 epoch:7 epoch:9 --disk vda --json",
      [&](Context& context) {
        options.diff.machine = options.machine;
        return run_diff(context, options.diff);
      });
  add_machine(diff, options);
  diff->add_option("FROM", options.diff.from, kAtHelp)->required()->type_name("MOMENT");
  diff->add_option("TO", options.diff.to, "the other point")->required()->type_name("MOMENT");
  diff->add_option("--disk", options.diff.disk, "only the disk of this name")->type_name("NAME");
  diff->add_flag("--written", options.diff.written, "what was written, changed or not; quick, however much that is");
}

void add_ladder_commands(CLI::App& app, Options& options) {
  CLI::App* const ladder = app.add_subcommand("ladder", "which points of a machine stay: show, set");
  ladder->require_subcommand(0, 1)->fallthrough();
  add_machine(add_command(*ladder, options, "show", "its ladder, pins, and what is to be removed", "",
                          [&](Context& context) { return show_ladder(context, options.machine); }),
              options);
  CLI::App* const set = add_command(
      *ladder, options, "set", "sets which points stay as they age; replication goes on undisturbed",
      "A ladder keeps every epoch for its dense window, and for each rung the first point of each UTC bucket: --rung\n"
      "10m:6h keeps one every 10 minutes, 6 h of them, 36 points. Buckets without a point do not count, so a machine\n"
      "that was away keeps what it had. What the new ladder keeps no longer stays for the hold-off (24 h).\n"
      "Examples:\n  tidemark ladder set web1 --preset 60            6 x 10 min, 24 x 1 h, 30 x 1 day\n"
      "  tidemark ladder set web1 --dense 1h --rung 10m:6h --rung 1h:24h --rung 1d:30d      (the default)",
      [&](Context& context) { return set_ladder(context, options.machine, options.ladder); });
  add_machine(set, options);
  set->add_option("--preset", options.ladder.preset, "60, or default; what else is given replaces its part")
      ->type_name("NAME");
  set->add_option("--dense", options.ladder.dense, "how long every epoch stays: 90s, 10m, 1h; 0s for none")
      ->type_name("TIME");
  set->add_option("--rung", options.ladder.rungs, "one point every EVERY, for SPAN; may be repeated")
      ->type_name("EVERY:SPAN");
}

void add_pin_commands(CLI::App& app, Options& options) {
  CLI::App* const pin = add_command(app, options, "pin", "keeps a recovery point, whatever the ladder says",
                                    "Examples:\n  tidemark pin web1 --at latest --name before-upgrade --until 30d\n"
                                    "  tidemark pin web1 --at epoch:4711 --reason \"audit 2026\"",
                                    [&](Context& context) {
                                      options.pin.at = options.at;
                                      options.pin.reason = options.reason;
                                      return pin_point(context, options.machine, options.pin);
                                    });
  add_machine(pin, options);
  add_at(pin, options.at);
  pin->add_option("--name", options.pin.name, "what to call the pin (default: epoch-N)");
  pin->add_option("--until", options.pin.until,
                  "a time like 2027-01-31T00:00:00Z, or how long: 12h, 30d (default: for good)")
      ->type_name("TIME");
  pin->add_option("--reason", options.reason, "why");
  CLI::App* const unpin =
      add_command(app, options, "unpin", "lets the ladder decide again, after the hold-off", "",
                  [&](Context& context) { return unpin_point(context, options.machine, options.pin.name); });
  add_machine(unpin, options);
  unpin->add_option("PIN", options.pin.name, "its name; `tidemark pins` lists them")->required();
  add_machine(add_command(app, options, "pins", "lists a machine's pins", "",
                          [&](Context& context) { return list_pins(context, options.machine); }),
              options);

  CLI::App* const point = app.add_subcommand("point", "one recovery point: remove, keep");
  point->require_subcommand(0, 1)->fallthrough();
  CLI::App* const remove = add_command(
      *point, options, "remove", "removes a point, after the hold-off",
      "Until the hold-off is over (24 h, unless the server's configuration says otherwise) it can be recovered as "
      "before,\n"
      "and `tidemark point keep` takes the removal back. The newest point, and what is pinned or in use, stays.\n"
      "Example:\n  tidemark point remove web1 --at epoch:4711 --reason \"holds what it must not\"",
      [&](Context& context) { return remove_point(context, options.machine, options.at, options.reason); });
  add_machine(remove, options);
  add_at(remove, options.at);
  remove->add_option("--reason", options.reason, "why, for the audit log");
  CLI::App* const keep =
      add_command(*point, options, "keep", "takes back that a point is to be removed", "",
                  [&](Context& context) { return keep_point(context, options.machine, options.at); });
  add_machine(keep, options);
  add_at(keep, options.at);
}

void add_clone_commands(CLI::App& app, Options& options) {
  CLI::App* const clone =
      app.add_subcommand("clone", "writable copies of a point, made at once: create, list, serve, drop");
  clone->require_subcommand(0, 1)->fallthrough();
  CLI::App* const create =
      add_command(*clone, options, "create", "makes a clone of a recovery point",
                  "A clone costs nothing until it is written to, disturbs nothing, and keeps its point from going. "
                  "Where a machine\n"
                  "is named, clone:NAME names a clone: it can be exported, verified, and cloned in turn.\n"
                  "Examples:\n  tidemark clone create web1 --at latest --name check\n"
                  "  tidemark clone create web1 --at -1h --name drill --count 50     drill-1 to drill-50, all or none",
                  [&](Context& context) {
                    options.clone.at = options.at;
                    options.clone.name = options.name;
                    return create_clones(context, options.machine, options.clone);
                  });
  add_machine(create, options);
  add_at(create, options.at);
  create->add_option("--name", options.name, "what to call it (default: MACHINE-EPOCH)");
  create->add_option("--count", options.clone.count, "so many at once, NAME-1 to NAME-COUNT")
      ->check(CLI::Range(1, 1024));
  add_command(*clone, options, "list", "lists all clones and what they stand on", "",
              [](Context& context) { return list_clones(context); });
  CLI::App* const serve = add_command(
      *clone, options, "serve", "opens a unix socket where the clone is a disk for any NBD client",
      "Its first disk has the name \"\" there, all have their own. What clients write and flush is part of the clone; "
      "a "
      "clone that is served cannot be dropped. All clones and points are at nbd.sock in the data directory anyway.\n"
      "Example:\n  tidemark clone serve check --nbd unix:/run/tidemark/check.sock\n"
      "  qemu-nbd / qemu / nbdcopy ... 'nbd+unix:///?socket=/run/tidemark/check.sock'",
      [&](Context& context) { return serve_clone(context, options.machine, options.nbd); });
  serve->add_option("NAME", options.machine, "`tidemark clone list` lists them")->required();
  serve->add_option("--nbd", options.nbd, "unix:/PATH of the socket to make")->required();
  CLI::App* const unserve = add_command(*clone, options, "unserve", "closes that socket, and ends its clients", "",
                                        [&](Context& context) { return unserve_clone(context, options.machine); });
  unserve->add_option("NAME", options.machine, "`tidemark clone list` lists them")->required();
  CLI::App* const drop = add_command(*clone, options, "drop", "drops clones, with what was written to them", "",
                                     [&](Context& context) { return drop_clones(context, options.names); });
  drop->add_option("NAME", options.names, "`tidemark clone list` lists them")->required();
}

void add_client_commands(CLI::App& app, Options& options) {
  CLI::App* const client =
      app.add_subcommand("client", "certificates of those who open exports over TLS: list, revoke");
  client->require_subcommand(0, 1)->fallthrough();
  add_command(*client, options, "list", "lists the certificates that were issued, and which are revoked", "",
              [](Context& context) { return list_clients(context); });
  CLI::App* const revoke = add_command(
      *client, options, "revoke", "refuses a client's certificates from now on, and ends its connections",
      "For good: `tidemarkd certificate client NAME --out DIR` issues another one.\n"
      "Examples:\n  tidemark client revoke auditor --reason \"left the company\"\n  tidemark client revoke 3f9a...",
      [&](Context& context) { return revoke_client(context, options.name, options.reason); });
  revoke->add_option("CLIENT", options.name, "its name; or the serial number of one certificate")->required();
  revoke->add_option("--reason", options.reason, "why, for the audit log");
}

void add_integrity_commands(CLI::App& app, Options& options) {
  CLI::App* const damage = add_command(
      app, options, "damage", "lists stored data that is damaged, and the recovery points it concerns",
      "What the newest state needs is sent again by the machine's agent; from then on it is healed, and older points\n"
      "stay affected until they expire. Exit status 1 when something is not healed.\n"
      "Examples:\n  tidemark damage\n  tidemark damage web1",
      [&](Context& context) { return show_damage(context, options.machine); });
  damage->add_option("MACHINE", options.machine, "only this machine's: its name or its id");
  CLI::App* const scrub = app.add_subcommand("scrub", "reads and checks all that is stored: start, status, stop");
  scrub->require_subcommand(0, 1)->fallthrough();
  add_command(*scrub, options, "start", "begins one now, besides those that come by themselves", "",
              [](Context& context) { return change_scrub(context, true); });
  add_command(*scrub, options, "status", "how far it is, when the last one ended and what it found", "",
              [](Context& context) { return show_scrub(context); });
  add_command(*scrub, options, "stop", "gives up the one that runs", "",
              [](Context& context) { return change_scrub(context, false); });
}

void add_all(CLI::App& app, Options& options) {
  app.add_flag("--json", options.json, "answer with one JSON document on stdout, errors too");
  app.add_option("--socket", options.socket,
                 std::string("the server's admin socket (or TIDEMARK_SOCKET; default ") + kDefaultSocket + ")")
      ->type_name("PATH");
  app.add_option("--data", options.data, "the server's data directory, in which the socket is")->type_name("DIR");
  app.set_version_flag("--version", "tidemark " TIDEMARK_VERSION);
  app.require_subcommand(0, 1);
  app.fallthrough();
  app.footer(
      "A first tour, beside a running tidemarkd:\n"
      "  tidemark token create             the token with which a machine enrols\n"
      "  tidemark machines                 what is protected, and how far it is\n"
      "  tidemark points web1              what can be recovered\n"
      "  tidemark export web1 --at latest --output ./web1/\n"
      "Exit status: 0 done, 1 failed (or verified as damaged), 2 wrong usage. Times are UTC.\n"
      "`tidemark COMMAND --help` tells more.");
  add_token_commands(app, options);
  add_machine_commands(app, options);
  add_point_commands(app, options);
  add_data_commands(app, options);
  add_ladder_commands(app, options);
  add_pin_commands(app, options);
  add_clone_commands(app, options);
  add_client_commands(app, options);
  add_integrity_commands(app, options);
  CLI::App* const audit = add_command(app, options, "audit", "who changed what, and what came of it; newest last", "",
                                      [&](Context& context) { return show_audit(context, options.limit); });
  audit->add_option("--limit", options.limit, "at most this many (default: 100)")->check(CLI::Range(1, 100'000));
  add_command(app, options, "space", "who takes how much, what else takes space, and what is free", "",
              [](Context& context) { return show_space(context); });
  add_command(app, options, "server", "the server: version, addresses, totals", "",
              [](Context& context) { return show_server(context); });
  add_command(app, options, "health", "whether every partition serves; exit status 1 when not", "",
              [](Context& context) { return show_health(context); });
  CLI::App* const partition = app.add_subcommand("partition", "one partition of the server: open");
  partition->require_subcommand(0, 1)->fallthrough();
  add_command(*partition, options, "open", "opens one again that stopped, or could not be opened",
              "When what made it stop is mended: a disk, a mount, a file that was restored. Its machines come back by\n"
              "themselves. Example:\n  tidemark partition open 3",
              [&](Context& context) { return open_partition(context, options.partition); })
      ->add_option("PARTITION", options.partition, "its number; `tidemark health` lists them")
      ->required();
}

int tell(const Error& error, bool json, std::ostream& out, std::ostream& err, int status) {
  if (json)
    out << nlohmann::json{{"error",
                           {{"code", to_string(error.code)},
                            {"object", error.object},
                            {"what", error.what},
                            {"remedy", error.remedy}}}}
               .dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
        << '\n';
  err << "tidemark: " << error.message() << '\n';
  return status;
}

// "tidemark machine": the commands on the command line, as far as they were understood.
std::string understood(const CLI::App& app) {
  std::string names = app.get_name();
  for (auto chosen = app.get_subcommands(); !chosen.empty(); chosen = chosen.front()->get_subcommands())
    names += " " + chosen.front()->get_name();
  return names;
}

Result<int> carry_out(Options& options, std::istream& in, std::ostream& out, std::ostream& err) {
  AdminClient client(socket_of(options));
  const Interrupt interrupt([&] { client.stop(); });
  Context context{.client = client,
                  .json = options.json,
                  .terminal = ::isatty(STDERR_FILENO) == 1 && &err == &std::cerr,
                  .in = in,
                  .out = out,
                  .err = err};
  auto outcome = options.command(context);
  if (!outcome && interrupt.raised()) {
    const bool told = outcome.error().code == Code::cancelled && !outcome.error().remedy.empty();
    return fail(Code::cancelled, {}, "interrupted",
                told ? outcome.error().remedy : "nothing was left behind under the name of a result");
  }
  out.flush();
  if (outcome && !out) return fail(Code::io, "standard output", "cannot be written", "see where it leads to");
  return outcome;
}

}  // namespace

int run(std::span<const std::string> arguments, std::istream& in, std::ostream& out, std::ostream& err) {
  Options options;
  CLI::App app("tidemark: the command line of a Tidemark staging server.", "tidemark");
  add_all(app, options);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 takes them
  try {
    app.parse(reversed);
  } catch (const CLI::Success& success) {  // help or version
    app.exit(success, out, err);
    return 0;
  } catch (const CLI::ParseError& error) {
    const bool json = options.json || std::ranges::find(arguments, "--json") != arguments.end();
    std::string what = error.what();
    std::ranges::replace(what, '\n', ' ');
    return tell({Code::invalid_argument, "command line", what, "see `" + understood(app) + " --help`"}, json, out, err,
                2);
  }
  if (!options.command)
    return tell({Code::invalid_argument, "command line", "no command is given", "see `" + understood(app) + " --help`"},
                options.json, out, err, 2);
  const auto outcome = carry_out(options, in, out, err);
  if (outcome) return *outcome;
  return tell(outcome.error(), options.json, out, err, 1);
}

}  // namespace tidemark::cli
