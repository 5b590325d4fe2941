// Frame headers and the assembler: any bytes in any pieces. The first byte chooses the pieces' sizes and the pool.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "wire/frame_assembler.h"

using namespace tidemark;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto input = std::as_bytes(std::span(data, size)).subspan(1);
  if (input.size() >= limits::kFrameHeaderSize) {
    const auto header = input.first<limits::kFrameHeaderSize>();
    if (const auto decoded = wire::decode_frame_header(header)) {
      std::array<std::byte, limits::kFrameHeaderSize> again;
      wire::encode(*decoded, again);
      if (!std::equal(again.begin(), again.end(), header.begin())) std::abort();  // one value, one spelling
    }
  }
  wire::HeapPayloadPool pool((data[0] & 1) != 0 ? limits::kFramePayloadMax : 2048);
  wire::FrameAssembler assembler(pool);
  const std::size_t piece_max = std::size_t{1} << (data[0] >> 4);
  std::size_t taken = 0, frames = 0;
  while (taken < input.size()) {
    if (assembler.frame()) {
      if (assembler.frame()->payload.size() != assembler.frame()->header.payload_size) std::abort();
      assembler.consume();
      ++frames;
      continue;
    }
    const auto space = assembler.space();
    if (space.empty()) break;
    const std::size_t piece = std::min({space.size(), piece_max, input.size() - taken});
    std::memcpy(space.data(), input.data() + taken, piece);
    taken += piece;
    if (!assembler.filled(piece)) break;
  }
  return frames > input.size() / limits::kFrameHeaderSize ? std::abort(), 0 : 0;
}
