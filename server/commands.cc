#include "server/commands.h"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <filesystem>
#include <thread>

#include "server/authority.h"
#include "server/config.h"
#include "server/directory.h"
#include "server/export_clients.h"
#include "server/key_commands.h"
#include "server/logging.h"
#include "server/notify.h"
#include "server/offline.h"
#include "server/private_file.h"
#include "server/server.h"
#include "storage/system_files.h"

namespace tidemark::server {
namespace {

constexpr int kWell = 0, kFailed = 1, kWrong = 2;

constexpr const char* kDescription = R"(tidemarkd: the staging server of Tidemark.

Receives the changes of protected machines, keeps their recovery points, serves them to the admin tools.

First steps:
  tidemarkd init /srv/tidemark --address staging.example:7443
  tidemarkd run --data /srv/tidemark
  tidemark token create                  (in another terminal; enrols a machine)
)";

int failed(const Error& error, int status = kFailed) {
  fmt::print(stderr, "tidemarkd: {}\n", error.message());
  return status;
}

int init(const std::string& path, const InitOptions& options) {
  const Directory directory(path);
  const auto made = create_directory(storage::system_files(), directory, options, Clock::system());
  if (!made) return failed(made.error(), made.error().code == Code::invalid_argument ? kWrong : kFailed);
  fmt::print("made {} with {} partition{}, server id {}\n", path, made->partitions, made->partitions == 1 ? "" : "s",
             made->server_id);
  fmt::print("configuration: {}\nnext: tidemarkd run --data {}\n", directory.config(), path);
  return kWell;
}

// The files have the names that libnbd and qemu look for.
int issue_client(const std::string& path, const std::string& name, const std::string& out) {
  const auto authority = Authority::load(Directory(path).authority());
  if (!authority) return failed(authority.error());
  const WallMicros now_us = Clock::system().wall_us();
  const auto issued = authority->issue_client(name, now_us);
  if (!issued) return failed(issued.error(), issued.error().code == Code::invalid_argument ? kWrong : kFailed);
  const auto info = net::describe_certificate(issued->certificate_pem);
  if (!info) return failed(info.error());
  // First: one that nobody knows of could only be revoked by whoever finds its serial number.
  if (const auto known = ExportClients::record(Directory(path).clients(), *info, now_us); !known)
    return failed(known.error());
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (error) return failed({Code::io, out, error.message(), {}});
  for (const auto& [file, content] : {std::pair<const char*, const std::string&>{"ca-cert.pem", authority->ca_pem()},
                                      {"client-cert.pem", issued->certificate_pem},
                                      {"client-key.pem", issued->key_pem}}) {
    if (const auto written = write_private_file(out + "/" + file, content); !written) return failed(written.error());
  }
  fmt::print("{}: ca-cert.pem, client-cert.pem and client-key.pem for {}, good until {}, serial {}\n", out, name,
             format_rfc3339(info->not_after_us), info->serial);
  return kWell;
}

int renew(const std::string& path, const std::vector<std::string>& addresses) {
  const Directory directory(path);
  auto superblock = read_superblock(directory);
  if (!superblock) return failed(superblock.error());
  for (const auto& address : addresses) {
    if (!is_agent_address(address))
      return failed({Code::invalid_argument, "--address", "is \"" + address + "\", not an address",
                     "write HOST:PORT as agents reach it"},
                    kWrong);
  }
  if (!addresses.empty()) {
    superblock->addresses = addresses;
    if (const auto written = write_superblock(directory, *superblock); !written) return failed(written.error());
  }
  const auto renewed = Authority::renew_server(directory.authority(), *superblock, Clock::system());
  if (!renewed) return failed(renewed.error());
  const auto authority = Authority::load(directory.authority());
  if (!authority) return failed(authority.error());
  fmt::print("certificate for {}, good until {}\nrestart tidemarkd to use it\n",
             fmt::join(certificate_names(superblock->addresses), ", "),
             format_rfc3339(authority->server_info().not_after_us));
  return kWell;
}

// Blocked in all threads; taken one by one by serve().
sigset_t block_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  return set;
}

void wait_for_end(const sigset_t& set) {
  while (true) {
    int signal = 0;
    if (::sigwait(&set, &signal) != 0) continue;
    if (signal == SIGHUP) {
      spdlog::info("SIGHUP is ignored: restart to use a changed configuration");
      continue;
    }
    spdlog::info("stopping{}", kv("signal", signal == SIGTERM ? "SIGTERM" : "SIGINT"));
    return;
  }
}

// Stops in the background; a second signal ends the process at once.
void stop(Server& server, const sigset_t& set) {
  notify_supervisor("STOPPING=1");
  std::atomic<bool> done{false};
  std::thread stopper([&] {
    server.stop();
    done = true;
  });
  while (!done) {
    const timespec wait{.tv_sec = 0, .tv_nsec = 20'000'000};
    const int signal = ::sigtimedwait(&set, nullptr, &wait);
    if (signal == SIGTERM || signal == SIGINT) {
      spdlog::info("a second signal: not waiting any longer");
      ::_exit(kFailed);
    }
  }
  stopper.join();
}

