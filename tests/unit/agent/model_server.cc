#include "tests/unit/agent/model_server.h"

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <cstring>
#include <mutex>
#include <thread>

#include "agent/text_file.h"
#include "base/check.h"
#include "base/crypto.h"
#include "net/acceptor.h"
#include "net/certificates.h"
#include "net/tls_stream.h"
#include "wire/block.h"
#include "wire/frame_assembler.h"
#include "wire/messages.h"
#include "wire/server_session.h"

namespace tidemark::agent {
namespace {

constexpr std::uint64_t kNever = UINT64_MAX;

struct OpenEpochState {
  ModelEpoch epoch;
  Hash128 sum;
  std::map<std::uint32_t, std::uint64_t> positions;
};

struct Store {
  std::vector<ModelEpoch> epochs;
  std::vector<pb::DiskInfo> disks;
  std::optional<OpenEpochState> open;
  std::uint64_t next_epoch = 1;

  pb::OpenEpoch open_message() const {
    pb::OpenEpoch message;
    message.set_number(open->epoch.number.value());
    message.set_kind(open->epoch.kind);
    message.set_blocks(open->epoch.blocks);
    message.set_sum(wire::hash_to_bytes(open->sum));
    for (const auto& [disk, granule] : open->positions) {
      auto* position = message.add_positions();
      position->set_disk(disk);
      position->set_granule(granule);
    }
    return message;
  }
};

}  // namespace

struct ModelServer::Impl {
  class Connection;

  Impl();
  ~Impl();
  void accept(asio::ip::tcp::socket socket);

  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  net::KeyAndCertificate authority;
  std::shared_ptr<net::TlsContext> context;
  net::ReceiveBuffer receive;
  std::unique_ptr<net::Acceptor> acceptor;
  std::vector<std::unique_ptr<Connection>> connections;

  mutable std::mutex mutex;
  Store store;
  int sessions = 0;
  std::uint64_t blocks_bytes = 0, unchanged = 0;
  std::vector<std::string> states;
  std::uint64_t cut_at = kNever;
  bool lose_durable = false;
  std::optional<Error> refusal;
  std::uint32_t refusal_retry_ms = 0;
  int refusals = 0;
  std::uint32_t throttle_ms = 0;
  pb::Resend resend;
  std::uint32_t credit = 1 << 20;
  std::function<void(std::uint64_t)> on_blocks;
  std::function<Verdict(const ModelEpoch&, WallMicros)> on_commit;
  std::uint64_t digest_requests = 0;
  std::thread thread;
};

class ModelServer::Impl::Connection final : public net::TlsStream::Handler, public wire::ServerSession::Actions {
 public:
  Connection(Impl& server, asio::ip::tcp::socket socket)
      : server_(server),
        stream_(std::make_unique<net::TlsStream>(std::move(socket), server.context, server.receive, *this)) {
    stream_->start();
  }

 private:
  void on_handshake(const net::Peer& peer) override {
    session_.emplace(peer.machine, *this, Clock::system(),
                     wire::ServerSession::Limits{server_.credit, limits::kFramePayloadMax});
  }
  std::span<std::byte> read_space() override { return assembler_.space(); }
  void on_read(std::size_t size) override {
    TIDEMARK_CHECK(assembler_.filled(size).has_value());
    while (auto frame = assembler_.frame()) {
      std::unique_lock lock(server_.mutex);
      const Status handled = session_->on_frame(frame->header, frame->payload);
      const std::size_t payload = frame->header.type == wire::FrameType::blocks ? frame->payload.size() : 0;
      assembler_.consume();
      if (!handled) {
        send(wire::FrameType::error, wire::to_message(handled.error(), server_.refusal_retry_ms));
        return stream_->shutdown();
      }
      if (session_->closed()) return stream_->shutdown();
      if (payload > 0 && !after_blocks(payload, lock)) return;
      if (!after_frame()) return;
    }
  }
  void on_writable() override {}
  void on_closed(const std::optional<Error>&) override {}

  bool cut() {
    stream_->close();
    return false;
  }

