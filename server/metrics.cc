#include "server/metrics.h"

#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <limits>
#include <span>
#include <sstream>

#include "server/nbd_service.h"
#include "server/node.h"
#include "server/partition_host.h"
#include "server/session.h"
#include "server/shard.h"

namespace tidemark::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Families {
 public:
  void counter(const char* name, const char* help, double value, Labels labels = {}) {
    add(name, help, MetricType::Counter, std::move(labels)).counter.value = value;
  }
  void gauge(const char* name, const char* help, double value, Labels labels = {}) {
    add(name, help, MetricType::Gauge, std::move(labels)).gauge.value = value;
  }
  // `counts` of what was at most bound(i); the last one: of all above.
  void histogram(const char* name, const char* help, std::span<const std::uint64_t> counts, double sum,
                 const std::function<double(std::size_t)>& bound, Labels labels = {}) {
    ClientMetric& metric = add(name, help, MetricType::Histogram, std::move(labels));
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      count += counts[i];
      metric.histogram.bucket.push_back(
          {.cumulative_count = count,
           .upper_bound = i + 1 < counts.size() ? bound(i) : std::numeric_limits<double>::infinity()});
    }
    metric.histogram.sample_count = count;
    metric.histogram.sample_sum = sum;
  }
  std::string text() const {
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, families_);
    return out.str();
  }

 private:
  ClientMetric& add(const char* name, const char* help, MetricType type, Labels labels) {
    auto found = std::find_if(families_.begin(), families_.end(),
                              [&](const MetricFamily& family) { return family.name == name; });
    if (found == families_.end()) {
      families_.push_back({name, help, type, {}});
      found = std::prev(families_.end());
    }
    ClientMetric& metric = found->metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }
  std::vector<MetricFamily> families_;
};

constexpr char kMemoryHelp[] = "Memory by purpose";
constexpr char kCreditHelp[] = "Bytes of blocks that connected agents may still send, or are granted later";

struct HostSample {
  PartitionHost::Health health;
  std::size_t sessions = 0, waiting_for_room = 0, throttled = 0;
  std::uint64_t quarantined = 0, alarms = 0, machines = 0, clones = 0, dropped = 0, damaged = 0, damaged_newest = 0;
  bool clock_held = false;
  SpaceWatch::Totals space;
  struct MachineBytes {
    std::string name;
    std::uint64_t logical, stored;
  };
  std::vector<MachineBytes> machine_bytes;
  std::shared_ptr<storage::Partition> partition;
  bool index_rebuilt = false;
  double lag_seconds_max = 0;
};

struct ShardSample {
  ShardCounters counters;
  double cpu_seconds = 0;
  std::size_t channels = 0, frames_in_use = 0, frames_kept = 0, frames_waiting = 0, frames_budget = 0;
  std::size_t ring_operations = 0;
  Shard::Credit credit;
  std::uint32_t handshakes = 0;
  std::vector<HostSample> hosts;
};

ShardSample sample(Shard& shard) {
  ShardSample s;
  s.counters = shard.counters();
  s.cpu_seconds = shard.cpu_seconds();
  s.channels = shard.channels();
  s.ring_operations = shard.ring_operations();
  s.credit = shard.credit();
  s.frames_in_use = shard.frames().in_use();
  s.frames_kept = shard.frames().kept();
  s.frames_waiting = shard.frames().waiting();
  s.frames_budget = shard.frames().budget();
  s.handshakes = shard.handshakes().taken();
  for (const auto& host : shard.hosts()) {
    HostSample h;
    h.health = host->health();
    h.sessions = host->session_count();
    h.waiting_for_room = host->waiting_for_room();
    h.throttled = host->throttled();
    h.quarantined = host->quarantined();
    h.alarms = host->alarms();
    if (const auto* retention = host->retention()) {
      h.dropped = retention->dropped();
      h.clock_held = retention->held().has_value();
    }
    h.machines = host->machine_count();
    h.clones = host->clone_count();
    h.damaged = host->damaged().size();
    for (const auto& [id, damage] : host->damaged()) h.damaged_newest += damage.newest ? 1 : 0;
    h.space = host->space().totals();
    if (host->partition() != nullptr) {
      host->partition()->for_each_machine([&](const storage::MachineState& machine) {
        if (machine.record.removed()) return;
        const MachineRoom& room = host->space().room(machine_id_of(machine.record));
        h.machine_bytes.push_back({machine.record.name(), room.logical_bytes, room.stored_bytes});
      });
    }
    h.partition = host->share();
    h.index_rebuilt = host->index_rebuilt();
    h.lag_seconds_max = host->lag_seconds_max();
    s.hosts.push_back(std::move(h));
  }
  return s;
}

