#include "storage/superblock.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/checksum.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kSizeMax = 4096;
constexpr std::string_view kFirstLine = "tidemark partition\n";

// Takes "name = value\n" off the front.
std::optional<std::string_view> take_line(std::string_view& text, std::string_view name) {
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos || !text.starts_with(name)) return std::nullopt;
  std::string_view line = text.substr(name.size(), end - name.size());
  if (!line.starts_with(" = ")) return std::nullopt;
  text.remove_prefix(end + 1);
  return line.substr(3);
}

std::optional<std::uint32_t> number(std::optional<std::string_view> text, int base) {
  if (!text) return std::nullopt;
  std::uint32_t value = 0;
  const auto read = std::from_chars(text->data(), text->data() + text->size(), value, base);
  if (read.ec != std::errc() || read.ptr != text->data() + text->size()) return std::nullopt;
  return value;
}

}  // namespace

std::string encode_superblock(const Superblock& superblock) {
  const std::uint32_t format = superblock.master_keys.empty() ? 1 : 2;
  std::string text = fmt::format("{}format = {}\npartition = {}\nserver = {}\nsalt = {:08x}\n", kFirstLine, format,
                                 superblock.partition.value(), superblock.server_id, superblock.salt);
  if (!superblock.master_keys.empty()) {
    text += "master_keys =";
    for (const MasterKeyId id : superblock.master_keys) text += " " + to_string(id);
    text += "\n";
  }
  text += fmt::format("crc32c = {:08x}\n", crc32c(std::as_bytes(std::span(text))));
  return text;
}

Result<Superblock> decode_superblock(std::string_view text, const std::string& path) {
  const auto damaged = [&](std::string what) {
    return fail(Code::corrupt, path, std::move(what), "restore this file from a backup of the data directory");
  };
  if (!text.starts_with(kFirstLine)) return damaged("this is no superblock of a partition");
  const std::size_t last = text.rfind("crc32c = ");
  if (last == std::string_view::npos || last == 0 || text[last - 1] != '\n') return damaged("its checksum is missing");
  std::string_view tail = text.substr(last);
  const auto stated = number(take_line(tail, "crc32c"), 16);
  const std::string_view covered = text.substr(0, last);
  if (!stated || !tail.empty() || *stated != crc32c(std::as_bytes(std::span(covered)))) {
    return damaged("its checksum does not match");
  }
  std::string_view rest = covered.substr(kFirstLine.size());
  const auto format = number(take_line(rest, "format"), 10);
  if (!format) return damaged("its format version is missing");
  if (*format > kPartitionFormat) {
    return fail(Code::unsupported, path,
                fmt::format("it has format {}, and this program knows formats up to {}", *format, kPartitionFormat),
                "run the version of tidemarkd that wrote it, or a newer one");
  }
  const auto partition = number(take_line(rest, "partition"), 10);
  const auto server = take_line(rest, "server");
  const auto salt = number(take_line(rest, "salt"), 16);
  std::vector<MasterKeyId> master_keys;
  if (*format >= 2) {
    auto listed = take_line(rest, "master_keys");
    while (listed && !listed->empty()) {
      const auto id = parse_master_key_id(listed->substr(0, listed->find(' ')));
      if (!id) return damaged("the id of a master key is none");
      master_keys.push_back(*id);
      listed->remove_prefix(std::min(listed->size(), std::size_t{17}));
    }
    if (master_keys.empty()) return damaged("its master keys are missing");
  }
  if (!partition || !server || !salt || !rest.empty()) return damaged("a line of it is missing or not understood");
  return Superblock{.partition = PartitionId(*partition),
                    .salt = *salt,
                    .server_id = std::string(*server),
                    .master_keys = std::move(master_keys)};
}

Status write_superblock(FileSystem& files, const std::string& directory, const Superblock& superblock) {
  const std::string text = encode_superblock(superblock);
  return write_file_atomically(files, directory + "/partition", std::as_bytes(std::span(text)));
}

Result<Superblock> read_superblock(FileSystem& files, const std::string& directory) {
  const std::string path = directory + "/partition";
  const auto bytes = TIDEMARK_TRY(read_whole_file(files, path, kSizeMax));
  return decode_superblock({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

Status check_superblock(const Superblock& superblock, const std::string& directory, PartitionId id,
                        const std::string& server_id) {
  if (superblock.server_id != server_id) {
    return fail(Code::invalid_argument, directory,
                fmt::format("it belongs to server {}, and this is server {}", superblock.server_id, server_id),
                "start the server with its own data directory");
  }
  if (superblock.partition != id) {
    return fail(Code::corrupt, directory,
                fmt::format("it is partition {}, and stands where partition {} should be", superblock.partition.value(),
                            id.value()),
                "put the directories back under their own names");
  }
  return {};
}

}  // namespace tidemark::storage
