// Every control message: parsed and checked. The first byte chooses the type; a message that passes its check must pass
// it again after it went through a frame.
#include <cstdlib>

#include "wire/messages.h"

using namespace tidemark;
using wire::FrameType;

namespace {

template <typename Message>
void one(FrameType type, std::span<const std::byte> payload) {
  const auto message = wire::decode<Message>(type, payload);
  if (!message) {
    if (message.error().what.empty() || message.error().code == Code::ok) std::abort();
    if (!wire::check(wire::to_message(message.error()))) std::abort();  // any error can be sent
    return;
  }
  const auto frame = wire::encode_control_frame(type, 0, *message);
  if (!frame) return;  // unpacked fields can be longer than they came
  if (!wire::decode<Message>(type, std::span<const std::byte>(*frame).subspan(limits::kFrameHeaderSize))) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto payload = std::as_bytes(std::span(data, size)).subspan(1);
  const auto type = static_cast<FrameType>(data[0] % 27);
  switch (type) {
    case FrameType::hello: one<pb::Hello>(type, payload); break;
    case FrameType::welcome: one<pb::Welcome>(type, payload); break;
    case FrameType::open_disk: one<pb::OpenDisk>(type, payload); break;
    case FrameType::disk_opened: one<pb::DiskOpened>(type, payload); break;
    case FrameType::epoch_begin: one<pb::EpochBegin>(type, payload); break;
    case FrameType::blocks: break;  // block_fuzz
    case FrameType::epoch_commit: one<pb::EpochCommit>(type, payload); break;
    case FrameType::epoch_abort: one<pb::EpochAbort>(type, payload); break;
    case FrameType::durable: one<pb::Durable>(type, payload); break;
    case FrameType::credit: one<pb::Credit>(type, payload); break;
    case FrameType::digest_request: one<pb::DigestRequest>(type, payload); break;
    case FrameType::digest_reply: one<pb::DigestReply>(type, payload); break;
    case FrameType::unchanged: one<pb::Unchanged>(type, payload); break;
    case FrameType::progress: one<pb::Progress>(type, payload); break;
    case FrameType::throttle: one<pb::Throttle>(type, payload); break;
    case FrameType::error: one<pb::Error>(type, payload); break;
    case FrameType::goodbye: one<pb::Goodbye>(type, payload); break;
    case FrameType::ping: one<pb::Ping>(type, payload); break;
    case FrameType::pong: one<pb::Pong>(type, payload); break;
    case FrameType::renew_request: one<pb::RenewRequest>(type, payload); break;
    case FrameType::renew_reply: one<pb::RenewReply>(type, payload); break;
    case FrameType::enroll_request: one<pb::EnrollRequest>(type, payload); break;
    case FrameType::enroll_reply: one<pb::EnrollReply>(type, payload); break;
    case FrameType::epoch_begun: one<pb::EpochBegun>(type, payload); break;
    case FrameType::resend: one<pb::Resend>(type, payload); break;
    default: {
      const std::string_view text(reinterpret_cast<const char*>(payload.data()), payload.size());
      if (!wire::valid_text(wire::clean_text(text))) std::abort();
      if (wire::valid_text(text) && wire::clean_text(text) != text) std::abort();
    }
  }
  return 0;
}
