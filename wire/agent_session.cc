// The idea: the mirror of the server's session. Whatever this end would send that the server must refuse is refused
// here first, without effect; whatever the server says is checked against what was sent before it is believed.
//
// Invariants: memory_ never states less than what was acknowledged: after a divergence it keeps the old truth until a
// rescan is durable, so that a cut session cannot make the alarm forgotten. content_ is the sum over exactly the blocks
// sent in the open epoch, in all its sessions, and last_digest_ is what the next commit chains from.
#include "wire/agent_session.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/planted.h"
#include "wire/messages.h"

namespace tidemark::wire {
namespace {

constexpr std::size_t kOpeningMax = limits::kDisksPerMachineMax;
constexpr std::size_t kBeginningMax = 2 * kUnacknowledgedCommitsMax;
constexpr std::uint64_t kCreditMax = 1_GiB;

std::unexpected<Error> broken(std::string object, std::string what) {
  return fail(Code::protocol, std::move(object), std::move(what), "upgrade agent and server to the same release");
}
std::unexpected<Error> refused(std::string object, std::string what, std::string remedy = {}) {
  return fail(Code::invalid_argument, std::move(object), std::move(what), std::move(remedy));
}
std::unexpected<Error> later(std::string object, std::string what) {
  return fail(Code::busy, std::move(object), std::move(what), "wait for the server's answer");
}

std::string epoch_name(std::uint64_t number) { return "epoch " + std::to_string(number); }
std::string disk_name(std::uint32_t disk) { return "disk " + std::to_string(disk); }

}  // namespace

AgentSession::AgentSession(const MachineId& machine, Events& events, const Clock& clock, AgentMemory memory)
    : machine_(machine), events_(events), clock_(clock), memory_(std::move(memory)) {}

bool AgentSession::ready() const { return state_ == State::ready; }
bool AgentSession::closed() const { return state_ == State::closed; }
bool AgentSession::diverged() const { return diverged_; }
bool AgentSession::adopted_unknown() const { return adopted_unknown_; }
std::uint64_t AgentSession::credit() const { return credit_; }
const pb::Welcome& AgentSession::welcome() const { return welcome_; }
const std::vector<pb::DiskInfo>& AgentSession::disks() const { return disks_; }
EpochNumber AgentSession::next_epoch() const { return next_epoch_; }
const std::optional<pb::OpenEpoch>& AgentSession::resumable_epoch() const { return resumable_; }
const AgentMemory& AgentSession::memory() const { return memory_; }
std::optional<EpochNumber> AgentSession::open_epoch() const { return epoch_; }
const EpochContent& AgentSession::open_content() const { return content_; }

Status AgentSession::try_send(FrameType type, const google::protobuf::MessageLite& message) {
  TIDEMARK_TRY(encode_control_payload(type, message, buffer_));
  events_.send(type, DiskId(0), buffer_, next_sent_++);
  return {};
}

void AgentSession::send_message(FrameType type, const google::protobuf::MessageLite& message) {
  // For messages whose fields are bounded here: they always fit.
  TIDEMARK_CHECK(try_send(type, message).has_value());
}

void AgentSession::start(pb::Hello hello) {
  TIDEMARK_CHECK(state_ == State::idle);
  hello.set_protocol_version(kProtocolVersion);
  hello.set_machine_id(machine_.to_string());
  hello.set_agent_version(clean_text(hello.agent_version()));
  hello.set_clock_us(clock_.wall_us());
  hello.clear_capabilities();
  hello.add_capabilities(kCapabilityResend);
  hello.set_durable_epoch(memory_.durable_epoch.value());
  hello.clear_durable_digest();
  if (memory_.durable_epoch.value() != 0) hello.set_durable_digest(hash_to_bytes(memory_.durable_digest));
  hello.clear_open_epoch();
  if (memory_.open_epoch) *hello.mutable_open_epoch() = *memory_.open_epoch;
  state_ = State::hello_sent;
  send_message(FrameType::hello, hello);
}

Status AgentSession::on_frame(const FrameHeader& header, std::span<const std::byte> payload) {
  const std::string type(to_string(header.type));
  if (payload.size() != header.payload_size) return fail(Code::internal, type, "the frame's payload is not whole");
  if (state_ == State::idle || state_ == State::closed) return broken(type, "a frame came outside of a session");
  if (header.number != next_received_)
    return broken(type, "frame " + std::to_string(header.number) + " came where " + std::to_string(next_received_) +
                            " was due: frames were lost, repeated or reordered");
  if (state_ == State::hello_sent && header.type != FrameType::welcome && header.type != FrameType::error &&
      header.type != FrameType::goodbye)
    return broken(type, "it came before Welcome");
  ++next_received_;
  return dispatch(header, payload);
}

Status AgentSession::dispatch(const FrameHeader& header, std::span<const std::byte> payload) {
  switch (header.type) {
    case FrameType::welcome: return on_welcome(payload);
    case FrameType::disk_opened: return on_disk_opened(payload);
    case FrameType::epoch_begun: return on_epoch_begun(payload);
    case FrameType::durable: return on_durable(payload);
    case FrameType::credit: return on_credit(payload);
    case FrameType::digest_reply: return on_digests(payload);
    case FrameType::throttle: {
      const auto throttle = TIDEMARK_TRY(decode<pb::Throttle>(header.type, payload));
      events_.on_throttle(throttle.pause_ms(), throttle.reason());
      return {};
    }
    case FrameType::resend: {
      events_.on_resend(TIDEMARK_TRY(decode<pb::Resend>(header.type, payload)));
      return {};
    }
    case FrameType::renew_reply: {
      const auto reply = TIDEMARK_TRY(decode<pb::RenewReply>(header.type, payload));
      if (renewals_answered_ == renewals_) return broken("RenewReply", "nothing was asked");
      ++renewals_answered_;
      events_.on_renewed(reply.certificate_pem());
      return {};
    }
    case FrameType::ping: {
      const auto ping = TIDEMARK_TRY(decode<pb::Ping>(header.type, payload));
      pb::Pong pong;
      pong.set_token(ping.token());
      send_message(FrameType::pong, pong);
      return {};
    }
    case FrameType::pong: {
      TIDEMARK_TRY(decode<pb::Pong>(header.type, payload));
      return {};
    }
    case FrameType::error:
    case FrameType::goodbye: return on_leave(header, payload);
    default: return broken(std::string(to_string(header.type)), "a server does not send this");
  }
}

Status AgentSession::on_welcome(std::span<const std::byte> payload) {
  if (state_ != State::hello_sent) return broken("Welcome", "it came twice");
  pb::Welcome welcome;
  TIDEMARK_TRY(parse(FrameType::welcome, payload, welcome));
  TIDEMARK_TRY(check_version(welcome.protocol_version(), "server"));
  TIDEMARK_TRY(check(welcome));
  welcome_ = std::move(welcome);
  if (!welcome_.redirect().empty()) {
    state_ = State::closed;
    events_.on_welcome(welcome_);
    return {};
  }

  const History theirs{EpochNumber(welcome_.durable_epoch()), checked_hash(welcome_.durable_digest()),
                       welcome_.has_open_epoch() ? std::optional(welcome_.open_epoch()) : std::nullopt};
  const History ours{memory_.durable_epoch, memory_.durable_digest, memory_.open_epoch};
  std::optional<Error> diverged = compare_histories(theirs, ours);
  const auto sent = std::find_if(memory_.unacknowledged.begin(), memory_.unacknowledged.end(),
                                 [&](const auto& commit) { return commit.epoch == theirs.durable_epoch; });
  const bool was_sent = sent != memory_.unacknowledged.end();
  if (!diverged && was_sent && sent->digest != theirs.durable_digest)
    diverged = Error{Code::history_diverged, epoch_name(theirs.durable_epoch.value()),
                     "the server has other content under this number than was sent", "the machine is rescanned"};
  if (planted(Planted::quiet_resume)) diverged.reset();

  durable_ = last_committed_ = theirs.durable_epoch;
  durable_digest_ = last_digest_ = theirs.durable_digest;
  diverged_ = diverged.has_value();
  if (resumable(theirs, ours, diverged_)) resumable_ = theirs.open_epoch;
  const bool leftover = theirs.open_epoch && !resumable_;
  // What was sent and is not there was never acknowledged: it is gone, and its sender sends it again as a new epoch.
  memory_.unacknowledged.clear();
  next_epoch_ = std::max(EpochNumber(welcome_.next_epoch()), memory_.durable_epoch.next());
  if (memory_.open_epoch) next_epoch_ = std::max(next_epoch_, EpochNumber(memory_.open_epoch->number()).next());
  if (theirs.open_epoch) next_epoch_ = std::max(next_epoch_, EpochNumber(theirs.open_epoch->number()).next());
  const bool adopts = !diverged_ && durable_ != memory_.durable_epoch;
  if (!diverged_) {
    adopted_unknown_ = adopts && !was_sent;
    memory_.durable_epoch = durable_;
    memory_.durable_digest = durable_digest_;
    memory_.open_epoch = resumable_;
  }
  disks_.assign(welcome_.disks().begin(), welcome_.disks().end());
  credit_ = welcome_.credit();
  state_ = State::ready;
  if (leftover) {
    pb::EpochAbort abort;
    abort.set_number(theirs.open_epoch->number());
    abort.set_reason("it does not agree with what the agent remembers");
    send_message(FrameType::epoch_abort, abort);
  }
  if (diverged) events_.on_history_diverged(*diverged);
  if (adopts) events_.on_durable(durable_, durable_digest_);
  if (state_ == State::ready) events_.on_welcome(welcome_);
  return {};
}

Status AgentSession::on_disk_opened(std::span<const std::byte> payload) {
  const auto opened = TIDEMARK_TRY(decode<pb::DiskOpened>(FrameType::disk_opened, payload));
  if (opening_.empty() || opening_.front().identity() != opened.identity() || opening_.front().size() != opened.size())
    return broken(disk_name(opened.disk()), "the server opened a disk that was not announced so");
  const std::string name = opening_.front().name();
  opening_.erase(opening_.begin());
  auto known = std::find_if(disks_.begin(), disks_.end(), [&](const auto& d) { return d.disk() == opened.disk(); });
  if (known != disks_.end() && known->identity() != opened.identity())
    return broken(disk_name(opened.disk()), "the server gave one number to two disks");
  if (known == disks_.end()) {
    if (disks_.size() >= limits::kDisksPerMachineMax) return broken(disk_name(opened.disk()), "more than 64 disks");
    known = disks_.emplace(disks_.end());
  }
  known->set_disk(opened.disk());
  known->set_size(opened.size());
  known->set_identity(opened.identity());
  known->set_name(name);
  events_.on_disk_opened(opened);
  return {};
}

Status AgentSession::on_epoch_begun(std::span<const std::byte> payload) {
  const auto begun = TIDEMARK_TRY(decode<pb::EpochBegun>(FrameType::epoch_begun, payload));
  if (beginning_.empty() || beginning_.front().value() != begun.number())
    return broken(epoch_name(begun.number()), "the server began an epoch that was not asked for");
  beginning_.erase(beginning_.begin());
  events_.on_epoch_begun(EpochNumber(begun.number()));
  return {};
}

Status AgentSession::on_durable(std::span<const std::byte> payload) {
  const auto message = TIDEMARK_TRY(decode<pb::Durable>(FrameType::durable, payload));
  const EpochNumber epoch(message.epoch());
  const Hash128 digest = checked_hash(message.digest());
  const std::string name = epoch_name(message.epoch());
  if (epoch < durable_) return broken(name, "the server acknowledges less than before");
  if (epoch == durable_ && digest != durable_digest_)
    return broken(name, "its digest changed since it was acknowledged");
  if (epoch > durable_) {
    auto& waiting = memory_.unacknowledged;
    const auto sent =
        std::find_if(waiting.begin(), waiting.end(), [&](const auto& commit) { return commit.epoch == epoch; });
    if (sent == waiting.end()) return broken(name, "the server acknowledges what was never committed");
    if (sent->digest != digest) return broken(name, "the server acknowledges another content than was committed");
    waiting.erase(waiting.begin(), sent + 1);
    durable_ = memory_.durable_epoch = epoch;
    durable_digest_ = memory_.durable_digest = digest;
    if (memory_.open_epoch && memory_.open_epoch->number() <= epoch.value()) memory_.open_epoch.reset();
    events_.on_durable(epoch, digest);
  }
  // Told of an epoch that was committed or aborted meanwhile: the two crossed on the way.
  if (!message.has_open_epoch() || !epoch_ || message.open_epoch().number() != epoch_->value()) return {};
  return on_progress_of_open(message.open_epoch());
}

Status AgentSession::on_progress_of_open(const pb::OpenEpoch& open) {
  const std::string name = epoch_name(open.number());
  if (open.kind() != epoch_kind_) return broken(name, "the server has it as another kind");
  if (open.blocks() > content_.blocks) return broken(name, "the server acknowledges more blocks than were sent");
  if (open.blocks() == content_.blocks && checked_hash(open.sum()) != content_.sum)
    return broken(name, "the server has other blocks than were sent");
  if (progress_ && open.blocks() < progress_->blocks()) return broken(name, "the server acknowledges less than before");
  progress_ = open;
  if (epoch_kind_ == pb::INITIAL) memory_.open_epoch = open;
  events_.on_open_epoch_progress(open);
  return {};
}

Status AgentSession::on_credit(std::span<const std::byte> payload) {
  const auto credit = TIDEMARK_TRY(decode<pb::Credit>(FrameType::credit, payload));
  if (credit_ + credit.bytes() > kCreditMax) return broken("Credit", "more than a GiB is granted");
  credit_ += credit.bytes();
  events_.on_credit();
  return {};
}

Status AgentSession::on_digests(std::span<const std::byte> payload) {
  const auto reply = TIDEMARK_TRY(decode<pb::DigestReply>(FrameType::digest_reply, payload));
  const auto asked = std::find_if(digest_requests_.begin(), digest_requests_.end(), [&](const auto& request) {
    return request.disk() == reply.disk() && request.first_chunk() == reply.first_chunk();
  });
  if (asked == digest_requests_.end()) return broken("DigestReply", "nothing was asked");
  if (reply.sha256().size() / 32 > asked->chunks()) return broken("DigestReply", "more came than was asked");
  digest_requests_.erase(asked);
  events_.on_digests(reply);
  return {};
}

Status AgentSession::on_leave(const FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == FrameType::error) {
    const auto error = TIDEMARK_TRY(decode<pb::Error>(header.type, payload));
    state_ = State::closed;
    events_.on_server_error(from_message(error), error.retry_after_ms());
    return {};
  }
  const auto goodbye = TIDEMARK_TRY(decode<pb::Goodbye>(header.type, payload));
  state_ = State::closed;
  events_.on_goodbye(goodbye.reason(), goodbye.retry_after_ms());
  return {};
}

