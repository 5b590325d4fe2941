// The idea: every handler first decides, then acts, then changes its own state. So an action that answers
// Code::busy leaves no trace and the same frame can be handed in again, and an error never leaves half a step behind.
//
// Invariants: content_ is the sum over exactly the blocks that were appended to the open epoch, in all its sessions.
// last_digest_ is what the next commit chains from. A DELTA is never taken on a base on which the ends disagree.
#include "wire/server_session.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "wire/history.h"
#include "wire/messages.h"

namespace tidemark::wire {
namespace {

std::unexpected<Error> broken(std::string object, std::string what, std::string remedy = {}) {
  return fail(Code::protocol, std::move(object), std::move(what), std::move(remedy));
}

std::string epoch_name(std::uint64_t number) { return "epoch " + std::to_string(number); }
std::string disk_name(std::uint32_t disk) { return "disk " + std::to_string(disk); }

bool sent_by_agent(FrameType type) {
  switch (type) {
    case FrameType::hello:
    case FrameType::open_disk:
    case FrameType::epoch_begin:
    case FrameType::blocks:
    case FrameType::epoch_commit:
    case FrameType::epoch_abort:
    case FrameType::digest_request:
    case FrameType::unchanged:
    case FrameType::progress:
    case FrameType::error:
    case FrameType::goodbye:
    case FrameType::ping:
    case FrameType::pong:
    case FrameType::renew_request: return true;
    default: return false;
  }
}

bool same_disks(const std::vector<pb::DiskSize>& a, const google::protobuf::RepeatedPtrField<pb::DiskSize>& b) {
  return a.size() == static_cast<std::size_t>(b.size()) &&
         std::all_of(a.begin(), a.end(), [&](const pb::DiskSize& wanted) {
           return std::any_of(b.begin(), b.end(), [&](const pb::DiskSize& has) {
             return has.disk() == wanted.disk() && has.size() == wanted.size();
           });
         });
}

}  // namespace

ServerSession::ServerSession(const MachineId& machine, Actions& actions, const Clock& clock, Limits limits)
    : machine_(machine), actions_(actions), clock_(clock), limits_(limits) {}

bool ServerSession::ready() const { return state_ == State::ready; }
bool ServerSession::closed() const { return state_ == State::closed; }
std::optional<EpochNumber> ServerSession::open_epoch() const { return epoch_; }
const EpochContent& ServerSession::open_content() const { return content_; }
bool ServerSession::history_diverged() const { return diverged_; }
std::int64_t ServerSession::clock_offset_us() const { return clock_offset_us_; }
const pb::Hello& ServerSession::hello() const { return hello_; }
const MachineView& ServerSession::machine() const { return view_; }
const std::optional<Error>& ServerSession::peer_error() const { return peer_error_; }

Status ServerSession::on_frame(const FrameHeader& header, std::span<const std::byte> payload) {
  const std::string type(to_string(header.type));
  if (payload.size() != header.payload_size) return fail(Code::internal, type, "the frame's payload is not whole");
  if (state_ == State::closed) return broken(type, "a frame came after the last one");
  if (header.number != next_frame_)
    return broken(type, "frame " + std::to_string(header.number) + " came where " + std::to_string(next_frame_) +
                            " was due: frames were lost, repeated or reordered");
  if (!sent_by_agent(header.type)) return broken(type, "an agent does not send this");
  if (state_ == State::hello && header.type != FrameType::hello) return broken(type, "it came before Hello");
  if (state_ != State::hello && header.type == FrameType::hello) return broken(type, "it came twice");
  TIDEMARK_TRY(dispatch(header, payload));
  ++next_frame_;
  return {};
}

Status ServerSession::dispatch(const FrameHeader& header, std::span<const std::byte> payload) {
  switch (header.type) {
    case FrameType::hello: return on_hello(payload);
    case FrameType::open_disk: return on_open_disk(payload);
    case FrameType::epoch_begin: return on_begin(payload);
    case FrameType::blocks: return on_blocks(header, payload);
    case FrameType::epoch_commit: return on_commit(payload);
    case FrameType::epoch_abort: return on_abort(payload);
    case FrameType::digest_request: return on_digest_request(payload);
    case FrameType::unchanged: return on_unchanged(payload);
    case FrameType::renew_request: return on_renew(payload);
    case FrameType::progress: {
      actions_.progress(TIDEMARK_TRY(decode<pb::Progress>(header.type, payload)));
      return {};
    }
    case FrameType::ping: {
      const auto ping = TIDEMARK_TRY(decode<pb::Ping>(header.type, payload));
      pb::Pong pong;
      pong.set_token(ping.token());
      actions_.send(FrameType::pong, pong);
      return {};
    }
    case FrameType::pong: {
      TIDEMARK_TRY(decode<pb::Pong>(header.type, payload));
      return {};
    }
    case FrameType::error:
    case FrameType::goodbye: return on_leave(header, payload);
    default: return broken(std::string(to_string(header.type)), "an agent does not send this");
  }
}

Status ServerSession::on_hello(std::span<const std::byte> payload) {
  pb::Hello hello;
  TIDEMARK_TRY(parse(FrameType::hello, payload, hello));
  TIDEMARK_TRY(check_version(hello.protocol_version(), "agent"));
  TIDEMARK_TRY(check(hello));
  if (!hello.machine_id().empty() && hello.machine_id() != machine_.to_string())
    return fail(Code::permission_denied, "machine " + hello.machine_id(),
                "its state goes with another certificate than that of machine " + machine_.to_string(),
                "restore the agent's state directory as a whole, or enrol the machine again");
  MachineView view = TIDEMARK_TRY(actions_.admit(hello));

  pb::Welcome welcome;
  welcome.set_protocol_version(kProtocolVersion);
  welcome.set_server_version(TIDEMARK_VERSION);
  if (!view.redirect.empty()) {
    welcome.set_redirect(view.redirect);
    hello_ = std::move(hello);
    view_ = std::move(view);
    state_ = State::closed;
    actions_.send(FrameType::welcome, welcome);
    return {};
  }

  const History ours{view.durable_epoch, view.durable_digest, view.open_epoch};
  const History theirs{EpochNumber(hello.durable_epoch()), checked_hash(hello.durable_digest()),
                       hello.has_open_epoch() ? std::optional(hello.open_epoch()) : std::nullopt};
  const std::optional<Error> diverged = compare_histories(ours, theirs);
  if (view.open_epoch && !resumable(ours, theirs, diverged.has_value())) {
    TIDEMARK_TRY(
        actions_.abort_epoch(EpochNumber(view.open_epoch->number()),
                             diverged ? diverged->what : "its session was cut off; only an initial sync resumes"));
    view.next_epoch = std::max(view.next_epoch, EpochNumber(view.open_epoch->number()).next());
    view.open_epoch.reset();
    view.open_epoch_disks.clear();
  }
  view.next_epoch = std::max(view.next_epoch, view.durable_epoch.next());

  // Hello took its time, which makes the agent's clock look slow: a difference as small as that is taken for none, and
  // the times are the machine's own.
  clock_offset_us_ = hello.clock_us() - clock_.wall_us();
  if (std::abs(clock_offset_us_) <= kClockTolerance.count()) clock_offset_us_ = 0;
  hello_ = std::move(hello);
  view_ = std::move(view);
  last_committed_ = view_.durable_epoch;
  last_digest_ = view_.durable_digest;
  diverged_ = diverged.has_value();
  credit_ = limits_.credit;
  state_ = State::ready;
  if (diverged) actions_.on_history_diverged(*diverged);

  welcome.set_machine_name(view_.name);
  welcome.set_durable_epoch(view_.durable_epoch.value());
  if (view_.durable_epoch.value() != 0) welcome.set_durable_digest(hash_to_bytes(view_.durable_digest));
  if (view_.open_epoch) *welcome.mutable_open_epoch() = *view_.open_epoch;
  for (const auto& disk : view_.disks) *welcome.add_disks() = disk;
  welcome.set_credit(limits_.credit);
  welcome.set_payload_max(limits_.payload_max);
  welcome.set_keepalive_seconds(limits::kKeepaliveSeconds);
  welcome.set_clock_us(clock_.wall_us());
  welcome.set_next_epoch(view_.next_epoch.value());
  welcome.set_certificate_expires_soon(view_.certificate_expires_soon);
  actions_.send(FrameType::welcome, welcome);
  return {};
}

const pb::DiskInfo* ServerSession::find_disk(std::uint32_t disk) const {
  const auto found = std::find_if(view_.disks.begin(), view_.disks.end(),
                                  [&](const pb::DiskInfo& info) { return info.disk() == disk; });
  return found == view_.disks.end() ? nullptr : &*found;
}

Status ServerSession::on_open_disk(std::span<const std::byte> payload) {
  const auto request = TIDEMARK_TRY(decode<pb::OpenDisk>(FrameType::open_disk, payload));
  const auto known = std::find_if(view_.disks.begin(), view_.disks.end(),
                                  [&](const pb::DiskInfo& info) { return info.identity() == request.identity(); });
  const bool changes = known == view_.disks.end() || known->size() != request.size();
  if (changes && (epoch_ || view_.open_epoch))
    return broken("disk " + request.name(), "it is new or has another size while an epoch is open",
                  "abort the epoch, then announce the disk");
  if (known == view_.disks.end() && view_.disks.size() >= limits::kDisksPerMachineMax)
    return fail(Code::invalid_argument, "disk " + request.name(), "a machine has at most 64 disks",
                "protect fewer disks, or enrol a second machine for the rest");
  const auto place = known - view_.disks.begin();
  pb::DiskInfo info = TIDEMARK_TRY(actions_.open_disk(request));
  pb::DiskOpened opened;
  opened.set_disk(info.disk());
  opened.set_identity(info.identity());
  opened.set_size(info.size());
  if (static_cast<std::size_t>(place) < view_.disks.size())
    view_.disks[static_cast<std::size_t>(place)] = std::move(info);
  else
    view_.disks.push_back(std::move(info));
  actions_.send(FrameType::disk_opened, opened);
  return {};
}

Status ServerSession::on_begin(std::span<const std::byte> payload) {
  const auto begin = TIDEMARK_TRY(decode<pb::EpochBegin>(FrameType::epoch_begin, payload));
  const std::string name = epoch_name(begin.number());
  if (epoch_) return broken(name, epoch_name(epoch_->value()) + " is still open");
  for (const auto& disk : begin.disks()) {
    const pb::DiskInfo* known = find_disk(disk.disk());
    if (known == nullptr) return broken(name, disk_name(disk.disk()) + " was never opened");
    if (known->size() != disk.size()) return broken(name, disk_name(disk.disk()) + " has another size than announced");
  }
  const bool resumes = view_.open_epoch && view_.open_epoch->number() == begin.number();
  if (resumes) {
    if (begin.kind() != view_.open_epoch->kind()) return broken(name, "it is resumed as another kind");
    if (!view_.open_epoch_disks.empty() && !same_disks(view_.open_epoch_disks, begin.disks()))
      return broken(name, "it is resumed with other disks", "abort it and begin anew");
  } else {
    if (view_.open_epoch)
      return broken(name, epoch_name(view_.open_epoch->number()) + " is open since an earlier session",
                    "resume or abort it first");
    if (begin.number() < view_.next_epoch.value())
      return broken(name, "the lowest number a new epoch may take is " + std::to_string(view_.next_epoch.value()));
    if (begin.kind() != pb::INITIAL && last_committed_.value() == 0)
      return broken(name, "a machine's first epoch is an INITIAL one");
    if (begin.kind() == pb::DELTA && diverged_)
      return fail(Code::history_diverged, name, "a DELTA has no common base here",
                  "send a RESCAN or an INITIAL epoch first");
    TIDEMARK_TRY(actions_.begin_epoch(begin));
    view_.next_epoch = EpochNumber(begin.number()).next();
  }
  epoch_ = EpochNumber(begin.number());
  epoch_kind_ = begin.kind();
  epoch_disks_.assign(begin.disks().begin(), begin.disks().end());
  content_ = {};
  if (resumes) {
    content_ = {view_.open_epoch->blocks(), checked_hash(view_.open_epoch->sum())};
    view_.open_epoch.reset();
    view_.open_epoch_disks.clear();
  }
  pb::EpochBegun begun;
  begun.set_number(begin.number());
  actions_.send(FrameType::epoch_begun, begun);
  return {};
}

Status ServerSession::on_blocks(const FrameHeader& header, std::span<const std::byte> payload) {
  if (!epoch_) return broken("Blocks", "no epoch is open");
  if (payload.size() > limits_.payload_max) return broken("Blocks", "the payload is larger than Welcome allowed");
  if (payload.size() > credit_)
    return broken("Blocks",
                  std::to_string(payload.size()) + " bytes were sent on a credit of " + std::to_string(credit_));
  const auto disk = std::find_if(epoch_disks_.begin(), epoch_disks_.end(),
                                 [&](const pb::DiskSize& known) { return known.disk() == header.disk.value(); });
  if (disk == epoch_disks_.end()) return broken(disk_name(header.disk.value()), "it is not part of the open epoch");
  const bool known = checked_ && checked_->number == header.number && checked_->payload.data() == payload.data() &&
                     checked_->payload.size() == payload.size();
  const BlocksSummary summary =
      known ? checked_->summary : TIDEMARK_TRY(check_blocks(payload, machine_, header.disk, *epoch_, disk->size()));
  Status appended = actions_.append_blocks(*epoch_, header.disk, payload, summary);
  if (!appended) {
    if (appended.error().code == Code::busy) checked_ = Checked{header.number, payload, summary};
    return appended;
  }
  checked_.reset();
  content_.add(summary);
  credit_ -= payload.size();
  return {};
}

Status ServerSession::on_commit(std::span<const std::byte> payload) {
  const auto commit = TIDEMARK_TRY(decode<pb::EpochCommit>(FrameType::epoch_commit, payload));
  const std::string name = epoch_name(commit.number());
  if (!epoch_ || epoch_->value() != commit.number()) return broken(name, "it was never begun");
  if (unacknowledged_.size() >= kUnacknowledgedCommitsMax)
    return broken(name, "16 commits are not acknowledged yet", "wait for Durable");
  const Hash128 digest = epoch_digest(last_digest_, *epoch_, commit.cut_time_us(),
                                      static_cast<std::uint32_t>(commit.consistency()), content_);
  if (commit.blocks() != content_.blocks || checked_hash(commit.digest()) != digest) {
    // It could never be committed: an initial sync that stayed open would be resumed for ever.
    TIDEMARK_TRY(actions_.abort_epoch(*epoch_, "its commit did not match what had come"));
    finish_epoch();
    return broken(name,
                  "the commit states " + std::to_string(commit.blocks()) + " blocks, " +
                      std::to_string(content_.blocks) + " came; " +
                      (commit.blocks() == content_.blocks ? "the digests differ" : "nothing is committed"),
                  "the agent sends it anew");
  }
  TIDEMARK_TRY(actions_.commit_epoch(commit, to_server_clock(commit.cut_time_us()), digest));
  last_committed_ = *epoch_;
  last_digest_ = digest;
  unacknowledged_.push_back(*epoch_);
  if (epoch_kind_ != pb::DELTA) diverged_ = false;
  finish_epoch();
  return {};
}

Status ServerSession::on_abort(std::span<const std::byte> payload) {
  const auto abort = TIDEMARK_TRY(decode<pb::EpochAbort>(FrameType::epoch_abort, payload));
  const bool open = epoch_ && epoch_->value() == abort.number();
  const bool resumable = view_.open_epoch && view_.open_epoch->number() == abort.number();
  if (!open && !resumable) return broken(epoch_name(abort.number()), "it is not open");
  TIDEMARK_TRY(actions_.abort_epoch(EpochNumber(abort.number()), abort.reason()));
  if (open) {
    finish_epoch();
    return {};
  }
  view_.next_epoch = std::max(view_.next_epoch, EpochNumber(abort.number()).next());
  view_.open_epoch.reset();
  view_.open_epoch_disks.clear();
  return {};
}

void ServerSession::finish_epoch() {
  epoch_.reset();
  epoch_disks_.clear();
}

Status ServerSession::on_unchanged(std::span<const std::byte> payload) {
  const auto unchanged = TIDEMARK_TRY(decode<pb::Unchanged>(FrameType::unchanged, payload));
  const std::string name = epoch_name(unchanged.epoch());
  if (epoch_) return broken(name, "it cannot be unchanged while an epoch is open");
  if (unchanged.epoch() != last_committed_.value() || last_committed_ != view_.durable_epoch)
    return broken(name, "it is not the newest durable epoch");
  if (diverged_) return fail(Code::history_diverged, name, "the ends disagree on what it holds", "rescan first");
  return actions_.unchanged(last_committed_, to_server_clock(unchanged.as_of_us()));
}

Status ServerSession::on_digest_request(std::span<const std::byte> payload) {
  const auto request = TIDEMARK_TRY(decode<pb::DigestRequest>(FrameType::digest_request, payload));
  if (find_disk(request.disk()) == nullptr) return broken(disk_name(request.disk()), "it was never opened");
  if (request.epoch() > view_.durable_epoch.value())
    return broken(epoch_name(request.epoch()), "its digests are asked for before it is durable");
  if (digest_requests_ >= kDigestRequestsMax)
    return broken("DigestRequest", "4 requests are not answered yet", "wait for DigestReply");
  TIDEMARK_TRY(actions_.request_digests(request));
  ++digest_requests_;
  return {};
}

Status ServerSession::on_renew(std::span<const std::byte> payload) {
  const auto request = TIDEMARK_TRY(decode<pb::RenewRequest>(FrameType::renew_request, payload));
  if (renewals_ >= kRenewalsPerSessionMax) return broken("RenewRequest", "too many in one session");
  TIDEMARK_TRY(actions_.renew(request));
  ++renewals_;
  return {};
}

Status ServerSession::on_leave(const FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == FrameType::error)
    peer_error_ = from_message(TIDEMARK_TRY(decode<pb::Error>(header.type, payload)));
  else
    TIDEMARK_TRY(decode<pb::Goodbye>(header.type, payload));
  state_ = State::closed;
  return {};
}

