#include "server/directory.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/aligned_buffer.h"
#include "base/hex.h"
#include "base/limits.h"
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

constexpr int kMarkerFormat = 1;

// Makes `path` with its parents, or takes an empty one that is there. What mkfs puts into a new file system does not
// count.
Status claim_empty(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return fail_errno(error.value(), path, "make the directory");
  std::filesystem::directory_iterator entries(path, error);
  if (error) return fail_errno(error.value(), path, "list");
  const bool empty = std::all_of(begin(entries), end(entries),
                                 [](const auto& entry) { return entry.path().filename() == "lost+found"; });
  if (!empty) {
    if (std::filesystem::exists(marker_path(path), error))
      return fail(Code::already_exists, path, "is a data directory already", "name another one");
    const bool ours = std::filesystem::exists(path + "/server.json", error);
    return fail(
        Code::already_exists, path, ours ? "is a data directory already" : "is not empty",
        ours ? "`tidemarkd run --data " + path + "` serves it" : "name a directory that is empty or does not exist");
  }
  if (::chmod(path.c_str(), 0700) != 0) return fail_errno(errno, path, "set the mode of");
  return {};
}

std::string draw_id() {
  std::array<std::byte, 16> id;
  secure_random(id);
  return to_hex(id);
}

Result<std::string> absolute_path(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::canonical(path, error);
  if (error) return fail_errno(error.value(), path, "find");
  return absolute.string();
}

