#include "bench/load/enroll.h"

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>

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

}  // namespace

Result<std::vector<Identity>> enroll_machines(const std::string& admin_socket, const std::string& address,
                                              const std::string& prefix, std::size_t count) {
  cli::AdminClient admin(admin_socket);
  asio::io_context io;
  net::ReceiveBuffer buffer;
  std::vector<Identity> identities;
  std::optional<Error> failure;
  for (std::size_t begin = 0; begin < count && !failure; begin += kAtOnce) {
    std::vector<std::unique_ptr<Enrolment>> batch;
    for (std::size_t i = begin; i < std::min(count, begin + kAtOnce); ++i) {
      const auto answer = TIDEMARK_TRY(admin.post("/v1/tokens", {{"ttl_seconds", 600}}));
      const auto token = TIDEMARK_TRY(net::decode_token(answer.value("token", "")));
      batch.push_back(std::make_unique<Enrolment>(io, buffer, address, token, prefix + "-" + std::to_string(i),
                                                  [&](Result<Identity> identity) {
                                                    if (identity)
                                                      identities.push_back(std::move(*identity));
                                                    else
                                                      failure = identity.error();
                                                  }));
    }
    io.restart();
    io.run();
  }
  if (failure) return std::unexpected(*failure);
  return identities;
}

}  // namespace tidemark::bench
