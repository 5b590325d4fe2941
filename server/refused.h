// A connection that is told why it may not come in, and closed.
#pragma once

#include "server/channel.h"

namespace tidemark::server {

class Refused final : public Channel {
 public:
  using Channel::Channel;

 private:
  Frame on_frame(const wire::FrameHeader&, std::span<const std::byte>) override { return Frame::done; }
  void on_ended(const std::optional<Error>&) override {}
  bool greeted() const override { return false; }
};

}  // namespace tidemark::server
