// The Prometheus text of a running server: asks every shard for a copy of its counters. Not on a shard's thread.
#pragma once

#include <string>

namespace tidemark::server {

struct Node;

std::string metrics_text(Node& node);

}  // namespace tidemark::server