Status AgentSession::need_ready(const char* wish) const {
  if (state_ != State::ready) return fail(Code::unavailable, wish, "the session is not ready");
  return {};
}

Status AgentSession::open_disk(const pb::OpenDisk& disk) {
  TIDEMARK_TRY(need_ready("open disk"));
  TIDEMARK_TRY(check(disk));
  const auto known =
      std::find_if(disks_.begin(), disks_.end(), [&](const auto& d) { return d.identity() == disk.identity(); });
  if ((epoch_ || resumable_) && (known == disks_.end() || known->size() != disk.size()))
    return refused("disk " + disk.name(), "it is new or has another size while an epoch is open",
                   "abort the epoch first");
  if (opening_.size() >= kOpeningMax) return later("disk " + disk.name(), "64 disks are being opened");
  TIDEMARK_TRY(try_send(FrameType::open_disk, disk));
  opening_.push_back(disk);
  return {};
}

Status AgentSession::begin_epoch(const pb::EpochBegin& begin) {
  TIDEMARK_TRY(need_ready("begin epoch"));
  TIDEMARK_TRY(check(begin));
  const std::string name = epoch_name(begin.number());
  if (epoch_) return refused(name, epoch_name(epoch_->value()) + " is still open");
  for (const auto& disk : begin.disks()) {
    const auto known =
        std::find_if(disks_.begin(), disks_.end(), [&](const auto& d) { return d.disk() == disk.disk(); });
    if (known == disks_.end() || known->size() != disk.size())
      return refused(name, disk_name(disk.disk()) + " was not opened with this size");
  }
  const bool resumes = resumable_ && resumable_->number() == begin.number();
  if (resumes) {
    if (begin.kind() != resumable_->kind()) return refused(name, "it is resumed as another kind");
  } else {
    if (resumable_)
      return refused(name, epoch_name(resumable_->number()) + " is open since an earlier session",
                     "resume or abort it first");
    if (begin.number() < next_epoch_.value())
      return refused(name, "the lowest number a new epoch may take is " + std::to_string(next_epoch_.value()));
    if (begin.kind() != pb::INITIAL && last_committed_.value() == 0)
      return refused(name, "a machine's first epoch is an INITIAL one");
    if (begin.kind() == pb::DELTA && diverged_)
      return fail(Code::history_diverged, name, "a DELTA has no common base with the server", "rescan first");
  }
  if (!opening_.empty()) return later(name, "disks are being opened");
  if (beginning_.size() >= kBeginningMax) return later(name, "the server has not answered earlier ones");
  TIDEMARK_TRY(try_send(FrameType::epoch_begin, begin));
  beginning_.emplace_back(begin.number());
  epoch_ = EpochNumber(begin.number());
  epoch_kind_ = begin.kind();
  epoch_disks_.assign(begin.disks().begin(), begin.disks().end());
  content_ = {};
  progress_.reset();
  if (resumes) {
    content_ = {resumable_->blocks(), checked_hash(resumable_->sum())};
    progress_ = std::exchange(resumable_, std::nullopt);
  } else {
    next_epoch_ = epoch_->next();
  }
  return {};
}

