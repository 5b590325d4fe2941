// What each end believes is durable, and whether the two can be true at once. Both ends ask the same question at every
// Hello and Welcome. Pure functions.
#pragma once

#include <optional>

#include "base/checksum.h"
#include "base/ids.h"
#include "base/status.h"
#include "wire/tidemark.pb.h"

namespace tidemark::wire {

struct History {
  EpochNumber durable_epoch;
  Hash128 durable_digest;
  std::optional<pb::OpenEpoch> open_epoch;  // checked by wire/messages.h
};

// Code::history_diverged when the server knows less than it once acknowledged, or something else: a durable epoch that
// is gone or has another digest; an initial sync of which less is there than was acknowledged. A server that knows more
// is fine: the agent missed a Durable.
std::optional<Error> compare_histories(const History& server, const History& agent);

// Whether the server's open epoch may go on: an initial sync that the agent remembers in agreement, or has simply no
// memory of while nothing else diverged.
bool resumable(const History& server, const History& agent, bool diverged);

}  // namespace tidemark::wire