void add_shard(Families& out, const Shard& shard, const ShardSample& s) {
  const Labels labels = {{"shard", std::to_string(shard.index())}};
  const ShardCounters& c = s.counters;
  const auto n = [](std::uint64_t value) { return static_cast<double>(value); };
  out.counter("tidemark_shard_cpu_seconds_total", "CPU time of the shard's thread", s.cpu_seconds, labels);
  out.counter("tidemark_shard_turns_total", "Turns of the shard's loop", n(c.turns), labels);
  out.gauge("tidemark_ring_operations", "Reads and writes that the shard's ring has under way", n(s.ring_operations),
            labels);
  out.gauge("tidemark_ring_operations_max", "The most there were at the end of a turn", n(c.ring_operations_max),
            labels);
  out.gauge("tidemark_credit_bytes", kCreditHelp, n(s.credit.granted), {labels[0], {"what", "granted"}});
  out.gauge("tidemark_credit_bytes", kCreditHelp, n(s.credit.withheld), {labels[0], {"what", "withheld"}});
  out.gauge("tidemark_memory_bytes", kMemoryHelp, n(s.frames_in_use + s.frames_kept),
            {labels[0], {"purpose", "frame_buffers"}});
  out.gauge("tidemark_connections", "Connections that finished their handshake", n(s.channels), labels);
  out.gauge("tidemark_handshakes_in_flight", "TLS handshakes under way", s.handshakes, labels);
  out.gauge("tidemark_frame_pool_bytes", "Frame buffers handed out", n(s.frames_in_use), labels);
  out.gauge("tidemark_frame_pool_kept_bytes", "Frame buffers kept for the next frame", n(s.frames_kept), labels);
  out.gauge("tidemark_frame_pool_limit_bytes", "What the frame buffers may take", n(s.frames_budget), labels);
  out.gauge("tidemark_frame_pool_waiting", "Sessions that wait for a frame buffer", n(s.frames_waiting), labels);
  out.counter("tidemark_accepted_total", "Connections accepted", n(c.connections), labels);
  out.counter("tidemark_handshakes_total", "TLS handshakes done", n(c.handshakes), labels);
  out.counter("tidemark_handshakes_resumed_total", "Of these, resumed ones", n(c.handshakes_resumed), labels);
  out.counter("tidemark_sessions_started_total", "Sessions that were welcomed", n(c.sessions_total), labels);
  out.counter("tidemark_sessions_replaced_total", "Sessions that gave way to a newer one of their machine",
              n(c.sessions_replaced), labels);
  out.counter("tidemark_enrolments_total", "Machines enrolled", n(c.enrolments), labels);
  out.counter("tidemark_renewals_total", "Certificates renewed", n(c.renewals), labels);
  out.counter("tidemark_received_bytes_total", "Bytes of frames received", n(c.bytes_in), labels);
  out.counter("tidemark_received_frames_total", "Frames received", n(c.frames_in), labels);
  out.counter("tidemark_received_block_bytes_total", "Bytes of blocks frames' payloads received", n(c.blocks_bytes_in),
              labels);
  out.counter("tidemark_epochs_durable_total", "Epochs that became durable", n(c.epochs_durable), labels);
  out.counter("tidemark_epochs_aborted_total", "Epochs that were given up: by their agents, or after a cut",
              n(c.epochs_aborted), labels);
  out.counter("tidemark_waits_total", "Frames that waited", n(c.pauses_for_room), {labels[0], {"for", "log"}});
  out.counter("tidemark_waits_total", "Frames that waited", n(c.pauses_for_memory), {labels[0], {"for", "memory"}});
  out.counter("tidemark_throttles_total", "Sessions that were asked to wait, because the staging disk is behind",
              n(c.throttles), labels);
  out.counter("tidemark_resends_total", "Times that an agent was asked to send damaged ranges again", n(c.resends),
              labels);
  out.counter("tidemark_digest_chunks_total", "Chunks digested for agents", n(c.digest_chunks), labels);
  out.counter("tidemark_history_diverged_total", "Sessions whose agent and server disagreed on what is durable",
              n(c.history_diverged), labels);
}