Status AgentSession::send_blocks(DiskId disk, std::span<const std::byte> payload, const BlocksSummary& summary) {
  TIDEMARK_TRY(need_ready("send blocks"));
  if (!epoch_) return refused("send blocks", "no epoch is open");
  if (std::none_of(epoch_disks_.begin(), epoch_disks_.end(), [&](const auto& d) { return d.disk() == disk.value(); }))
    return refused(disk_name(disk.value()), "it is not part of the open epoch");
  if (payload.empty() || payload.size() > welcome_.payload_max())
    return refused("send blocks", "the payload is empty or larger than Welcome allows");
  if (payload.size() > credit_) return later("send blocks", "the credit is used up");
  credit_ -= payload.size();
  content_.add(summary);
  events_.send(FrameType::blocks, disk, payload, next_sent_++);
  return {};
}

Status AgentSession::commit_epoch(std::int64_t cut_time_us, pb::Consistency consistency) {
  TIDEMARK_TRY(need_ready("commit epoch"));
  if (!epoch_) return refused("commit epoch", "no epoch is open");
  if (memory_.unacknowledged.size() >= kUnacknowledgedCommitsMax)
    return later(epoch_name(epoch_->value()), "16 commits are not acknowledged yet");
  const Hash128 digest =
      epoch_digest(last_digest_, *epoch_, cut_time_us, static_cast<std::uint32_t>(consistency), content_);
  pb::EpochCommit commit;
  commit.set_number(epoch_->value());
  commit.set_cut_time_us(cut_time_us);
  commit.set_consistency(consistency);
  commit.set_blocks(content_.blocks);
  commit.set_digest(hash_to_bytes(digest));
  TIDEMARK_TRY(check(commit));
  last_committed_ = *epoch_;
  last_digest_ = digest;
  memory_.unacknowledged.push_back({*epoch_, digest});
  if (epoch_kind_ != pb::DELTA) diverged_ = false;
  epoch_.reset();
  send_message(FrameType::epoch_commit, commit);
  return {};
}