// Its partitions, then the marker: a directory that has one is whole.
Status fill_directory(storage::FileSystem& files, const Superblock& superblock, const DataDirectory& directory,
                      const Clock& clock) {
  for (const PartitionId partition : directory.partitions)
    TIDEMARK_TRY(storage::Partition::create(files, Directory(directory.path).partition(partition), partition,
                                            superblock.server_id));
  const nlohmann::json json = {{"format", kMarkerFormat},
                               {"server_id", superblock.server_id},
                               {"server_name", superblock.name},
                               {"directory_id", directory.id},
                               {"created", format_rfc3339(clock.wall_us())}};
  return write_private_file(marker_path(directory.path),
                            json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

Result<std::vector<DataDirectory>> claim_directories(const InitOptions& options) {
  std::vector<DataDirectory> claimed;
  for (const auto& path : options.data_directories) {
    TIDEMARK_TRY(claim_empty(path));
    const std::string absolute = TIDEMARK_TRY(absolute_path(path));
    for (const DataDirectory& other : claimed)
      if (other.path == absolute)
        return fail(Code::invalid_argument, "--data-directory", "names " + absolute + " twice", "name each once");
    claimed.push_back({draw_id(), absolute, {}});
  }
  for (std::uint32_t i = 0; !claimed.empty() && i < options.partitions; ++i)
    claimed[i % claimed.size()].partitions.push_back(PartitionId(i));
  return claimed;
}

}  // namespace

std::string marker_path(const std::string& directory) { return directory + "/data-directory.json"; }

std::string home_of(const Directory& directory, const Superblock& superblock, PartitionId partition) {
  for (const DataDirectory& further : superblock.directories)
    if (std::find(further.partitions.begin(), further.partitions.end(), partition) != further.partitions.end())
      return further.path;
  return directory.path();
}

Result<DirectoryMarker> read_marker(storage::FileSystem& files, const std::string& directory) {
  const std::string path = marker_path(directory);
  const auto file = files.open(path, storage::OpenMode::read, true);
  if (!file && file.error().code == Code::not_found)
    return fail(Code::not_found, directory, "the data directory is not there: it has no data-directory.json",
                "is its disk mounted? If it is for good elsewhere: `tidemarkd add-directory` with the new path");
  if (!file) return std::unexpected(file.error());
  AlignedBuffer block(limits::kIoAlignment);
  const std::size_t size = TIDEMARK_TRY((*file)->read_at(0, block.span()));
  const auto json =
      nlohmann::json::parse(std::string(reinterpret_cast<const char*>(block.data()), size), nullptr, false);
  const auto damaged = [&] {
    return fail(Code::corrupt, path, "is not the marker of a data directory",
                "restore it from a backup; it never changes");
  };
  if (!json.is_object() || !json.contains("format") || !json["format"].is_number_integer()) return damaged();
  if (json["format"].get<int>() > kMarkerFormat)
    return fail(Code::unsupported, path, "is of a newer format", "run the newer tidemarkd that made it");
  const auto text = [&](const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : std::string();
  };
  DirectoryMarker marker{text("server_id"), text("directory_id")};
  if (marker.server_id.empty() || marker.directory_id.empty()) return damaged();
  return marker;
}

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
  if (options.data_directories.size() > options.partitions)
    return fail(Code::invalid_argument, "--data-directory",
                fmt::format("is given {} times, and there are {} partitions", options.data_directories.size(),
                            options.partitions),
                "each directory holds at least one partition");
  TIDEMARK_TRY(claim_empty(directory.path()));

  Superblock superblock;
  superblock.server_id = draw_id();
  superblock.name = options.name.empty() ? host_name() : options.name;
  superblock.partitions = options.partitions;
  superblock.created_us = clock.wall_us();
  superblock.addresses = options.addresses;
  superblock.first_partitions = options.partitions;
  superblock.directories = TIDEMARK_TRY(claim_directories(options));
  if (!superblock.directories.empty()) superblock.format = kDirectoryFormat;

  TIDEMARK_TRY(make_private_directory(directory.authority()));
  TIDEMARK_TRY(Authority::create(directory.authority(), superblock, clock));
  for (const DataDirectory& further : superblock.directories)
    TIDEMARK_TRY(fill_directory(files, superblock, further, clock));
  for (std::uint32_t i = 0; superblock.directories.empty() && i < superblock.partitions; ++i) {
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

Result<Superblock> add_directory(storage::FileSystem& files, const Directory& directory, const std::string& path,
                                 std::uint32_t partitions, const Clock& clock) {
  Superblock superblock = TIDEMARK_TRY(read_superblock(directory));
  if (const auto marker = read_marker(files, path); marker) {
    for (DataDirectory& known : superblock.directories) {
      if (marker->server_id != superblock.server_id || marker->directory_id != known.id) continue;
      known.path = TIDEMARK_TRY(absolute_path(path));
      TIDEMARK_TRY(write_superblock(directory, superblock));
      return superblock;
    }
    return fail(
        Code::already_exists, path,
        marker->server_id == superblock.server_id
            ? "is left from an add-directory of this server that did not come to its end"
            : "is a data directory of server " + marker->server_id + ", and this is server " + superblock.server_id,
        "name a directory that is empty or does not exist");
  }
  if (partitions == 0 || superblock.partitions + partitions > kPartitionsMax)
    return fail(Code::invalid_argument, "--partitions", fmt::format("is {}", partitions),
                fmt::format("the server has {}, and {} are allowed in all", superblock.partitions, kPartitionsMax));
  TIDEMARK_TRY(claim_empty(path));
  DataDirectory added{draw_id(), TIDEMARK_TRY(absolute_path(path)), {}};
  for (std::uint32_t i = 0; i < partitions; ++i) added.partitions.emplace_back(superblock.partitions + i);
  TIDEMARK_TRY(fill_directory(files, superblock, added, clock));
  superblock.partitions += partitions;
  superblock.format = kDirectoryFormat;
  superblock.directories.push_back(std::move(added));
  TIDEMARK_TRY(write_superblock(directory, superblock));
  return superblock;
}

Status write_superblock(const Directory& directory, const Superblock& superblock) {
  nlohmann::json json = {{"format", superblock.format},
                         {"server_id", superblock.server_id},
                         {"name", superblock.name},
                         {"partitions", superblock.partitions},
                         {"created", format_rfc3339(superblock.created_us)},
                         {"addresses", superblock.addresses}};
  if (superblock.format > 1) {
    json["first_partitions"] = superblock.first_partitions;
    json["directories"] = nlohmann::json::array();
    for (const DataDirectory& further : superblock.directories) {
      nlohmann::json numbers = nlohmann::json::array();
      for (const PartitionId partition : further.partitions) numbers.push_back(partition.value());
      json["directories"].push_back({{"id", further.id}, {"path", further.path}, {"partitions", std::move(numbers)}});
    }
  }
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
    superblock.first_partitions = superblock.partitions;
    if (superblock.format > 1) {
      superblock.first_partitions = json.at("first_partitions").get<std::uint32_t>();
      for (const auto& one : json.at("directories")) {
        DataDirectory further{one.at("id").get<std::string>(), one.at("path").get<std::string>(), {}};
        for (const auto& number : one.at("partitions")) further.partitions.emplace_back(number.get<std::uint32_t>());
        superblock.directories.push_back(std::move(further));
      }
    }
  } catch (const nlohmann::json::exception&) {
    return damaged("a key is missing or of the wrong type");
  }
  std::array<std::byte, 16> id;
  if (superblock.format < 1 || !from_hex(superblock.server_id, id) || superblock.partitions == 0 ||
      superblock.partitions > kPartitionsMax || superblock.first_partitions == 0 ||
      superblock.first_partitions > superblock.partitions)
    return damaged("a value is impossible");
  return superblock;
}

}  // namespace tidemark::server
