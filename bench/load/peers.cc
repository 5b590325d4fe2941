#include "bench/load/peers.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/random.h"
#include "bench/load/child.h"
#include "bench/load/server_watch.h"
#include "net/certificates.h"

namespace tidemark::bench {
namespace {

constexpr auto kTimeout = std::chrono::seconds(300);
constexpr int kConnections = 64, kInFlight = 32;

Result<std::string> need(const std::string& name, const std::string& package) {
  std::string path = find_program(name);
  if (path.empty()) return fail(Code::not_found, name, "it is not installed", "package " + package);
  return path;
}

Result<nlohmann::json> json_of(const std::string& text) {
  // fio says things before its report.
  auto parsed = nlohmann::json::parse(text.substr(std::min(text.size(), text.find('{'))), nullptr, false);
  if (!parsed.is_object()) return fail(Code::protocol, "a program's report", "it is no JSON: " + text.substr(0, 200));
  return parsed;
}

Status write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  if (!(file << text) || !file.flush()) return fail(Code::io, path, "it cannot be written");
  ::chmod(path.c_str(), 0644);  // fio runs as another user; these keys protect a measurement on loopback
  return {};
}

// A tidemarkd, loaded by this very program in a process of its own.
Result<nlohmann::json> our_load(const CompareWork& work, const std::vector<std::string>& options) {
  const std::string server = TIDEMARK_TRY(need("tidemarkd", "tidemark")), data = work.directory + "/data",
                    log = work.directory + "/server.log";
  TIDEMARK_TRY(run_program({server, "init", data, "--partitions", "2", "--address", "127.0.0.1:7443"},
                           work.directory + "/init.log", kTimeout));
  const Child running = TIDEMARK_TRY(Child::start({server, "run", "--data", data, "--listen", "127.0.0.1:0"}, log));
  std::string said;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while ((said = read_file(log)).find("serving on ") == std::string::npos) {
    if (std::chrono::steady_clock::now() > deadline) return fail(Code::timed_out, server, "it does not serve: " + said);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const std::size_t at = said.find("serving on ") + 11;
  std::vector<std::string> command{"/proc/self/exe",
                                   "load",
                                   "--quiet",
                                   "--server",
                                   said.substr(at, said.find(',', at) - at),
                                   "--socket",
                                   data + "/admin.sock",
                                   "--server-pid",
                                   std::to_string(running.pid()),
                                   "--json",
                                   work.directory + "/load.json"};
  command.insert(command.end(), options.begin(), options.end());
  command.front() = TIDEMARK_TRY(need("tidemark-bench", "tidemark"));
  TIDEMARK_TRY(run_program(command, work.directory + "/load.log", kTimeout));
  return json_of(read_file(work.directory + "/load.json"));
}

Result<double> floor(const CompareWork& work, bool disk) {
  const std::string program = TIDEMARK_TRY(need("tls_floor", "of this project's build"));
  std::vector<std::string> command{program, std::to_string(work.mib)};
  if (disk) command.push_back(work.directory + "/floor.img");
  const std::string said = TIDEMARK_TRY(run_program(command, work.directory + "/floor.log", kTimeout));
  const auto report = TIDEMARK_TRY(json_of(said));
  return report.value("cpu_s_per_gib", 0.0);
}

// Certificates as libnbd and the servers look for them.
Status make_pki(const std::string& directory) {
  const auto now = Clock::system().wall_us();
  const auto authority = TIDEMARK_TRY(net::make_authority("comparison", now));
  const auto server = TIDEMARK_TRY(net::issue_server(authority, {"localhost", "127.0.0.1"}, now));
  const auto request = TIDEMARK_TRY(net::make_request("client"));
  std::array<std::byte, MachineId::kSize> id;
  secure_random(id);
  const auto client = TIDEMARK_TRY(net::issue_machine(authority, request.csr_pem, MachineId(id), now));
  std::filesystem::create_directories(directory);
  for (const auto& [name, text] :
       std::initializer_list<std::pair<const char*, std::string>>{{"ca-cert.pem", authority.certificate_pem},
                                                                  {"server-cert.pem", server.certificate_pem},
                                                                  {"server-key.pem", server.key_pem},
                                                                  {"client-cert.pem", client},
                                                                  {"client-key.pem", request.key_pem}})
    TIDEMARK_TRY(write_text(directory + "/" + name, text));
  return {};
}

int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  int port = 0;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0)
    port = ntohs(address.sin_port);
  ::close(fd);
  return port;
}

