#include "storage/integrity_file.h"

#include <cstring>

#include "base/checksum.h"

namespace tidemark::storage {

namespace {

constexpr std::uint32_t kMagic = 0x494d4454;  // "TDMI" in memory
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kSizeMax = 64 << 20;

struct Head {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t size;  // of the record
};
static_assert(sizeof(Head) == 16);

std::string path_of(const std::string& directory) { return directory + "/integrity"; }

}  // namespace

std::vector<std::byte> encode_integrity(const pb::IntegrityRecord& record) {
  const std::string payload = record.SerializeAsString();
  const Head head{.magic = kMagic, .version = kVersion, .size = payload.size()};
  std::vector<std::byte> bytes(sizeof head + payload.size() + sizeof(std::uint32_t));
  std::memcpy(bytes.data(), &head, sizeof head);
  std::memcpy(bytes.data() + sizeof head, payload.data(), payload.size());
  const std::uint32_t crc = crc32c(std::span<const std::byte>(bytes).first(sizeof head + payload.size()));
  std::memcpy(bytes.data() + sizeof head + payload.size(), &crc, sizeof crc);
  return bytes;
}

Result<pb::IntegrityRecord> decode_integrity(std::span<const std::byte> bytes, const std::string& path) {
  const auto damaged = [&](const char* what) {
    return fail(Code::corrupt, path, what, "remove it: what is stored is then checked once more from the begin");
  };
  Head head;
  std::uint32_t crc = 0;
  if (bytes.size() < sizeof head + sizeof crc) return damaged("it is cut off");
  std::memcpy(&head, bytes.data(), sizeof head);
  std::memcpy(&crc, bytes.data() + bytes.size() - sizeof crc, sizeof crc);
  if (head.magic != kMagic) return damaged("it is no record of what was checked");
  if (crc32c(bytes.first(bytes.size() - sizeof crc)) != crc) return damaged("its checksum does not match");
  if (head.version > kVersion) {
    return fail(Code::unsupported, path,
                "it has version " + std::to_string(head.version) + ", which this program does not know",
                "run the version of tidemarkd that wrote it, or a newer one");
  }
  if (head.size != bytes.size() - sizeof head - sizeof crc) return damaged("its length does not match");
  pb::IntegrityRecord record;
  if (!record.ParseFromArray(bytes.data() + sizeof head, static_cast<int>(head.size))) {
    return damaged("it cannot be parsed");
  }
  return record;
}

Status write_integrity(FileSystem& files, const std::string& directory, const pb::IntegrityRecord& record) {
  return write_file_atomically(files, path_of(directory), encode_integrity(record));
}

Result<pb::IntegrityRecord> read_integrity(FileSystem& files, const std::string& directory) {
  const std::string path = path_of(directory);
  if (!TIDEMARK_TRY(files.exists(path))) return pb::IntegrityRecord();
  return decode_integrity(TIDEMARK_TRY(read_whole_file(files, path, kSizeMax)), path);
}

}  // namespace tidemark::storage
