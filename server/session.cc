#include "server/session.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "server/digests.h"
#include "server/logging.h"
#include "server/partition_host.h"
#include "server/shard.h"
#include "wire/messages.h"

namespace tidemark::server {

pb::OpenEpoch to_wire(const storage::pb::OpenEpochEntry& entry) {
  pb::OpenEpoch open;
  open.set_number(entry.number());
  open.set_kind(static_cast<pb::EpochKind>(entry.kind()));
  open.set_blocks(entry.blocks());
  // Before its first block is durable the store has no sum.
  open.set_sum(entry.sum().empty() ? wire::hash_to_bytes({}) : entry.sum());
  for (const auto& position : entry.positions()) {
    auto* at = open.add_positions();
    at->set_disk(position.disk());
    at->set_granule(position.size());
  }
  return open;
}

namespace {

// One whose machine is held begins with the least; the rest is withheld, as all credit is.
std::uint32_t first_credit(const PartitionHost& host, const MachineId& machine) {
  const bool held = host.space().room(machine).hold.kind != Watermark::Hold::none;
  return held ? limits::kSessionCreditMin : host.initial_credit();
}

constexpr std::uint64_t kReportBytes = 16_MiB;  // of an initial epoch, between two reports of its durable progress
constexpr auto kReportEvery = std::chrono::milliseconds(200);
constexpr auto kDelayMax = std::chrono::seconds(5);  // without anything becoming durable: the agent is told
constexpr auto kAskAgainEvery = std::chrono::seconds(60);
constexpr std::uint32_t kDelayPauseMs = 3000;  // told anew every second
constexpr double kGrantBurst = 64 << 10;       // bytes of credit returned at once, at least, when slowed

}  // namespace

Session::Session(Shard& shard, PartitionHost& host, Arrival arrival)
    : Channel(shard, std::move(arrival)),
      host_(host),
      protocol_(machine(), *this, shard.node().clock,
                {.credit = first_credit(host, machine()), .payload_max = limits::kFramePayloadMax}),
      withheld_(host.initial_credit() - first_credit(host, machine())),
      reported_(shard.now()) {}

Channel::Frame Session::on_frame(const wire::FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == wire::FrameType::blocks) shard().counters().blocks_bytes_in += payload.size();
  waits_ = false;
  const bool greeted_before = protocol_.ready();
  const auto status = protocol_.on_frame(header, payload);
  if (!status && status.error().code == Code::busy && waits_) {
    if (!waits_since_) waits_since_ = shard().now();
    return Frame::wait;
  }
  waits_since_.reset();
  if (!status) {
    end(status.error(), retry_after_ms(status.error().code));
    return Frame::done;
  }
  if (!greeted_before && protocol_.ready()) {
    ++shard().counters().sessions_total;
    host_.ask_for_damaged(*this);  // right behind Welcome: its first epoch brings it
  }
  if (protocol_.closed()) close_quietly();
  return Frame::done;
}

void Session::on_ended(const std::optional<Error>& error) {
  host_.forget(*this, machine());
  Observed& observed = host_.observed(machine());
  std::optional<Error> why = error ? error : protocol_.peer_error();
  if (why) {
    observed.last_error = why->what;
    observed.last_error_remedy = why->remedy;
  } else {
    observed.last_error.clear();
    observed.last_error_remedy.clear();
  }
  observed.waits_for.clear();
  if (began_) host_.session_ended(*this, appended_);
  const std::string text =
      kv("machine", machine().to_string()) + kv("peer", peer().address) + (why ? kv(*why) : std::string());
  if (why && why->code == Code::protocol) {
    spdlog::warn("session broke the protocol{}", text);
  } else if (began_) {
    spdlog::info("session ended{}", text);
  } else {
    spdlog::info("session refused{}", text);
  }
}

void Session::epoch_durable(EpochNumber epoch, const Hash128& digest) {
  const Time now = shard().now();
  while (!commits_.empty() && commits_.front().first <= epoch) {
    shard().counters().ack.add(std::chrono::duration<double>(now - commits_.front().second).count());
    commits_.pop_front();
  }
  moved_ = now;
  if (!waits_since_) relieve();
  protocol_.on_durable(epoch, digest, std::nullopt);
}

void Session::bytes_durable(std::uint64_t payload_bytes) {
  held_bytes_ -= std::min(held_bytes_, payload_bytes);
  moved_ = shard().now();
  if (!waits_since_) relieve();
  withheld_ += payload_bytes;
  grant();
  unreported_bytes_ += payload_bytes;
  shard().want_tick(*this);
}

void Session::tick(Time now) {
  if (unreported_bytes_ != 0 && (unreported_bytes_ >= kReportBytes || now - reported_ >= kReportEvery))
    send_progress(now);
  if (!digesting_ && !digests_.empty()) start_digests();
  grant();
  if (unreported_bytes_ != 0 || (!digesting_ && !digests_.empty())) shard().want_tick(*this);
}

