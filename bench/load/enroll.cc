#include "bench/load/enroll.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <thread>

#include "cli/client.h"
#include "net/certificates.h"
#include "net/connect.h"
#include "net/tls_stream.h"
#include "net/token.h"
#include "wire/frame_assembler.h"
#include "wire/messages.h"

namespace tidemark::bench {
namespace {

constexpr std::size_t kAtOnce = 16;
constexpr auto kConnectTimeout = std::chrono::seconds(10);
constexpr std::size_t kTriesMax = 4;  // of a whole batch in vain
constexpr auto kPause = std::chrono::milliseconds(250);

// One enrolment: connect, handshake, one request, one reply.
class Enrolment final : public net::TlsStream::Handler {
 public:
  using Done = std::function<void(Result<Identity>)>;

  Enrolment(asio::io_context& io, net::ReceiveBuffer& buffer, const std::string& address, const net::Token& token,
            std::string name, Done done)
      : buffer_(buffer),
        token_(token),
        name_(std::move(name)),
        done_(std::move(done)),
        assembler_(pool_),
        connecting_(io, address, kConnectTimeout, [this](auto socket) { on_connected(std::move(socket)); }) {}

 private:
  void on_connected(Result<asio::ip::tcp::socket> socket) {
    if (!socket) return finish(std::unexpected(socket.error()));
    auto context = net::TlsContext::enrolling(token_.ca_sha256);
    if (!context) return finish(std::unexpected(context.error()));
    stream_ = std::make_unique<net::TlsStream>(std::move(*socket), *context, buffer_, *this);
    stream_->start();
  }
  void on_handshake(const net::Peer&) override {
    auto request = net::make_request(name_);
    if (!request) return finish(std::unexpected(request.error()));
    key_pem_ = request->key_pem;
    pb::EnrollRequest message;
    message.set_protocol_version(wire::kProtocolVersion);
    message.set_secret(token_.secret.data(), token_.secret.size());
    message.set_machine_name(name_);
    message.set_csr_pem(request->csr_pem);
    message.set_fingerprint(std::string(wire::kFingerprintSize, 'b'));
    message.set_agent_version("tidemark-bench");
    auto frame = wire::encode_control_frame(wire::FrameType::enroll_request, 0, message);
    if (!frame) return finish(std::unexpected(frame.error()));
    stream_->write(*frame);
  }
  std::span<std::byte> read_space() override { return assembler_.space(); }
  void on_read(std::size_t size) override {
    if (const Status status = assembler_.filled(size); !status) return finish(std::unexpected(status.error()));
    const auto frame = assembler_.frame();
    if (!frame) return;
    if (frame->header.type == wire::FrameType::error) {
      const auto error = wire::decode<pb::Error>(frame->header.type, frame->payload);
      return finish(std::unexpected(error ? wire::from_message(*error) : error.error()));
    }
    const auto reply = wire::decode<pb::EnrollReply>(frame->header.type, frame->payload);
    if (!reply) return finish(std::unexpected(reply.error()));
    const auto machine = MachineId::parse(reply->machine_id());
    if (!machine) return finish(fail(Code::protocol, name_, "the server gave no machine id"));
    finish(Identity{*machine, reply->machine_name(), {reply->certificate_pem(), key_pem_, reply->ca_pem()}});
  }
  void on_writable() override {}
  void on_closed(const std::optional<Error>& error) override {
    finish(std::unexpected(error.value_or(Error{Code::unavailable, name_, "the server closed during enrolment", {}})));
  }
  void finish(Result<Identity> result) {
    if (stream_) stream_->close();
    if (auto done = std::exchange(done_, nullptr)) done(std::move(result));
  }

