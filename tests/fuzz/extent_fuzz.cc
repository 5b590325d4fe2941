// The value of an index delta, from any bytes: refused, or decoded within its bounds and the same after a round trip.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "storage/extent_codec.h"
#include "storage/index_keys.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tidemark;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  constexpr Lsn kKey(1'000'000);
  storage::Delta delta;
  for (std::string_view rest = bytes; !rest.empty() && storage::take_delta(rest, kKey, delta);) {
    for (const storage::DeltaExtent& extent : delta.extents) {
      TIDEMARK_CHECK(extent.count > 0 && extent.first + extent.count <= limits::kRegionGranules);
    }
    std::string encoded;
    storage::append_delta(delta, kKey, encoded);
    std::string_view coded = encoded;
    storage::Delta again;
    TIDEMARK_CHECK(storage::take_delta(coded, kKey, again).has_value() && coded.empty());
    TIDEMARK_CHECK(again == delta);
  }
  storage::keys::DeltaKey key;
  if (storage::keys::parse_delta(bytes, key)) {
    TIDEMARK_CHECK(storage::keys::delta(key.volume, key.region, key.lsn).view() == bytes);
  }
  if (const auto mark = storage::keys::decode_mark(bytes)) {
    TIDEMARK_CHECK(storage::keys::encode_mark(*mark) == bytes);
  }
  return 0;
}
