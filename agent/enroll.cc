#include "agent/enroll.h"

#include <unistd.h>

#include <array>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <optional>

#include "agent/config.h"
#include "agent/machine_facts.h"
#include "agent/memory.h"
#include "agent/text_file.h"
#include "net/certificates.h"
#include "net/connect.h"
#include "net/tls_stream.h"
#include "net/token.h"
#include "wire/frame_assembler.h"
#include "wire/messages.h"

namespace tidemark::agent {
namespace {

constexpr auto kConnectTimeout = std::chrono::seconds(15);
constexpr auto kAnswerTimeout = std::chrono::seconds(30);

// One question and one answer over one connection.
class Exchange final : public net::TlsStream::Handler {
 public:
  Exchange(std::string address, std::shared_ptr<net::TlsContext> context, pb::EnrollRequest request)
      : address_(std::move(address)), context_(std::move(context)), request_(std::move(request)) {}

  Result<pb::EnrollReply> run() {
    net::Connecting connecting(io_, address_, kConnectTimeout, [this](Result<asio::ip::tcp::socket> socket) {
      if (!socket) return finish(std::unexpected(socket.error()));
      stream_ = std::make_unique<net::TlsStream>(std::move(*socket), context_, receive_, *this);
      stream_->start();
    });
    asio::steady_timer deadline(io_, kConnectTimeout + kAnswerTimeout);
    deadline.async_wait([this](const asio::error_code& error) {
      if (!error) finish(fail(Code::timed_out, address_, "the server did not answer the enrolment", "try again"));
    });
    while (!answer_) io_.run_one();
    stream_.reset();
    return std::move(*answer_);
  }

 private:
  void finish(Result<pb::EnrollReply> answer) {
    if (!answer_) answer_ = std::move(answer);
  }

  void on_handshake(const net::Peer&) override {
    const auto frame = wire::encode_control_frame(wire::FrameType::enroll_request, 0, request_);
    if (!frame) return finish(std::unexpected(frame.error()));
    stream_->write(*frame);
  }
  std::span<std::byte> read_space() override { return assembler_.space(); }
  void on_read(std::size_t size) override {
    if (auto filled = assembler_.filled(size); !filled) return finish(std::unexpected(filled.error()));
    const auto frame = assembler_.frame();
    if (!frame) return;
    if (frame->header.type == wire::FrameType::error) {
      const auto error = wire::decode<pb::Error>(frame->header.type, frame->payload);
      finish(std::unexpected(error ? wire::from_message(*error) : error.error()));
    } else if (frame->header.type == wire::FrameType::enroll_reply) {
      finish(wire::decode<pb::EnrollReply>(frame->header.type, frame->payload));
    } else {
      finish(fail(Code::protocol, address_, "the server answered the enrolment with something else",
                  "upgrade agent and server to the same release"));
    }
    assembler_.consume();
  }
  void on_writable() override {}
  void on_closed(const std::optional<Error>& error) override {
    finish(std::unexpected(
        error.value_or(Error{Code::unavailable, address_, "the server closed the connection", "try again"})));
  }

  std::string address_;
  std::shared_ptr<net::TlsContext> context_;
  pb::EnrollRequest request_;
  asio::io_context io_{1};
  net::ReceiveBuffer receive_{64 << 10};
  wire::HeapPayloadPool pool_{1 << 20};
  wire::FrameAssembler assembler_{pool_};
  std::unique_ptr<net::TlsStream> stream_;
  std::optional<Result<pb::EnrollReply>> answer_;
};

// agent.toml as it is, or as a new machine gets it.
Result<std::string> config_text(const StateDir& dir) {
  auto text = read_text_file(dir.config());
  if (!text && text.error().code == Code::not_found) {
    return std::string("# The configuration of tidemark-agent; deploy/tidemark-agent.toml explains every option.\n");
  }
  if (text) TIDEMARK_TRY(parse_config(*text, dir.config().string()));
  return text;
}

Status remove_file(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, path.string(), "remove");
  return {};
}

}  // namespace

Result<Enrolled> enroll(const StateDir& dir, const EnrollRequest& request) {
  const net::Token token = TIDEMARK_TRY(net::decode_token(request.token));
  const std::string address = request.address.empty() ? token.address : request.address;
  TIDEMARK_TRY(check_address(address));
  if (!request.name.empty() && !wire::valid_machine_name(request.name)) {
    return fail(Code::invalid_argument, request.name, "no valid machine name",
                "use letters, digits, '.', '_' and '-', at most 64");
  }
  if (dir.enrolled() && !request.replace) {
    return fail(Code::already_exists, dir.path().string(), "this machine is enrolled already",
                "add --replace to enrol it again, or use another --state-dir");
  }
  std::string config = TIDEMARK_TRY(config_text(dir));
  const std::string name = request.name.empty() ? host_name() : request.name;
  const auto made = TIDEMARK_TRY(net::make_request(name));

  pb::EnrollRequest question;
  question.set_protocol_version(wire::kProtocolVersion);
  question.set_secret(std::string(reinterpret_cast<const char*>(token.secret.data()), token.secret.size()));
  question.set_machine_name(name);
  question.set_csr_pem(made.csr_pem);
  question.set_fingerprint(request.fingerprint);
  question.set_agent_version(TIDEMARK_VERSION);
  const auto context = TIDEMARK_TRY(net::TlsContext::enrolling(token.ca_sha256));
  const pb::EnrollReply reply = TIDEMARK_TRY(Exchange(address, context, std::move(question)).run());

  // Nothing is believed because a server said it: it must be the token's authority, and our own key and machine.
  const auto authority = TIDEMARK_TRY(net::describe_certificate(reply.ca_pem()));
  if (authority.sha256 != token.ca_sha256) {
    return fail(Code::unauthenticated, address, "the server sent another authority than the token names",
                "ask for a new token");
  }
  const auto certificate = TIDEMARK_TRY(net::describe_certificate(reply.certificate_pem()));
  const auto machine = MachineId::parse(reply.machine_id());
  if (!machine || machine->is_nil() || certificate.machine != *machine) {
    return fail(Code::protocol, address, "the server sent a certificate that does not name the machine",
                "upgrade the server");
  }
  TIDEMARK_TRY(net::TlsContext::agent({reply.certificate_pem(), made.key_pem, reply.ca_pem()}));

  // With the old certificate gone first, no cut can leave it beside the new key.
  TIDEMARK_TRY(remove_file(dir.certificate()));
  const auto old = load_memory(dir.memory(), *machine);
  if (!old) TIDEMARK_TRY(remove_file(dir.memory()));  // damaged, or of the machine that this was before
  TIDEMARK_TRY(remove_file(dir.status()));
  config = TIDEMARK_TRY(with_key(config, dir.config().string(), "server", address));
  config = TIDEMARK_TRY(with_key(config, dir.config().string(), "name", reply.machine_name()));
  TIDEMARK_TRY(write_file_atomically(dir.config(), config, 0600));
  TIDEMARK_TRY(write_file_atomically(dir.ca(), reply.ca_pem(), 0644));
  TIDEMARK_TRY(write_file_atomically(dir.key(), made.key_pem, 0600));
  TIDEMARK_TRY(write_file_atomically(dir.certificate(), reply.certificate_pem(), 0600));
  return Enrolled{*machine, reply.machine_name(), address, certificate.not_after_us};
}

}  // namespace tidemark::agent