void Session::send_progress(Time now) {
  const auto* machine_state = host_.find(machine());
  if (machine_state == nullptr || !protocol_.ready()) return;
  unreported_bytes_ = 0;
  reported_ = now;
  if (!machine_state->open_epoch || machine_state->open_epoch->kind() != pb::INITIAL) return;
  host_.observed(machine()).initial_progress_us = shard().node().clock.wall_us();
  protocol_.on_durable(machine_state->durable_epoch, machine_state->durable_digest,
                       to_wire(*machine_state->open_epoch));
}

Status Session::request_digests(const pb::DigestRequest& request) {
  TIDEMARK_TRY(host_.serving());
  digests_.push_back(request);  // wire::kDigestRequestsMax bounds them
  if (!digesting_) start_digests();
  return {};
}

void Session::start_digests() {
  auto job = [host = &host_, shard = &shard(), id = id(), machine = machine(), request = digests_.front()] {
    if (shard->node().stopping) return;  // nobody is there to be answered
    const auto partition = host->share();
    auto reply = partition ? compute_digests(*partition, machine, request)
                           : Result<pb::DigestReply>(
                                 fail(Code::unavailable, "partition", "it stopped", "it is tried again by itself"));
    shard->post([shard, id, reply = std::move(reply)] {
      if (auto* session = shard->session(id)) session->digests_done(reply);
    });
  };
  digesting_ = shard().node().workers.post(std::move(job));
  if (!digesting_) shard().want_tick(*this);  // the workers' queue is full: again soon
}

void Session::digests_done(const Result<pb::DigestReply>& reply) {
  digesting_ = false;
  digests_.pop_front();
  if (!reply) {
    end(reply.error(), retry_after_ms(reply.error().code));
    return;
  }
  shard().counters().digest_chunks += reply->sha256().size() / 32;
  protocol_.on_digests(*reply);
  if (!digests_.empty()) start_digests();
}

// Something of this session enters the log: from now on it should become durable.
void Session::begin_holding() {
  if (held_bytes_ == 0 && commits_.empty()) moved_ = shard().now();
}

bool Session::behind(Time now) const {
  if (!protocol_.ready() || ended()) return false;
  const bool holds = held_bytes_ != 0 || !commits_.empty();
  return (holds && now - moved_ >= kDelayMax) || (waits_since_ && now - *waits_since_ >= kDelayMax);
}

void Session::throttle(const std::string& why) {
  if (!throttled_) ++shard().counters().throttles;
  throttled_ = true;
  host_.observed(machine()).waits_for = why;
  protocol_.throttle(kDelayPauseMs, why);
}

void Session::relieve() {
  if (!throttled_) return;
  throttled_ = false;
  host_.observed(machine()).waits_for.clear();
  protocol_.throttle(0, {});
  if (hold_.kind != Watermark::Hold::none) hold(hold_);
}

void Session::hold(const SpaceHold& hold) {
  using enum Watermark::Hold;
  const bool before = hold_.kind != none;
  if (&hold != &hold_) hold_ = hold;
  if (hold_.kind != none) {
    // One that is slowed need not pause: credit sets its pace.
    protocol_.throttle(hold_.kind == paused ? kDelayPauseMs : 1, hold_.reason);
  } else if (before) {
    protocol_.throttle(0, {});
  }
  grant();
}

// Returns credit as far as a hold allows.
void Session::grant() {
  const Time now = shard().now();
  const double seconds = std::chrono::duration<double>(now - std::exchange(granted_, now)).count();
  const bool slowed = hold_.kind == Watermark::Hold::slowed;
  const auto rate = static_cast<double>(hold_.rate);
  grants_ = slowed ? std::min(grants_ + rate * std::min(seconds, 1.0), std::max(rate / 4, kGrantBurst)) : 0;
  std::uint64_t bytes = withheld_;
  if (hold_.kind == Watermark::Hold::paused) bytes = 0;
  if (slowed) bytes = std::min(bytes, static_cast<std::uint64_t>(grants_));
  if (slowed) grants_ -= static_cast<double>(bytes);
  withheld_ -= bytes;
  if (bytes != 0) protocol_.on_credit_returned(static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes, UINT32_MAX)));
  if (slowed && withheld_ != 0) shard().want_tick(*this);
}

void Session::ask_again(const std::vector<storage::WantedRange>& wanted) {
  if (!protocol_.ready() || ended()) return;
  const Time now = shard().now();
  if (wanted == asked_ && (wanted.empty() || now - asked_at_ < kAskAgainEvery)) return;
  asked_ = wanted;
  asked_at_ = now;
  pb::Resend resend;
  for (const storage::WantedRange& range : wanted) {
    if (resend.ranges_size() == wire::kResendRangesMax) break;  // the others when these have come
    auto* one = resend.add_ranges();
    one->set_disk(range.disk.value());
    one->set_first_granule(range.offset / limits::kGranuleSize);
    one->set_granules(range.length / limits::kGranuleSize);
  }
  if (!protocol_.resend(resend) || wanted.empty()) return;
  ++shard().counters().resends;
  spdlog::warn("agent asked to send again what is damaged here{}{}", kv("machine", machine().to_string()),
               kv("ranges", resend.ranges_size()));
}

void Session::refuse(Refusal why) { shard().counters().refuse(why); }

}  // namespace tidemark::server
