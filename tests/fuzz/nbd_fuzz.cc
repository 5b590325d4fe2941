// NBD as clients send it: the handshake in pieces of any size, with and without TLS, then requests. What is answered
// must be bounded by what came, and the machine must end.
#include <cstdlib>
#include <span>

#include "nbd/export_name.h"
#include "nbd/handshake.h"
#include "nbd/request.h"

using namespace tidemark;

namespace {

void transmit(std::span<const std::byte> input, const nbd::Handshake& handshake, const nbd::ExportInfo& info) {
  while (input.size() >= nbd::kRequestSize) {
    const auto request = nbd::parse_request(input.first<nbd::kRequestSize>());
    if (!request) return;
    input = input.subspan(nbd::kRequestSize);
    const auto refused = nbd::check_request(*request, info, handshake.structured(), handshake.allocation());
    if (refused) {
      (void)nbd::error_chunk(*request, refused->error, refused->why);
    } else if (request->command != nbd::Command::flush && request->command != nbd::Command::disconnect &&
               request->offset + request->length > info.size) {
      std::abort();
    }
    input = input.subspan(std::min(request->payload(), input.size()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto tls = static_cast<nbd::Handshake::Tls>(data[0] % 3);
  const std::size_t piece = 1 + data[1];
  const auto all = std::as_bytes(std::span(data, size)).subspan(2);
  const nbd::ExportInfo info{.size = 1_MiB + 512, .read_only = data[0] > 127, .name = "name", .description = "text"};
  nbd::Handshake handshake(tls);
  std::size_t answered = handshake.output().size(), steps = 0;
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t n = std::min(piece, all.size() - at);
    auto input = all.subspan(at, n);
    const auto step = handshake.step(input);
    at += n - input.size();
    if (++steps > 2 * size + 10) std::abort();
    bool begun = false;
    if (step == nbd::Handshake::Step::find) {
      if (handshake.name().size() > nbd::kNameMax) std::abort();
      if (nbd::parse_export_name(handshake.name())) {
        begun = handshake.found(info);
      } else {
        handshake.refused({Code::not_found, handshake.name(), "none", {}});
      }
    }
    if (step == nbd::Handshake::Step::list) handshake.listed({});
    answered += handshake.output().size();
    if (answered > 1000 + 8 * size + 400 * steps) std::abort();
    if (begun) {
      transmit(all.subspan(at), handshake, info);
      return 0;
    }
    if (step == nbd::Handshake::Step::close || step == nbd::Handshake::Step::start_tls) return 0;
  }
  return 0;
}