int serve(const std::string& data, std::string config_path, const std::string& listen) {
  const Directory directory(data);
  std::error_code error;
  if (config_path.empty() && std::filesystem::exists(directory.config(), error)) config_path = directory.config();
  auto config = config_path.empty() ? Result<Config>(Config()) : load_config(config_path);
  if (!config) return failed(config.error(), kWrong);
  if (!listen.empty()) {
    if (!is_listening_address(listen))
      return failed({Code::invalid_argument, "--listen", "is \"" + listen + "\", not an address to listen on",
                     "write an IP address and a port, like 0.0.0.0:7443 or [::]:7443"},
                    kWrong);
    config->server.listen = listen;
  }
  start_logging(config->server.log_level, config->server.log_format);
  const sigset_t set = block_signals();
  auto server = Server::start(data, *config, storage::system_files(), Clock::system());
  if (!server) return failed(server.error());
  fmt::print("tidemarkd: serving on {}, admin socket {}\n", (*server)->address(), (*server)->admin_socket());
  std::fflush(stdout);
  notify_supervisor("READY=1\nSTATUS=serving on " + (*server)->address());
  wait_for_end(set);
  stop(**server, set);
  return kWell;
}

int rebuild(const std::string& data, const RebuildRequest& request) {
  const auto well = rebuild_indexes(data, request);
  if (!well) return failed(well.error(), well.error().code == Code::invalid_argument ? kWrong : kFailed);
  return *well ? kWell : kFailed;
}

int add_directory(const std::string& data, const std::string& path, std::uint32_t partitions) {
  const auto added = add_data_directory(data, path, partitions);
  if (!added) return failed(added.error(), added.error().code == Code::invalid_argument ? kWrong : kFailed);
  return kWell;
}

int check(const std::string& path) {
  const auto config = load_config(path);
  if (!config) return failed(config.error(), kWrong);
  fmt::print("{}: well\n", path);
  return kWell;
}

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App app(kDescription, "tidemarkd");
  app.set_version_flag("--version", "tidemarkd " TIDEMARK_VERSION);
  app.require_subcommand(1);
  app.footer("Exit status: 0 well, 1 it failed, 2 wrong arguments or configuration.");

  std::string path, data, config, listen;
  InitOptions options;
  auto* init_command = app.add_subcommand("init", "Make a data directory: authority, partitions, configuration");
  init_command->add_option("DIR", path, "Directory to make; it must be empty or not exist")->required();
  init_command
      ->add_option("--partitions", options.partitions, "Independent stores, fixed for good; more use more cores")
      ->capture_default_str()
      ->check(CLI::Range(1U, kPartitionsMax));
  init_command->add_option("--name", options.name, "What to call this server (default: the host's name)");
  init_command->add_option(
      "--address", options.addresses,
      "HOST:PORT as agents reach it; may be repeated. The first goes into tokens, all into the certificate");

  init_command->add_option("--data-directory", options.data_directories,
                           "Directory, on a disk of its own, for a part of the partitions; may be repeated. Without "
                           "any, all are in DIR");

  auto* add_command =
      app.add_subcommand("add-directory", "Add a data directory, on a disk of its own (not while it runs)");
  std::uint32_t more = 1;
  add_command->add_option("NEW", path, "Directory to make; or one of this server that was mounted elsewhere")
      ->required();
  add_command->add_option("--data", data, "The data directory of the server")->required();
  add_command->add_option("--partitions", more, "Partitions to make in it")
      ->capture_default_str()
      ->check(CLI::Range(1U, kPartitionsMax));

  auto* rebuild_command =
      app.add_subcommand("rebuild-index", "Make indexes again from log and cold segments alone (not while it runs)");
  RebuildRequest rebuild_request;
  rebuild_command->add_option("--data", data, "The data directory of the server")->required();
  rebuild_command->add_option("--partition", rebuild_request.partitions, "Only this one; may be repeated");
  rebuild_command->add_flag(
      "--check", rebuild_request.check,
      "Only compare: exit status 1 when an index shows something else than log and cold segments");
  rebuild_command->add_option("--config", rebuild_request.config, "Configuration file, as of `run`");

  auto* run_command = app.add_subcommand("run", "Serve a data directory until SIGTERM or SIGINT");
  run_command->add_option("--data", data, "The data directory")->required();
  run_command->add_option("--config", config, "Configuration file (default: tidemarkd.toml in the data directory)");
  run_command->add_option("--listen", listen,
                          "HOST:PORT to listen on, instead of the configuration's; port 0 takes a free one");

  auto* check_command = app.add_subcommand("check-config", "Check a configuration file");
  check_command->add_option("FILE", path, "The file")->required();

  KeyCommands key;
  key.add_to(app);

  auto* certificate = app.add_subcommand("certificate", "The server's own certificate, and those of NBD clients");
  certificate->require_subcommand(1);
  auto* renew_command = certificate->add_subcommand("renew", "Issue it anew, for the same or for other addresses");
  std::vector<std::string> addresses;
  renew_command->add_option("--data", data, "The data directory")->required();
  renew_command->add_option("--address", addresses, "HOST:PORT as agents reach it; replaces those of init");

  std::string client, out;
  auto* client_command = certificate->add_subcommand(
      "client", "Issue one to a client of exports: whoever has it reads every point and writes to clones over NBD");
  client_command->add_option("NAME", client, "Whose it is; the log names it")->required();
  client_command->add_option("--out", out, "Directory for the three files that libnbd and qemu look for")->required();
  client_command->add_option("--data", data, "The data directory")->required();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    fmt::print(stderr, "tidemarkd: {} (`tidemarkd --help` and `tidemarkd COMMAND --help` say what there is)\n",
               error.what());
    return kWrong;
  }
  if (init_command->parsed()) return init(path, options);
  if (run_command->parsed()) return serve(data, config, listen);
  if (check_command->parsed()) return check(path);
  if (add_command->parsed()) return add_directory(data, path, more);
  if (rebuild_command->parsed()) return rebuild(data, rebuild_request);
  if (client_command->parsed()) return issue_client(data, client, out);
  if (renew_command->parsed()) return renew(data, addresses);
  if (key.parsed()) return key.run();
  return kWrong;
}

}  // namespace tidemark::server
