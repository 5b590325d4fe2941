#include "storage/index_keys.h"

namespace tidemark::storage::keys {

std::string encode_mark(const LogMark& mark) {
  std::string bytes;
  for (const std::uint64_t field : {mark.segment.value(), mark.offset, mark.lsn.value(), mark.checksum}) {
    for (unsigned shift = 64; shift != 0; shift -= 8) bytes.push_back(static_cast<char>(field >> (shift - 8)));
  }
  return bytes;
}

Result<LogMark> decode_mark(std::string_view bytes) {
  if (bytes.size() != 32) return fail(Code::corrupt, "index mark", "it is not 32 bytes long");
  return LogMark{.segment = SegmentId(read_big_endian(bytes.substr(0, 8))),
                 .offset = read_big_endian(bytes.substr(8, 8)),
                 .lsn = Lsn(read_big_endian(bytes.substr(16, 8))),
                 .checksum = read_big_endian(bytes.substr(24, 8))};
}

}  // namespace tidemark::storage::keys
