#include "server/directory.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "base/random.h"
#include "net/connect.h"
#include "server/authority.h"
#include "server/config.h"
#include "server/private_file.h"
#include "storage/partition.h"

namespace tidemark::server {
namespace {

Status make_private_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0) return fail_errno(errno, path, "make the directory");
  return {};
}

// Makes `path` with its parents, or takes an empty one that is there.
Status claim_empty(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return fail_errno(error.value(), path, "make the directory");
  std::filesystem::directory_iterator entries(path, error);
  if (error) return fail_errno(error.value(), path, "list");
  if (entries != std::filesystem::directory_iterator()) {
    const bool ours = std::filesystem::exists(path + "/server.json", error);
    return fail(
        Code::already_exists, path, ours ? "is a data directory already" : "is not empty",
        ours ? "`tidemarkd run --data " + path + "` serves it" : "name a directory that is empty or does not exist");
  }
  if (::chmod(path.c_str(), 0700) != 0) return fail_errno(errno, path, "set the mode of");
  return {};
}

}  // namespace

std::string Directory::partition(PartitionId id) const { return fmt::format("{}/partition-{:04}", path_, id.value()); }

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

Result<Superblock> create_directory(storage::FileSystem& files, const Directory& directory, const InitOptions& options,
                                    const Clock& clock) {
  if (options.partitions == 0 || options.partitions > kPartitionsMax)
    return fail(Code::invalid_argument, "--partitions", fmt::format("is {}", options.partitions),
                fmt::format("allowed is 1 to {}", kPartitionsMax));
  for (const auto& address : options.addresses) {
    if (!is_agent_address(address))
      return fail(Code::invalid_argument, "--address", fmt::format("is \"{}\", not an address", address),
                  "write HOST:PORT as agents reach it, like staging.example:7443");
  }
  TIDEMARK_TRY(claim_empty(directory.path()));

  Superblock superblock;
  std::array<std::byte, 16> id;
  secure_random(id);
  superblock.server_id = to_hex(id);
  superblock.name = options.name.empty() ? host_name() : options.name;
  superblock.partitions = options.partitions;
  superblock.created_us = clock.wall_us();
  superblock.addresses = options.addresses;

  TIDEMARK_TRY(make_private_directory(directory.authority()));
  TIDEMARK_TRY(Authority::create(directory.authority(), superblock, clock));
  for (std::uint32_t i = 0; i < superblock.partitions; ++i) {
    const PartitionId partition(i);
    TIDEMARK_TRY(storage::Partition::create(files, directory.partition(partition), partition, superblock.server_id));
  }
  std::uint16_t port = net::kDefaultPort;
  if (!superblock.addresses.empty())
    if (const auto first = net::parse_host_port(superblock.addresses.front())) port = first->port;
  TIDEMARK_TRY(write_private_file(directory.config(), default_config_text(fmt::format("0.0.0.0:{}", port))));
  TIDEMARK_TRY(write_superblock(directory, superblock));
  return superblock;
}

Status write_superblock(const Directory& directory, const Superblock& superblock) {
  const nlohmann::json json = {{"format", superblock.format},
                               {"server_id", superblock.server_id},
                               {"name", superblock.name},
                               {"partitions", superblock.partitions},
                               {"created", format_rfc3339(superblock.created_us)},
                               {"addresses", superblock.addresses}};
  return write_private_file(directory.superblock(),
                            json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

Result<Superblock> read_superblock(const Directory& directory) {
  const std::string path = directory.superblock();
  const auto text = read_private_file(path);
  if (!text && text.error().code == Code::not_found)
    return fail(Code::not_found, directory.path(), "is not a data directory: it has no server.json",
                "make one with `tidemarkd init " + directory.path() + "`");
  if (!text) return std::unexpected(text.error());
  const auto damaged = [&](const char* what) {
    return fail(Code::corrupt, path, what, "restore it from a backup; it is small and never changes");
  };
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("format") || !json["format"].is_number_integer())
    return damaged("not a superblock");
  Superblock superblock;
  superblock.format = json["format"].get<int>();
  if (superblock.format > kDirectoryFormat)
    return fail(
        Code::unsupported, path,
        fmt::format("data directory has format {}, this tidemarkd knows {}", superblock.format, kDirectoryFormat),
        "run the newer tidemarkd that made it");
  try {
    superblock.server_id = json.at("server_id").get<std::string>();
    superblock.name = json.at("name").get<std::string>();
    superblock.partitions = json.at("partitions").get<std::uint32_t>();
    superblock.addresses = json.at("addresses").get<std::vector<std::string>>();
    const auto created = parse_rfc3339(json.at("created").get<std::string>());
    if (!created) return damaged("its time is not one");
    superblock.created_us = *created;
  } catch (const nlohmann::json::exception&) {
    return damaged("a key is missing or of the wrong type");
  }
  std::array<std::byte, 16> id;
  if (superblock.format < 1 || !from_hex(superblock.server_id, id) || superblock.partitions == 0 ||
      superblock.partitions > kPartitionsMax)
    return damaged("a value is impossible");
  return superblock;
}

}  // namespace tidemark::server
