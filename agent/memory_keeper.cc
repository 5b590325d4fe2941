#include "agent/memory_keeper.h"

namespace tidemark::agent {
namespace {
constexpr auto kProgressInterval = std::chrono::seconds(1);
}

MemoryKeeper::MemoryKeeper(std::filesystem::path path, Memory memory, std::string boot_id)
    : path_(std::move(path)), memory_(std::move(memory)), boot_id_(std::move(boot_id)) {}

Memory MemoryKeeper::get() const {
  const std::lock_guard lock(mutex_);
  return memory_;
}

Status MemoryKeeper::save() { return save_memory(path_, memory_); }

Status MemoryKeeper::set_pending(EpochFacts epoch) {
  const std::lock_guard lock(mutex_);
  memory_.pending = std::move(epoch);
  return save();
}

Status MemoryKeeper::durable(const wire::AgentMemory& session, EpochNumber epoch, const Hash128& digest) {
  const std::lock_guard lock(mutex_);
  memory_.session = session;
  memory_.became_durable(epoch, digest, boot_id_);
  return save();
}

Status MemoryKeeper::session_changed(const wire::AgentMemory& session) {
  const std::lock_guard lock(mutex_);
  memory_.session = session;
  return save();
}

Status MemoryKeeper::progress(const wire::AgentMemory& session) {
  const std::lock_guard lock(mutex_);
  memory_.session = session;
  const auto now = std::chrono::steady_clock::now();
  if (now - progress_saved_ < kProgressInterval) return {};
  progress_saved_ = now;
  return save();
}

Status MemoryKeeper::change(const std::function<void(Memory&)>& change) {
  const std::lock_guard lock(mutex_);
  change(memory_);
  return save();
}

}  // namespace tidemark::agent