  bool after_blocks(std::size_t payload, std::unique_lock<std::mutex>& lock) {
    server_.blocks_bytes += payload;
    const std::uint64_t total = server_.blocks_bytes;
    if (server_.on_blocks) {
      const auto call = server_.on_blocks;
      lock.unlock();
      call(total);
      lock.lock();
    }
    if (total >= server_.cut_at) {
      server_.cut_at = kNever;
      return cut();
    }
    session_->on_credit_returned(static_cast<std::uint32_t>(payload));
    if (server_.throttle_ms > 0) session_->throttle(std::exchange(server_.throttle_ms, 0), "test");
    // All that came is durable here at once.
    const Store& kept = server_.store;
    if (kept.open && kept.open->epoch.kind == pb::INITIAL)
      session_->on_durable(newest().number, newest().digest, kept.open_message());
    return true;
  }

  bool after_frame() {
    if (std::exchange(cut_, false)) return cut();
    if (committed_) {
      committed_ = false;
      if (std::exchange(server_.lose_durable, false)) return cut();
      session_->on_durable(newest().number, newest().digest, std::nullopt);
    }
    if (session_->ready() && server_.resend.ranges_size() != 0) session_->resend(std::exchange(server_.resend, {}));
    if (renewed_) send(wire::FrameType::renew_reply, *std::exchange(renewed_, std::nullopt));
    for (const pb::DigestReply& reply : std::exchange(replies_, {})) session_->on_digests(reply);
    return true;
  }

  ModelEpoch newest() const { return server_.store.epochs.empty() ? ModelEpoch{} : server_.store.epochs.back(); }