void add_directory(Families& out, const DataDirectories::View& directory) {
  const Labels labels = {{"directory", directory.path}};
  out.gauge("tidemark_directory_well", "1: the data directory is there and can be used; 0: it failed",
            directory.state ? 1 : 0, labels);
  out.gauge("tidemark_directory_space_bytes", "The file system of a data directory",
            static_cast<double>(directory.space.total), {labels[0], {"what", "total"}});
  out.gauge("tidemark_directory_space_bytes", "The file system of a data directory",
            static_cast<double>(directory.space.available), {labels[0], {"what", "available"}});
}

void add_partition(Families& out, const HostSample& h) {
  const Labels labels = {{"partition", std::to_string(h.health.id.value())}};
  const auto n = [](std::uint64_t value) { return static_cast<double>(value); };
  using enum PartitionHost::State;
  for (const auto state : {opening, rebuilding, serving, stopped, fenced})
    out.gauge("tidemark_partition_state", "1 for the state the partition is in", h.health.state == state ? 1 : 0,
              {labels[0], {"state", to_string(state)}});
  out.gauge("tidemark_sessions", "Machines connected", n(h.sessions), labels);
  out.gauge("tidemark_machines", "Machines enrolled", n(h.machines), labels);
  out.gauge("tidemark_clones", "Clones of points", n(h.clones), labels);
  out.gauge("tidemark_machines_quarantined", "Machines with a newcomer that an administrator must decide on",
            n(h.quarantined), labels);
  out.gauge("tidemark_machines_without_new_point", "Machines for which the alarm \"no new point\" is on", n(h.alarms),
            labels);
  out.counter("tidemark_epochs_expired_total", "Epochs that nothing held any more", n(h.dropped), labels);
  out.gauge("tidemark_retention_clock_held", "1: the clock leapt ahead, and nothing expires by that yet", h.clock_held,
            labels);
  out.gauge("tidemark_machine_lag_seconds_max", "The largest lag of any machine", h.lag_seconds_max, labels);
  out.gauge("tidemark_log_waiting_sessions", "Sessions that wait for room in the log", n(h.waiting_for_room), labels);
  out.gauge("tidemark_index_rebuilt", "1 when the last start had to make the index again from the log",
            h.index_rebuilt ? 1 : 0, labels);
  out.gauge("tidemark_index_rebuild_ratio", "How far the rebuild of the index is; 1 when there is none",
            h.health.percent ? *h.health.percent / 100.0 : 1, labels);
  out.gauge("tidemark_throttled_sessions", "Sessions that are asked to wait now", n(h.throttled), labels);
  const char* const machines_help =
      "Machines whose quota is nearly or wholly used up, or that want of space slows or pauses";
  const auto machines = [&](const char* what, std::size_t count) {
    out.gauge("tidemark_machines_short_of_space", machines_help, n(count), {labels[0], {"what", what}});
  };
  machines("near_quota", h.space.near_quota);
  machines("over_quota", h.space.over_quota);
  machines("slowed", h.space.slowed);
  machines("paused", h.space.paused);
  for (const auto& machine : h.machine_bytes) {
    const Labels of = {{"machine", machine.name}};
    out.gauge("tidemark_machine_logical_bytes", "Size of a machine's disks", n(machine.logical), of);
    out.gauge("tidemark_machine_stored_bytes", "Bytes of the blocks that a machine's versions refer to",
              n(machine.stored), of);
  }
  if (h.partition == nullptr) return;
  const auto stats = h.partition->stats();
  out.counter("tidemark_log_commits_total", "Commits written", n(stats.log.commits), labels);
  out.counter("tidemark_log_records_total", "Records in them", n(stats.log.records), labels);
  out.counter("tidemark_log_payload_bytes_total", "Bytes of their payloads", n(stats.log.payload_bytes), labels);
  out.counter("tidemark_log_written_bytes_total", "Bytes written", n(stats.log.written_bytes), labels);
  out.counter("tidemark_log_write_seconds_total", "Time that writes took, in all", n(stats.log.write_us_total) / 1e6,
              labels);
  out.gauge("tidemark_log_write_seconds_max", "The longest write", n(stats.log.write_us_max) / 1e6, labels);
  out.counter("tidemark_log_write_failures_total", "Failed writes that went to a fresh segment", n(stats.log.failures),
              labels);
  const auto doubling = [](double least) {
    return [least](std::size_t i) { return least * static_cast<double>(std::uint64_t{1} << i); };
  };
  out.histogram("tidemark_log_commit_bytes", "Sizes of commits", stats.log.sizes, n(stats.log.commit_bytes),
                doubling(n(storage::Log::Counters::kSizeLeast)), labels);
  out.histogram("tidemark_log_commit_records", "How many records were gathered into a commit", stats.log.gathered,
                n(stats.log.records), doubling(1), labels);
  out.gauge("tidemark_log_commits_in_flight", "Commits that are being written", stats.log.in_flight, labels);
  out.gauge("tidemark_log_commits_in_flight_target", "Commits that may be written at a time now",
            stats.log.in_flight_target, labels);
  out.gauge("tidemark_log_lsn", "Last LSN", n(stats.last_lsn.value()), {labels[0], {"mark", "appended"}});
  out.gauge("tidemark_log_lsn", "Last LSN", n(stats.durable_lsn.value()), {labels[0], {"mark", "durable"}});
  out.gauge("tidemark_log_lsn", "Last LSN", n(stats.indexed_lsn.value()), {labels[0], {"mark", "indexed"}});
  out.gauge("tidemark_log_segments", "Segments of the log", n(stats.segments), labels);
  out.gauge("tidemark_log_segments_reserved", "Formatted segments in reserve", n(stats.segments_reserved), labels);
  out.gauge("tidemark_log_segment_bytes", "Size of a segment", n(stats.segment_size), labels);
  out.gauge("tidemark_cold_segments", "Cold segments", n(stats.cold_segments), labels);
  out.counter("tidemark_segments_settled_total", "Segments of which what is needed was moved",
              n(stats.settler.segments_settled), labels);
  out.counter("tidemark_settled_blocks_total", "Blocks moved into cold segments", n(stats.settler.blocks_moved),
              labels);
  out.counter("tidemark_settled_bytes_total", "Bytes moved into cold segments", n(stats.settler.bytes_moved), labels);
  out.counter("tidemark_records_carried_total", "Records written again because their segment goes",
              n(stats.settler.records_carried), labels);
  out.counter("tidemark_points_dropped_total", "Recovery points dropped", n(stats.settler.points_dropped), labels);
  out.counter("tidemark_versions_folded_total", "Versions that no recovery point shows, taken out of the index",
              n(stats.settler.versions_dropped), labels);
  out.gauge("tidemark_settle_debt_bytes", "Log that could be settled, and had not been when the settler last looked",
            n(stats.settler.segments_due * stats.segment_size), labels);
  out.gauge("tidemark_machines_too_many_points",
            "Machines with more points than one record tells of: their old log stays", n(stats.settler.too_many_points),
            labels);
  out.gauge("tidemark_settling_failed", "1 while settling cannot go on", stats.settler.error ? 1.0 : 0.0, labels);
  out.gauge("tidemark_index_lag_bytes", "Log that the index has yet to apply", n(stats.index_lag_bytes), labels);
  out.gauge("tidemark_index_disk_bytes", "The index on disk", n(stats.index.disk_bytes), labels);
  out.gauge("tidemark_memory_bytes", kMemoryHelp, n(stats.index.memory_bytes), {labels[0], {"purpose", "index"}});
  out.gauge("tidemark_memory_bytes", kMemoryHelp, n(stats.log.buffer_bytes),
            {labels[0], {"purpose", "commit_buffers"}});
  out.gauge("tidemark_memory_bytes", kMemoryHelp, n(limits::kCommitBuffers * limits::kCommitSizeMax),
            {labels[0], {"purpose", "commit_buffers_limit"}});
  out.gauge("tidemark_space_bytes", "The file system of the data directory", n(stats.space.total),
            {labels[0], {"what", "total"}});
  out.gauge("tidemark_space_bytes", "The file system of the data directory", n(stats.space.available),
            {labels[0], {"what", "available"}});
  const auto& checked = stats.checker;
  out.gauge("tidemark_log_lsn", "Last LSN", n(checked.checked_lsn.value()), {labels[0], {"mark", "verified"}});
  out.gauge("tidemark_verify_behind_seconds", "How long there has been new data that is not read back yet",
            checked.seconds_behind, labels);
  out.counter("tidemark_verified_bytes_total", "New data that was read back and decoded", n(checked.verified_bytes),
              labels);
  out.counter("tidemark_verified_blocks_total", "Blocks of it", n(checked.verified_blocks), labels);
  out.counter("tidemark_scrubbed_bytes_total", "Data that scrubs have read", n(checked.scrubbed_bytes), labels);
  out.counter("tidemark_scrubs_total", "Scrubs that came to their end", n(checked.scrubs), labels);
  const auto scrub = h.partition->checker().scrub();
  out.gauge("tidemark_scrub_running", "1 while a scrub is under way", scrub.running ? 1 : 0, labels);
  out.gauge("tidemark_scrub_completed_seconds", "When the last scrub came to its end, since 1970; 0: none did",
            n(static_cast<std::uint64_t>(scrub.completed_us)) / 1e6, labels);
  out.counter("tidemark_damage_found_total", "Damaged blocks that were found", n(checked.damage_found), labels);
  out.gauge("tidemark_damaged_blocks", "Blocks that are known to be damaged and that something still needs",
            n(checked.damaged_extents), labels);
  out.gauge("tidemark_damaged_segments", "Segments whose own records or table are damaged", n(checked.damaged_segments),
            labels);
  out.gauge("tidemark_machines_damaged", "Machines with damage, by what of them is affected", n(h.damaged_newest),
            {labels[0], {"affected", "newest"}});
  out.gauge("tidemark_machines_damaged", "Machines with damage, by what of them is affected",
            n(h.damaged - h.damaged_newest), {labels[0], {"affected", "older"}});
  out.gauge("tidemark_checking_failed", "1 while checking cannot go on", checked.error ? 1.0 : 0.0, labels);
  const std::uint64_t log = stats.segments * stats.segment_size, held = log + stats.cold_bytes;
  const auto store = [&](const char* what, std::uint64_t bytes) {
    out.gauge("tidemark_store_bytes", "What a partition takes, by what it is for", n(bytes),
              {labels[0], {"what", what}});
  };
  store("stored", stats.stored_bytes);
  store("log", log);
  store("cold", stats.cold_bytes);
  store("reserve", stats.segments_reserved * stats.segment_size);
  store("garbage", held - std::min(held, stats.stored_bytes));
  store("index", stats.index.disk_bytes);
  out.counter("tidemark_damaged_reads_total", "Reads that found damage", n(stats.damaged_reads), labels);
}

}  // namespace

