// Control records, index entries, the superblock and the list of released segments, from any bytes. The first byte
// chooses which.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/check.h"
#include "storage/epoch_progress.h"
#include "storage/released.h"
#include "storage/superblock.h"

namespace {

template <typename Message>
void parse(std::string_view bytes) {
  tidemark::storage::RecordInfo record;
  record.control = bytes;
  const auto parsed = tidemark::storage::parse_record<Message>(record);
  if (parsed) TIDEMARK_CHECK(Message().ParseFromString(parsed->SerializeAsString()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tidemark::storage;
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 11) {
    case 0: parse<pb::MachineRecord>(bytes); break;
    case 1: parse<pb::EpochBeginRecord>(bytes); break;
    case 2: parse<pb::EpochCommitRecord>(bytes); break;
    case 3: parse<pb::EpochAbortRecord>(bytes); break;
    case 4: parse<pb::EpochEntry>(bytes); break;
    case 5: parse<pb::OpenEpochEntry>(bytes); break;
    case 6: parse<pb::AbortedRanges>(bytes); break;
    case 9: parse<pb::HistoryRecord>(bytes); break;
    case 10: parse<pb::MachineHomes>(bytes); break;
    case 7: {
      const auto superblock = decode_superblock(bytes, "fuzz");
      if (superblock) TIDEMARK_CHECK(decode_superblock(encode_superblock(*superblock), "fuzz") == superblock);
      break;
    }
    case 8: {
      const auto released = decode_released(std::as_bytes(std::span(bytes)), "fuzz");
      if (released) TIDEMARK_CHECK(encode_released(*released).size() == bytes.size());
      break;
    }
  }
  return 0;
}
