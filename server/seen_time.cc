#include "server/seen_time.h"

#include <spdlog/spdlog.h>

#include "server/logging.h"
#include "server/private_file.h"
#include "server/worker_pool.h"

namespace tidemark::server {

SeenTime::SeenTime(std::string path) : path_(std::move(path)) {
  const auto text = read_private_file(path_);
  if (!text) {
    if (text.error().code != Code::not_found) spdlog::warn("time not read{}", kv(text.error()));
    return;
  }
  const auto line = text->substr(0, text->find('\n'));
  if (const auto time = parse_rfc3339(line)) {
    at_start_ = *time;
  } else {
    spdlog::warn("time not understood{}{}", kv("path", path_), kv("text", line.substr(0, 64)));
  }
}

void SeenTime::note(WallMicros now_us, std::chrono::steady_clock::time_point monotonic, WorkerPool& workers) {
  noted_us_ = now_us;
  const auto now = monotonic.time_since_epoch().count();
  auto at = write_at_.load();
  if (now < at) return;
  const auto next = (monotonic + kWriteEvery).time_since_epoch().count();
  if (!write_at_.compare_exchange_strong(at, next)) return;  // another shard does it
  auto job = [this] {
    if (const auto written = write(); !written) spdlog::warn("time not written{}", kv(written.error()));
  };
  if (!workers.post(job)) write_at_ = at;
}

Status SeenTime::write() {
  const WallMicros time = noted_us_;
  if (time == 0) return {};
  return write_private_file(path_, format_rfc3339(time) + "\n");
}

}  // namespace tidemark::server