namespace {

// The process as the system accounts for it.
void add_process(Families& out) {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  out.counter("tidemark_process_cpu_seconds_total", "CPU time of all threads, user and system",
              seconds(used.ru_utime) + seconds(used.ru_stime));
  std::ifstream memory("/proc/self/statm");
  std::uint64_t size = 0, resident = 0;
  if (memory >> size >> resident)
    out.gauge("tidemark_process_resident_bytes", "Memory of the process that is resident",
              static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)));
}

void add_nbd(Families& out, NbdService& nbd) {
  const auto n = [](std::uint64_t value) { return static_cast<double>(value); };
  const NbdCounters& c = nbd.counters();
  const auto cache = nbd.cache()->stats();
  out.gauge("tidemark_nbd_connections", "NBD clients connected", nbd.admission().taken());
  out.gauge("tidemark_nbd_exports", "Points and disks of clones that are open", n(nbd.exports()));
  out.gauge("tidemark_nbd_memory_bytes", "Of requests under way", n(nbd.memory().used()));
  out.gauge("tidemark_memory_bytes", kMemoryHelp, n(nbd.memory().used()), {{"purpose", "nbd_requests"}});
  out.gauge("tidemark_memory_bytes", kMemoryHelp, n(cache.bytes + nbd.cache()->regions().bytes()),
            {{"purpose", "nbd_cache"}});
  out.gauge("tidemark_nbd_unindexed_bytes", "Written to clones and not in the index yet", n(nbd.unindexed_bytes()));
  out.gauge("tidemark_nbd_cache_bytes", "Of decoded blocks", n(cache.bytes));
  out.counter("tidemark_nbd_cache_total", "Blocks that were looked for among the decoded", n(cache.hits),
              {{"found", "yes"}});
  out.counter("tidemark_nbd_cache_total", "Blocks that were looked for among the decoded", n(cache.misses),
              {{"found", "no"}});
  out.counter("tidemark_nbd_clients_total", "NBD clients that got an export", n(c.connections));
  out.counter("tidemark_nbd_refused_total", "NBD clients, or names they asked for, that were refused", n(c.refused));
  out.counter("tidemark_nbd_requests_total", "Requests of NBD clients", n(c.requests));
  out.counter("tidemark_nbd_reads_total", "Reads by who carried them out", n(c.shard_reads), {{"by", "shard"}});
  out.counter("tidemark_nbd_reads_total", "Reads by who carried them out", n(c.worker_reads), {{"by", "worker"}});
  out.counter("tidemark_nbd_errors_total", "Requests that were answered with an error", n(c.errors));
  out.counter("tidemark_nbd_flushes_total", "Flushes asked for", n(c.flushes));
  out.counter("tidemark_nbd_bytes_total", "Asked for by NBD clients", n(c.read_bytes), {{"what", "read"}});
  out.counter("tidemark_nbd_bytes_total", "Asked for by NBD clients", n(c.written_bytes), {{"what", "written"}});
}

}  // namespace