bool answers(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  const bool well = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return well;
}

struct PeerServer {
  Child process;
  std::string address;  // localhost:PORT
};

Result<PeerServer> serve(const CompareWork& work, Peer peer, const std::string& disk) {
  const std::string pki = work.directory + "/pki", log = work.directory + "/peer.log";
  TIDEMARK_TRY(make_pki(pki));
  const int port = free_port();
  std::vector<std::string> command;
  if (peer == Peer::nbdkit)
    command = {TIDEMARK_TRY(need("nbdkit", "nbdkit")),
               "-f",
               "-p",
               std::to_string(port),
               "-i",
               "127.0.0.1",
               "--tls=require",
               "--tls-certificates=" + pki,
               "--tls-verify-peer",
               "file",
               disk};
  else
    command = {TIDEMARK_TRY(need("qemu-nbd", "qemu-utils")),
               "-b",
               "127.0.0.1",
               "-p",
               std::to_string(port),
               "-f",
               "raw",
               "--cache=none",
               "--aio=io_uring",
               "--object",
               "tls-creds-x509,id=t0,endpoint=server,dir=" + pki + ",verify-peer=on",
               "--tls-creds",
               "t0",
               "-e",
               std::to_string(kConnections),
               "-t",
               disk};
  Child child = TIDEMARK_TRY(Child::start(command, log));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!answers(port)) {
    if (!child.running() || std::chrono::steady_clock::now() > deadline)
      return fail(Code::unavailable, command.front(), "it does not serve: " + read_file(log));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return PeerServer{std::move(child), "localhost:" + std::to_string(port)};
}

// Written once, as every server's files are when it has run for a while.
Status make_disk(const CompareWork& work, const std::string& path, bool random) {
  std::ofstream file(path, std::ios::binary);
  std::vector<std::byte> piece(1 << 20);
  Random source(1);
  for (std::size_t i = 0; i < work.mib; ++i) {
    if (random) source.fill(piece);
    if (!file.write(reinterpret_cast<const char*>(piece.data()), static_cast<std::streamsize>(piece.size())))
      return fail(Code::no_space, path, "it cannot be written");
  }
  return {};
}

Result<double> writes_per_s(const std::string& report) {
  const auto parsed = TIDEMARK_TRY(json_of(report));
  double all = 0;
  for (const auto& job : parsed.value("jobs", nlohmann::json::array())) all += job["write"].value("iops", 0.0);
  if (all == 0) return fail(Code::io, "fio", "it wrote nothing");
  return all;
}

}  // namespace

const char* to_string(Peer peer) { return peer == Peer::nbdkit ? "nbdkit" : "qemu-nbd"; }

Result<double> floor_bulk(const CompareWork& work) { return floor(work, true); }
Result<double> floor_drop(const CompareWork& work) { return floor(work, false); }

Result<double> our_bulk(const CompareWork& work) {
  const auto report = TIDEMARK_TRY(our_load(work, {"--profile", "bulk", "--seconds", fmt::format("{}", work.seconds)}));
  return report.value("server_cpu_s_per_gib", 0.0);
}

Result<double> our_bulk_compressed(const CompareWork& work) {
  const auto report = TIDEMARK_TRY(our_load(work, {"--profile", "bulk", "--compressible", "0.5", "--zstd-level", "1",
                                                   "--seconds", fmt::format("{}", work.seconds)}));
  return report.value("server_cpu_s_per_gib", 0.0);
}