  net::ReceiveBuffer& buffer_;
  net::Token token_;
  std::string name_, key_pem_;
  Done done_;
  wire::HeapPayloadPool pool_{limits::kControlPayloadMax * 2};
  wire::FrameAssembler assembler_;
  std::unique_ptr<net::TlsStream> stream_;
  net::Connecting connecting_;
};

// What a server says that is merely pressed: it lets only so many in at a time.
bool passes(Code code) { return code == Code::busy || code == Code::unavailable || code == Code::timed_out; }

// Machines `begin` to `end`, in small batches, on the calling thread.
Result<std::vector<Identity>> enroll_share(const EnrolOrder& order, std::size_t begin, std::size_t end,
                                           std::atomic<std::size_t>& done, std::atomic<bool>& give_up) {
  cli::AdminClient admin(order.admin_socket);
  asio::io_context io;
  net::ReceiveBuffer buffer;
  std::vector<Identity> identities(end - begin);
  std::vector<std::size_t> waiting(end - begin);
  std::iota(waiting.rbegin(), waiting.rend(), begin);  // taken from the back
  std::size_t tries_in_vain = 0;
  while (!waiting.empty()) {
    std::vector<std::unique_ptr<Enrolment>> batch;
    std::vector<std::size_t> again;
    std::optional<Error> failure;
    const std::size_t size = std::min(kAtOnce, waiting.size());
    for (std::size_t n = 0; n < size; ++n) {
      if (give_up || order.stopped()) return fail(Code::cancelled, "enrolment", "it was stopped");
      const std::size_t i = waiting.back();
      waiting.pop_back();
      const auto answer = TIDEMARK_TRY(admin.post("/v1/tokens", {{"ttl_seconds", 600}}));
      const auto token = TIDEMARK_TRY(net::decode_token(answer.value("token", "")));
      const auto settled = [&, i](Result<Identity> identity) {
        if (identity) {
          identities[i - begin] = std::move(*identity);
          return order.progress(++done);
        }
        again.push_back(i);
        if (!failure || passes(failure->code)) failure = std::move(identity).error();
      };
      batch.push_back(std::make_unique<Enrolment>(io, buffer, order.address, token,
                                                  order.prefix + "-" + std::to_string(i), settled));
    }
    io.restart();
    io.run();
    tries_in_vain = again.size() < size ? 0 : tries_in_vain + 1;
    if (failure && (!passes(failure->code) || tries_in_vain >= kTriesMax)) return std::unexpected(std::move(*failure));
    waiting.insert(waiting.end(), again.begin(), again.end());
    if (failure) std::this_thread::sleep_for(kPause);
  }
  return identities;
}

}  // namespace

Result<std::vector<Identity>> enroll_machines(const EnrolOrder& order) {
  const std::size_t threads = std::clamp<std::size_t>(order.threads, 1, std::max<std::size_t>(1, order.count));
  std::atomic<std::size_t> done = 0;
  std::atomic<bool> give_up = false;
  std::vector<std::future<Result<std::vector<Identity>>>> shares;
  for (std::size_t i = 0; i < threads; ++i)
    shares.push_back(std::async(std::launch::async, [&, i] {
      auto share = enroll_share(order, order.first + order.count * i / threads,
                                order.first + order.count * (i + 1) / threads, done, give_up);
      if (!share) give_up = true;
      return share;
    }));
  std::vector<Identity> identities;
  std::optional<Error> failure;
  for (auto& pending : shares) {
    auto share = pending.get();
    if (!share) {
      // What went wrong first says more than that the others were stopped for it.
      if (!failure || failure->code == Code::cancelled) failure = std::move(share).error();
      continue;
    }
    std::ranges::move(*share, std::back_inserter(identities));
  }
  if (failure) return std::unexpected(std::move(*failure));
  return identities;
}

Result<std::vector<Identity>> load_identities(const std::string& path) {
  std::vector<Identity> identities;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto one = nlohmann::json::parse(line, nullptr, false);
    const auto text = [&](const char* key) { return one.is_object() ? one.value(key, "") : std::string(); };
    const auto machine = MachineId::parse(text("machine"));
    Identity identity{machine.value_or(MachineId()), text("name"), {text("certificate"), text("key"), text("ca")}};
    if (!machine || identity.name.empty() || identity.credentials.certificate_pem.empty() ||
        identity.credentials.key_pem.empty() || identity.credentials.ca_pem.empty())
      return fail(Code::invalid_argument, path,
                  "line " + std::to_string(identities.size() + 1) + " is no machine of a former run",
                  "give a file that --enrolled has written, or a new one");
    identities.push_back(std::move(identity));
  }
  return identities;
}

Status save_identities(const std::string& path, const std::vector<Identity>& identities) {
  std::ofstream file(path, std::ios::trunc);
  ::chmod(path.c_str(), 0600);
  for (const Identity& one : identities)
    file << nlohmann::json{{"machine", one.machine.to_string()},
                           {"name", one.name},
                           {"certificate", one.credentials.certificate_pem},
                           {"key", one.credentials.key_pem},
                           {"ca", one.credentials.ca_pem}}
                .dump()
         << '\n';
  if (!file.flush()) return fail(Code::io, path, "the machines cannot be written there");
  return {};
}

}  // namespace tidemark::bench