std::string metrics_text(Node& node) {
  Families out;
  add_process(out);
  out.gauge("tidemark_build_info", "1; the version is a label", 1, {{"version", TIDEMARK_VERSION}});
  out.gauge("tidemark_uptime_seconds", "Since the server started",
            static_cast<double>(node.clock.wall_us() - node.started_us) / 1e6);
  out.gauge("tidemark_sessions_limit", "How many connections may be there at a time", node.sessions.limit());
  out.gauge("tidemark_sessions_taken", "How many are", node.sessions.taken());
  out.gauge("tidemark_worker_queue", "Jobs that wait for a worker", static_cast<double>(node.workers.queued()));
  add_nbd(out, *node.nbd);
  for (const auto& view : node.watermarks.views()) {
    const Labels labels = {{"file_system", std::to_string(view.on.id)}};
    out.gauge("tidemark_file_system_used_ratio", "Share of a file system that is in use", view.used, labels);
    out.gauge("tidemark_file_system_level", "0: enough space; 1: above high_water; 2: above full_water",
              static_cast<double>(view.level), labels);
  }
  for (const auto& directory : node.directories.views()) add_directory(out, directory);
  std::array<std::uint64_t, static_cast<std::size_t>(Refusal::kCount)> refused{};
  std::array<std::uint64_t, kCodes> errors{};
  LatencyHistogram ack;
  for (const auto& shard : node.shards) {
    const auto s = shard->call([shard = shard.get()] { return sample(*shard); });
    if (!s) continue;  // the scrape shows the others; an absent shard is what an alert looks for
    add_shard(out, *shard, *s);
    for (const HostSample& host : s->hosts) add_partition(out, host);
    for (std::size_t i = 0; i < refused.size(); ++i) refused[i] += s->counters.refused[i];
    for (std::size_t i = 0; i < errors.size(); ++i) errors[i] += s->counters.session_errors[i];
    ack.add(s->counters.ack);
  }
  for (std::size_t i = 0; i < refused.size(); ++i)
    out.counter("tidemark_refused_total", "Connections that were not let in, by reason",
                static_cast<double>(refused[i]), {{"reason", kRefusalNames[i]}});
  for (std::size_t i = 1; i < errors.size(); ++i)
    out.counter("tidemark_session_errors_total", "Connections that the server ended with an error, by its code",
                static_cast<double>(errors[i]), {{"code", std::string(to_string(static_cast<Code>(i)))}});
  out.histogram("tidemark_ack_seconds", "From an epoch's commit received to its being durable", ack.counts, ack.sum,
                [](std::size_t i) { return LatencyHistogram::kBounds[i]; });
  return out.text();
}

}  // namespace tidemark::server
