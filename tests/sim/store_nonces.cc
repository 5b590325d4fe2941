#include "tests/sim/store_nonces.h"

#include <charconv>
#include <cstring>
#include <vector>

#include "storage/cold_segment.h"
#include "storage/commit_info.h"
#include "storage/log_format.h"
#include "storage/sealing.h"
#include "storage/segment_keeper.h"
#include "storage/superblock.h"

namespace tidemark::sim {

using namespace storage;

namespace {

std::optional<std::vector<std::byte>> read_all(FileSystem& files, const std::string& path) {
  const auto file = files.open(path, OpenMode::read, false);
  if (!file) return std::nullopt;
  const auto size = (*file)->size();
  if (!size) return std::nullopt;
  std::vector<std::byte> bytes(*size);
  const auto read = (*file)->read_at(0, bytes);
  if (!read || *read != bytes.size()) return std::nullopt;
  return bytes;
}

std::optional<std::uint64_t> number_of(const std::string& name) {
  std::uint64_t number = 0;
  if (!name.ends_with(".segment") || name.starts_with("reserve")) return std::nullopt;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number, 16);
  if (error != std::errc() || *end != '.') return std::nullopt;
  return number;
}

}  // namespace

std::optional<std::string> NonceWatch::note(std::span<const std::byte> block, const std::string& where) {
  wire::BlockHeader header;
  if (block.size() < sizeof header + kSealNonceSize) return std::nullopt;
  std::memcpy(&header, block.data(), sizeof header);
  if (!header.sealed()) return std::nullopt;
  const auto nonce = block.subspan(sizeof header, kSealNonceSize);
  const std::string key(reinterpret_cast<const char*>(nonce.data()), nonce.size());
  // Its hash, which covers the ciphertext, stands for it: what a failed write left of the ciphertext is no second use.
  const Hash128 hash = header.hash();
  const auto [known, fresh] = blocks_.emplace(key, Seen{.hash = hash, .where = where});
  if (fresh || known->second.hash == hash) return std::nullopt;
  return "a nonce was used for two blocks: one was in " + known->second.where + ", the other, of granule " +
         std::to_string(header.first_granule) + " in epoch " + std::to_string(header.epoch) + ", is in " + where;
}

std::optional<std::string> NonceWatch::look(FileSystem& files, const std::string& directory) {
  const auto superblock = read_superblock(files, directory);
  if (!superblock) return std::nullopt;
  for (const std::string& name : files.list(directory + "/log").value_or(std::vector<std::string>())) {
    const auto number = number_of(name);
    const auto bytes = number ? read_all(files, directory + "/log/" + name) : std::nullopt;
    if (!bytes) continue;
    const auto header = parse_segment_header(*bytes, superblock->partition, superblock->salt, SegmentId(*number));
    if (!header) continue;
    CommitExpectation expected{.partition = superblock->partition,
                               .salt = superblock->salt,
                               .segment = SegmentId(*number),
                               .incarnation = Incarnation(header->incarnation),
                               .offset = limits::kIoAlignment,
                               .chain = std::nullopt};
    CommitInfo commit;
    while (expected.offset < bytes->size() &&
           parse_commit(std::span(*bytes).subspan(expected.offset), expected, commit)) {
      for (const BlockPlace& place : commit.blocks) {
        const auto block = std::span(*bytes).subspan(place.offset, limits::kBlockHeaderSize + place.stored_size);
        if (auto wrong = note(block, name + " at " + std::to_string(place.offset))) return wrong;
      }
      expected.offset += commit.size;
    }
  }
  for (const std::string& name : files.list(directory + "/cold").value_or(std::vector<std::string>())) {
    const auto number = number_of(name);
    if (!number) continue;
    const auto file = files.open(directory + "/cold/" + name, OpenMode::read, false);
    const auto bytes = read_all(files, directory + "/cold/" + name);
    if (!file || !bytes) continue;
    const auto table = read_cold_table(**file, cold_segment(*number), superblock->partition, superblock->salt);
    if (!table) continue;
    for (const ColdExtent& extent : *table) {
      if (!extent.extent.sealed) continue;
      const std::size_t size = limits::kBlockHeaderSize + extent.extent.stored_size;
      const auto block = std::span(*bytes).subspan(extent.extent.offset, size);
      if (auto wrong = note(block, "cold " + name + " at " + std::to_string(extent.extent.offset))) return wrong;
    }
  }
  return std::nullopt;
}

}  // namespace tidemark::sim