  void send(wire::FrameType type, const google::protobuf::MessageLite& message) override {
    stream_->write(*wire::encode_control_frame(type, sent_++, message));
  }
  Result<wire::MachineView> admit(const pb::Hello&) override {
    ++server_.sessions;
    if (server_.refusals > 0) {
      --server_.refusals;
      return std::unexpected(*server_.refusal);
    }
    const Store& kept = server_.store;
    wire::MachineView view;
    view.name = "test";
    view.durable_epoch = newest().number;
    view.durable_digest = newest().digest;
    view.next_epoch = EpochNumber(kept.next_epoch);
    if (kept.open) view.open_epoch = kept.open_message();
    view.disks = kept.disks;
    return view;
  }
  Result<pb::DiskInfo> open_disk(const pb::OpenDisk& request) override {
    auto& disks = server_.store.disks;
    for (auto& disk : disks) {
      if (disk.identity() != request.identity()) continue;
      disk.set_size(request.size());
      return disk;
    }
    pb::DiskInfo info;
    info.set_disk(static_cast<std::uint32_t>(disks.size()));
    info.set_size(request.size());
    info.set_identity(request.identity());
    info.set_name(request.name());
    disks.push_back(info);
    return info;
  }
  Status begin_epoch(const pb::EpochBegin& begin) override {
    Store& kept = server_.store;
    kept.open.emplace();
    kept.open->epoch.number = EpochNumber(begin.number());
    kept.open->epoch.kind = begin.kind();
    for (const auto& disk : begin.disks()) {
      std::string content;
      if (!kept.epochs.empty() && kept.epochs.back().disks.contains(disk.disk()))
        content = kept.epochs.back().disks[disk.disk()];
      content.resize(disk.size(), '\0');
      kept.open->epoch.disks[disk.disk()] = std::move(content);
    }
    kept.next_epoch = begin.number() + 1;
    return {};
  }
  Status append_blocks(EpochNumber, DiskId disk, std::span<const std::byte> payload,
                       const wire::BlocksSummary& summary) override {
    OpenEpochState& open = *server_.store.open;
    open.epoch.blocks += summary.blocks;
    open.sum += summary.sum;
    std::string& content = open.epoch.disks.at(disk.value());
    wire::BlockReader reader(payload);
    wire::BlockReader::Block block;
    while (TIDEMARK_TRY(reader.next(block))) {
      const std::uint64_t at = block.header.first_granule * limits::kGranuleSize;
      std::vector<std::byte> plain(block.header.plain_size());
      TIDEMARK_TRY(decoder_.decode(block.header, block.stored, plain));
      TIDEMARK_CHECK(at < content.size());
      std::memcpy(content.data() + at, plain.data(), std::min<std::size_t>(plain.size(), content.size() - at));
      auto& position = open.positions[disk.value()];
      position = std::max(position, block.header.end_granule());
    }
    return {};
  }
  Status commit_epoch(const pb::EpochCommit& commit, WallMicros, const Hash128& digest) override {
    Store& kept = server_.store;
    kept.open->epoch.digest = digest;
    kept.open->epoch.consistency = commit.consistency();
    if (server_.on_commit) {
      const Verdict verdict = server_.on_commit(kept.open->epoch, commit.cut_time_us());
      cut_ = verdict.cut || !verdict.keep;
      if (!verdict.keep) {
        kept.open.reset();
        return {};
      }
      kept.epochs.clear();
    }
    kept.epochs.push_back(std::move(kept.open->epoch));
    kept.open.reset();
    committed_ = true;
    return {};
  }
  Status abort_epoch(EpochNumber, const std::string&) override {
    server_.store.open.reset();
    return {};
  }
  Status unchanged(EpochNumber, WallMicros) override {
    ++server_.unchanged;
    return {};
  }
  Status request_digests(const pb::DigestRequest& request) override {
    ++server_.digest_requests;
    pb::DigestReply reply;
    reply.set_disk(request.disk());
    reply.set_first_chunk(request.first_chunk());
    std::string digests;
    for (const ModelEpoch& epoch : server_.store.epochs) {
      if (epoch.number.value() != request.epoch() || !epoch.disks.contains(request.disk())) continue;
      std::string content = epoch.disks.at(request.disk());
      content.resize(round_up(content.size(), limits::kGranuleSize), '\0');
      for (std::uint64_t i = 0; i < request.chunks(); ++i) {
        const std::uint64_t at = (request.first_chunk() + i) * limits::kDigestChunkSize;
        if (at >= content.size()) break;
        const Sha256 digest = sha256(std::string_view(content).substr(at, limits::kDigestChunkSize));
        digests.append(reinterpret_cast<const char*>(digest.data()), digest.size());
      }
    }
    reply.set_sha256(digests);
    replies_.push_back(std::move(reply));
    return {};
  }
  Status renew(const pb::RenewRequest& request) override {
    pb::RenewReply reply;
    reply.set_certificate_pem(TIDEMARK_TRY(
        net::issue_machine(server_.authority, request.csr_pem(), stream_->peer().machine, Clock::system().wall_us())));
    renewed_ = std::move(reply);
    return {};
  }
  void progress(const pb::Progress& progress) override { server_.states.push_back(progress.state()); }
  void on_history_diverged(const Error&) override {}