// A cut cannot lie in the future: when the agent's clock was set forward since Hello, the arrival is the closest we
// know.
WallMicros ServerSession::to_server_clock(std::int64_t agent_us) const {
  return std::clamp<WallMicros>(agent_us - clock_offset_us_, 0, clock_.wall_us());
}

void ServerSession::on_durable(EpochNumber epoch, const Hash128& digest, const std::optional<pb::OpenEpoch>& open) {
  if (state_ != State::ready || epoch < view_.durable_epoch) return;
  view_.durable_epoch = epoch;
  view_.durable_digest = digest;
  std::erase_if(unacknowledged_, [&](EpochNumber committed) { return committed <= epoch; });
  pb::Durable durable;
  durable.set_epoch(epoch.value());
  if (epoch.value() != 0) durable.set_digest(hash_to_bytes(digest));
  if (open) *durable.mutable_open_epoch() = *open;
  actions_.send(FrameType::durable, durable);
}

void ServerSession::on_credit_returned(std::uint32_t bytes) {
  if (state_ != State::ready) return;
  credit_held_ += bytes;
  // Gathered only while the agent can send the largest payload there is, so it never waits for what is held back.
  if (credit_held_ == 0 || (credit_ >= limits_.payload_max && credit_held_ < limits_.credit / 8)) return;
  pb::Credit credit;
  credit.set_bytes(static_cast<std::uint32_t>(std::min<std::uint64_t>(credit_held_, UINT32_MAX)));
  credit_ += credit.bytes();
  credit_held_ -= credit.bytes();
  actions_.send(FrameType::credit, credit);
}

void ServerSession::on_digests(const pb::DigestReply& reply) {
  if (state_ != State::ready) return;
  if (digest_requests_ > 0) --digest_requests_;
  actions_.send(FrameType::digest_reply, reply);
}

bool ServerSession::resend(const pb::Resend& ranges) {
  const auto& understood = hello_.capabilities();
  if (state_ != State::ready || std::find(understood.begin(), understood.end(), kCapabilityResend) == understood.end())
    return false;
  actions_.send(FrameType::resend, ranges);
  return true;
}

void ServerSession::throttle(std::uint32_t pause_ms, const std::string& reason) {
  if (state_ != State::ready) return;
  pb::Throttle message;
  message.set_pause_ms(std::min(pause_ms, kThrottlePauseMaxMs));
  message.set_reason(clean_text(reason));
  actions_.send(FrameType::throttle, message);
}

}  // namespace tidemark::wire
