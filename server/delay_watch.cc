#include "server/delay_watch.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "server/logging.h"
#include "server/partition_host.h"
#include "server/session.h"
#include "server/shard.h"

namespace tidemark::server {
Status DelayWatch::space() const {
  if (!finding_ || !finding_->no_space) return {};
  return std::unexpected(*finding_->no_space);
}

DelayWatch::Finding DelayWatch::look(const storage::Partition& partition, std::uint64_t lag_max) {
  const auto stats = partition.stats();
  Finding finding;
  if (stats.segments_error && stats.segments_reserved == 0) {
    finding.why = "the log gets no new segment: " + stats.segments_error->message();
    if (stats.segments_error->code == Code::no_space) finding.no_space = stats.segments_error;
  } else if (stats.index_error) {
    finding.why = "the index does not follow the log: " + stats.index_error->message();
  } else if (stats.index_lag_bytes >= lag_max / 2) {
    finding.why = "the index is " + std::to_string(stats.index_lag_bytes >> 20) + " MiB behind the log";
  } else {
    finding.why = "the staging disk is slow: what came seconds ago is not written yet";
  }
  return finding;
}

void DelayWatch::ask() {
  if (asking_) return;
  asking_ = shard_.node().workers.post([this, shard = &shard_, host = &host_] {
    if (shard->node().stopping) return;  // nobody is there to be told
    const auto partition = host->share();
    shard->post([this, finding = partition ? look(*partition, index_lag_max(shard->node())) : Finding()] {
      asking_ = false;
      finding_ = finding;
    });
  });
}

void DelayWatch::tick(const std::vector<Session*>& sessions) {
  const auto now = shard_.now();
  const bool behind =
      std::any_of(sessions.begin(), sessions.end(), [&](const Session* session) { return session->behind(now); });
  // A want of space is looked after until it is over: machines that come back would find out only after a while.
  if (behind || !space()) {
    ask();
  } else {
    finding_.reset();
  }
  const std::size_t before = throttled_;
  throttled_ = 0;
  for (Session* const session : sessions) {
    if (!session->behind(now)) {
      session->relieve();
    } else if (const Status left = space(); !left) {
      session->end(left.error(), retry_after_ms(Code::no_space));
    } else if (finding_) {
      session->throttle(finding_->why);
      ++throttled_;
    }
  }
  if (before == 0 && throttled_ != 0)
    spdlog::warn("staging is behind, agents are asked to wait{}{}{}", kv("partition", host_.id().value()),
                 kv("sessions", throttled_), kv("why", finding_->why));
  if (before != 0 && throttled_ == 0) spdlog::info("staging keeps up again{}", kv("partition", host_.id().value()));
}

}  // namespace tidemark::server
