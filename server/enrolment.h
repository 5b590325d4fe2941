// One enrolment: a connection on tidemark-enroll/1 that shows a token and gets a certificate.
//
//   worker: the token is good, the name is free, the CSR is signed
//   the machine's shard: its partition serves; a machine enrolled again is there
//   worker: the token is marked used, durably
//   the machine's shard: the record is written
//   here: the answer, once the record is durable
//
// The token is spent before the record is written, so that it can never enrol two machines. When the record cannot be
// written the token is given back. After a crash in between, the token is used and no machine is there: a new token
// enrols it. After a crash (or a cut link) behind the record, the machine is there without an agent that knows it: it
// is enrolled again with a token made for it.
#pragma once

#include <memory>

#include "server/channel.h"

namespace tidemark::server {

class Enrolment final : public Channel {
 public:
  Enrolment(Shard& shard, Arrival arrival) : Channel(shard, std::move(arrival)) {}

 private:
  Frame on_frame(const wire::FrameHeader& header, std::span<const std::byte> payload) override;
  void on_ended(const std::optional<Error>& error) override;
  bool greeted() const override { return false; }

  bool asked_ = false;
};

}  // namespace tidemark::server