Status AgentSession::abort_epoch(const std::string& reason) {
  TIDEMARK_TRY(need_ready("abort epoch"));
  if (!epoch_ && !resumable_) return refused("abort epoch", "no epoch is open");
  pb::EpochAbort abort;
  abort.set_number(epoch_ ? epoch_->value() : resumable_->number());
  abort.set_reason(clean_text(reason));
  if (memory_.open_epoch && memory_.open_epoch->number() == abort.number()) memory_.open_epoch.reset();
  next_epoch_ = std::max(next_epoch_, EpochNumber(abort.number()).next());
  epoch_.reset();
  resumable_.reset();
  send_message(FrameType::epoch_abort, abort);
  return {};
}

Status AgentSession::unchanged(std::int64_t as_of_us) {
  TIDEMARK_TRY(need_ready("unchanged"));
  if (epoch_) return refused("unchanged", "an epoch is open");
  if (last_committed_.value() == 0) return refused("unchanged", "nothing was ever committed");
  if (diverged_) return fail(Code::history_diverged, "unchanged", "the server holds another history", "rescan first");
  if (last_committed_ != durable_) return later("unchanged", "the newest commit is not durable yet");
  pb::Unchanged message;
  message.set_epoch(last_committed_.value());
  message.set_as_of_us(as_of_us);
  TIDEMARK_TRY(check(message));
  send_message(FrameType::unchanged, message);
  return {};
}