Result<double> our_random(const CompareWork& work) {
  const auto report =
      TIDEMARK_TRY(our_load(work, {"--profile", "random4k", "--machines", std::to_string(kConnections),
                                   "--blocks-per-epoch", std::to_string(kInFlight), "--disk-size",
                                   std::to_string(work.mib << 20), "--seconds", fmt::format("{}", work.seconds)}));
  return report.value("blocks_per_s", 0.0);
}

Result<double> peer_bulk(const CompareWork& work, Peer peer) {
  const std::string copy = TIDEMARK_TRY(need("nbdcopy", "libnbd-bin")), source = work.directory + "/source.img",
                    disk = work.directory + "/disk.img";
  TIDEMARK_TRY(make_disk(work, source, true));
  TIDEMARK_TRY(make_disk(work, disk, false));
  PeerServer server = TIDEMARK_TRY(serve(work, peer, disk));
  const auto before = usage_of(server.process.pid());
  TIDEMARK_TRY(
      run_program({copy, "--flush", "--connections=2", "--no-extents", source,
                   "nbds://" + server.address + "/?tls-certificates=" + work.directory + "/pki&tls-verify-peer=true"},
                  work.directory + "/copy.log", kTimeout));
  const auto after = usage_of(server.process.pid());
  if (!before || !after)
    return fail(Code::unavailable, to_string(peer), "it ended by itself: " + read_file(work.directory + "/peer.log"));
  return (after->cpu_seconds - before->cpu_seconds) / (static_cast<double>(work.mib) / 1024);
}

Result<double> peer_random(const CompareWork& work, Peer peer) {
  const std::string fio = TIDEMARK_TRY(need("fio", "fio")), disk = work.directory + "/disk.img",
                    home = work.directory + "/home";
  TIDEMARK_TRY(make_disk(work, disk, false));
  PeerServer server = TIDEMARK_TRY(serve(work, peer, disk));
  // libnbd takes certificates from the home directory, but root's from /etc: so fio runs as nobody.
  const std::string pki = home + "/.pki/libnbd";
  std::filesystem::create_directories(pki);
  std::filesystem::copy(work.directory + "/pki", pki, std::filesystem::copy_options::recursive);
  std::vector<std::string> command;
  if (::geteuid() == 0) {
    command = {TIDEMARK_TRY(need("setpriv", "util-linux")), "--reuid=nobody", "--regid=nogroup", "--clear-groups"};
    // mkdtemp made the directory above for its owner alone.
    ::chmod(work.directory.c_str(), 0755);
    ::chmod(std::filesystem::path(work.directory).parent_path().c_str(), 0755);
  }
  command.insert(command.end(), {"/usr/bin/env", "HOME=" + home, fio, "--name=w", "--ioengine=nbd",
                                 "--uri=nbds://" + server.address + "/", "--rw=randwrite", "--bs=4k",
                                 fmt::format("--iodepth={}", kInFlight), fmt::format("--fsync={}", kInFlight),
                                 fmt::format("--numjobs={}", kConnections), fmt::format("--size={}m", work.mib),
                                 "--time_based", fmt::format("--runtime={}", static_cast<int>(work.seconds)),
                                 "--thread", "--group_reporting", "--norandommap", "--output-format=json"});
  return writes_per_s(TIDEMARK_TRY(run_program(command, work.directory + "/fio.log", kTimeout)));
}

Result<double> disk_random(const CompareWork& work) {
  const std::string fio = TIDEMARK_TRY(need("fio", "fio")), disk = work.directory + "/disk.img";
  TIDEMARK_TRY(make_disk(work, disk, false));
  return writes_per_s(TIDEMARK_TRY(run_program(
      {fio, "--name=w", "--filename=" + disk, "--ioengine=io_uring", "--direct=1", "--rw=randwrite", "--bs=4k",
       fmt::format("--iodepth={}", kInFlight), fmt::format("--fdatasync={}", kInFlight),
       fmt::format("--size={}m", work.mib), "--time_based", fmt::format("--runtime={}", static_cast<int>(work.seconds)),
       "--norandommap", "--output-format=json"},
      work.directory + "/fio.log", kTimeout)));
}

}  // namespace tidemark::bench
