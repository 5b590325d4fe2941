#include "wire/history.h"

#include <string>
#include <utility>

#include "wire/messages.h"

namespace tidemark::wire {
namespace {

Error diverged(std::uint64_t epoch, std::string what) {
  return {Code::history_diverged, "epoch " + std::to_string(epoch), std::move(what),
          "the machine is rescanned; find out whether the data directory was restored from an old copy"};
}

// What the agent was told of an initial sync that the server has not committed since.
const pb::OpenEpoch* told(const History& server, const History& agent) {
  if (!agent.open_epoch || agent.open_epoch->kind() != pb::INITIAL) return nullptr;
  return agent.open_epoch->number() > server.durable_epoch.value() ? &*agent.open_epoch : nullptr;
}

// Why the server's open epoch does not hold what the agent was told of it; empty when it does.
std::string missing(const pb::OpenEpoch& told, const std::optional<pb::OpenEpoch>& open) {
  if (!open || open->number() != told.number() || open->kind() != told.kind())
    return "the server acknowledged a part of this initial sync and does not have it any more";
  if (open->blocks() < told.blocks())
    return "the server acknowledged " + std::to_string(told.blocks()) + " blocks of this initial sync and has " +
           std::to_string(open->blocks());
  if (open->blocks() == told.blocks() && open->sum() != told.sum())
    return "the server has other blocks of this initial sync than it acknowledged";
  for (const auto& position : told.positions()) {
    std::uint64_t has = 0;
    for (const auto& of_server : open->positions())
      if (of_server.disk() == position.disk()) has = of_server.granule();
    if (has < position.granule())
      return "the server acknowledged disk " + std::to_string(position.disk()) + " up to granule " +
             std::to_string(position.granule()) + " and has it up to " + std::to_string(has);
  }
  return {};
}

}  // namespace

std::optional<Error> compare_histories(const History& server, const History& agent) {
  if (server.durable_epoch < agent.durable_epoch)
    return diverged(agent.durable_epoch.value(), "it was acknowledged, but the server's newest is epoch " +
                                                     std::to_string(server.durable_epoch.value()));
  if (server.durable_epoch == agent.durable_epoch && server.durable_digest != agent.durable_digest)
    return diverged(agent.durable_epoch.value(), "server and agent have different content under this number");
  if (const pb::OpenEpoch* open = told(server, agent))
    if (std::string why = missing(*open, server.open_epoch); !why.empty())
      return diverged(open->number(), std::move(why));
  return std::nullopt;
}

bool resumable(const History& server, const History& agent, bool diverged) {
  if (!server.open_epoch || server.open_epoch->kind() != pb::INITIAL) return false;
  const pb::OpenEpoch* open = told(server, agent);
  return open != nullptr ? missing(*open, server.open_epoch).empty() : !diverged;
}

}  // namespace tidemark::wire