Status AgentSession::request_digests(const pb::DigestRequest& request) {
  TIDEMARK_TRY(need_ready("request digests"));
  TIDEMARK_TRY(check(request));
  if (std::none_of(disks_.begin(), disks_.end(), [&](const auto& d) { return d.disk() == request.disk(); }))
    return refused(disk_name(request.disk()), "it was never opened");
  if (request.epoch() > durable_.value()) return refused(epoch_name(request.epoch()), "it is not durable");
  if (digest_requests_.size() >= kDigestRequestsMax) return later("request digests", "4 are not answered yet");
  TIDEMARK_TRY(try_send(FrameType::digest_request, request));
  digest_requests_.push_back(request);
  return {};
}

Status AgentSession::renew(const std::string& csr_pem) {
  TIDEMARK_TRY(need_ready("renew certificate"));
  if (renewals_ >= kRenewalsPerSessionMax) return refused("renew certificate", "too many in one session", "reconnect");
  pb::RenewRequest request;
  request.set_csr_pem(csr_pem);
  TIDEMARK_TRY(check(request));
  ++renewals_;
  send_message(FrameType::renew_request, request);
  return {};
}

void AgentSession::progress(const pb::Progress& progress) {
  if (state_ != State::ready) return;
  pb::Progress clean = progress;
  clean.set_state(clean_text(progress.state()));
  clean.set_cause(clean_text(progress.cause()));
  clean.set_remedy(clean_text(progress.remedy()));
  clean.set_difference(clean_text(progress.difference()));
  send_message(FrameType::progress, clean);
}

void AgentSession::ping() {
  if (state_ != State::ready) return;
  pb::Ping message;
  message.set_token(next_sent_);
  send_message(FrameType::ping, message);
}

void AgentSession::goodbye(const std::string& reason) {
  if (state_ != State::ready) return;
  pb::Goodbye message;
  message.set_reason(clean_text(reason));
  state_ = State::closed;
  send_message(FrameType::goodbye, message);
}

void AgentSession::send_error(const Error& error) {
  if (state_ == State::idle || state_ == State::closed) return;
  state_ = State::closed;
  send_message(FrameType::error, to_message(error));
}

}  // namespace tidemark::wire