  Impl& server_;
  wire::HeapPayloadPool pool_{4 << 20};
  wire::FrameAssembler assembler_{pool_};
  wire::BlockDecoder decoder_;
  std::optional<wire::ServerSession> session_;
  std::uint64_t sent_ = 0;
  bool committed_ = false;
  bool cut_ = false;
  std::vector<pb::DigestReply> replies_;
  std::optional<pb::RenewReply> renewed_;
  std::unique_ptr<net::TlsStream> stream_;
};

ModelServer::Impl::Impl() {
  const WallMicros now = Clock::system().wall_us();
  authority = *net::make_authority("test", now);
  const auto own = *net::issue_server(authority, {"127.0.0.1"}, now);
  context =
      *net::TlsContext::server({own.certificate_pem, own.key_pem, authority.certificate_pem}, net::TicketKeys::make());
  acceptor = std::move(*net::Acceptor::listen(
      io, "127.0.0.1:0", [this](asio::ip::tcp::socket socket) { accept(std::move(socket)); }, [](const Error&) {}));
  thread = std::thread([this] { io.run(); });
}

ModelServer::Impl::~Impl() {
  asio::post(io, [this] {
    connections.clear();
    acceptor.reset();
    work.reset();
  });
  thread.join();
}

void ModelServer::Impl::accept(asio::ip::tcp::socket socket) {
  connections.push_back(std::make_unique<Connection>(*this, std::move(socket)));
}

ModelServer::ModelServer() : impl_(std::make_unique<Impl>()) {}
ModelServer::~ModelServer() = default;
std::string ModelServer::address() const { return impl_->acceptor->address(); }

void ModelServer::enroll(const StateDir& dir, const std::string& more_config, int age_days) {
  TIDEMARK_CHECK(dir.create().has_value());
  const auto request = *net::make_request("test");
  const auto machine = *MachineId::parse("0123456789abcdef0123456789abcdef");
  const auto pem = *net::issue_machine(impl_->authority, request.csr_pem, machine,
                                       Clock::system().wall_us() - std::int64_t{age_days} * 86'400'000'000);
  const std::string config =
      "server = \"" + address() + "\"\nname = \"test\"\nfingerprint_override = \"test\"\n" + more_config;
  TIDEMARK_CHECK(write_file_atomically(dir.key(), request.key_pem, 0600).has_value());
  TIDEMARK_CHECK(write_file_atomically(dir.ca(), impl_->authority.certificate_pem, 0600).has_value());
  TIDEMARK_CHECK(write_file_atomically(dir.config(), config, 0600).has_value());
  TIDEMARK_CHECK(write_file_atomically(dir.certificate(), pem, 0600).has_value());
}

std::vector<ModelEpoch> ModelServer::epochs() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->store.epochs;
}
std::optional<std::uint32_t> ModelServer::disk_of(const std::string& identity) const {
  const std::lock_guard lock(impl_->mutex);
  for (const auto& disk : impl_->store.disks) {
    if (disk.identity() == identity) return disk.disk();
  }
  return std::nullopt;
}
std::string ModelServer::content(const std::string& identity) const {
  const auto disk = disk_of(identity);
  const auto all = epochs();
  return disk && !all.empty() && all.back().disks.contains(*disk) ? all.back().disks.at(*disk) : "no such disk";
}
int ModelServer::sessions() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->sessions;
}
std::uint64_t ModelServer::blocks_bytes() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->blocks_bytes;
}
std::uint64_t ModelServer::unchanged() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->unchanged;
}
std::uint64_t ModelServer::digest_requests() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->digest_requests;
}
void ModelServer::on_commit(std::function<Verdict(const ModelEpoch&, WallMicros)> call) {
  const std::lock_guard lock(impl_->mutex);
  impl_->on_commit = std::move(call);
}
std::vector<std::string> ModelServer::states() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->states;
}
void ModelServer::cut_after(std::uint64_t blocks_bytes) {
  const std::lock_guard lock(impl_->mutex);
  impl_->cut_at = impl_->blocks_bytes + blocks_bytes;
}
void ModelServer::lose_next_durable() {
  const std::lock_guard lock(impl_->mutex);
  impl_->lose_durable = true;
}
void ModelServer::refuse(std::optional<Error> error, std::uint32_t retry_after_ms, int times) {
  const std::lock_guard lock(impl_->mutex);
  impl_->refusal = std::move(error);
  impl_->refusal_retry_ms = retry_after_ms;
  impl_->refusals = times;
}
void ModelServer::forget_newest_epoch() {
  const std::lock_guard lock(impl_->mutex);
  impl_->store.epochs.pop_back();
}
void ModelServer::ask_again(std::uint32_t disk, std::uint64_t first_granule, std::uint64_t granules) {
  const std::lock_guard lock(impl_->mutex);
  auto* range = impl_->resend.add_ranges();
  range->set_disk(disk);
  range->set_first_granule(first_granule);
  range->set_granules(granules);
}
void ModelServer::throttle_next(std::uint32_t pause_ms) {
  const std::lock_guard lock(impl_->mutex);
  impl_->throttle_ms = pause_ms;
}
void ModelServer::on_blocks(std::function<void(std::uint64_t)> call) {
  const std::lock_guard lock(impl_->mutex);
  impl_->on_blocks = std::move(call);
}
void ModelServer::set_credit(std::uint32_t bytes) {
  const std::lock_guard lock(impl_->mutex);
  impl_->credit = bytes;
}

}  // namespace tidemark::agent
