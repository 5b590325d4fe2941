#include "cli/client.h"

#include <fcntl.h>
#include <httplib.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/check.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

// A socket's name is at most 107 bytes; a longer path is reached through its directory's descriptor.
int connect_unix(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string name = path;
  int directory = -1;
  if (name.size() >= sizeof address.sun_path) {
    const auto slash = path.rfind('/');
    if (slash != std::string::npos)
      directory = ::open(path.substr(0, slash + 1).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
    name = "/proc/self/fd/" + std::to_string(directory) + "/" + path.substr(slash + 1);
  }
  int result = -1;
  if (name.size() < sizeof address.sun_path && (directory >= 0 || name == path)) {
    std::memcpy(address.sun_path, name.c_str(), name.size() + 1);
    result = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  } else if (directory >= 0 || name == path) {
    errno = ENAMETOOLONG;
  }
  const int error = errno;
  if (directory >= 0) ::close(directory);
  if (result == 0) return fd;
  ::close(fd);
  errno = error;
  return -1;
}

// One connection. httplib asks for 4 KiB at a time, each with a poll and a recv: gigabytes come through here, so they
// are received in larger pieces.
class UnixStream final : public httplib::Stream {
 public:
  UnixStream(int fd, std::vector<char>& buffer) : fd_(fd), buffer_(buffer) {}

  bool is_readable() const override { return at_ < end_ || wait_for(POLLIN); }
  bool is_writable() const override { return wait_for(POLLOUT); }
  ssize_t read(char* to, std::size_t size) override {
    if (at_ == end_) {
      if (!wait_for(POLLIN)) return -1;
      const ssize_t got = retried([&] { return ::recv(fd_, buffer_.data(), buffer_.size(), 0); });
      if (got <= 0) return got;
      at_ = 0;
      end_ = static_cast<std::size_t>(got);
    }
    const std::size_t taken = std::min(size, end_ - at_);
    std::memcpy(to, buffer_.data() + at_, taken);
    at_ += taken;
    return static_cast<ssize_t>(taken);
  }
  ssize_t write(const char* from, std::size_t size) override {
    if (!wait_for(POLLOUT)) return -1;
    return retried([&] { return ::send(fd_, from, size, MSG_NOSIGNAL); });
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override { ip.clear(), port = 0; }
  void get_local_ip_and_port(std::string& ip, int& port) const override { ip.clear(), port = 0; }
  socket_t socket() const override { return fd_; }

 private:
  template <typename Call>
  static ssize_t retried(const Call& call) {
    ssize_t result = 0;
    do result = call();
    while (result < 0 && errno == EINTR);
    return result;
  }
  bool wait_for(short event) const {
    pollfd polled{.fd = fd_, .events = event, .revents = 0};
    return retried([&] {
             return ::poll(&polled, 1, static_cast<int>(std::chrono::milliseconds(kAnswerTimeout).count()));
           }) > 0;
  }

  int fd_;
  std::vector<char>& buffer_;
  std::size_t at_ = 0, end_ = 0;  // of the buffer: received, and not yet asked for
};

// httplib has no unix sockets, but lets a client make its connection itself.
class UnixClient final : public httplib::ClientImpl {
 public:
  explicit UnixClient(std::string path) : ClientImpl("localhost"), path_(std::move(path)) {
    set_keep_alive(true);
    set_url_encode(false);
    set_read_timeout(kAnswerTimeout);
    set_write_timeout(kAnswerTimeout);
  }
  int connect_error() const { return connect_error_; }
  std::uint64_t connections() const { return connections_; }

 protected:
  bool create_and_connect_socket(Socket& socket, httplib::Error& error) override {
    socket.sock = connect_unix(path_);
    connect_error_ = socket.sock < 0 ? errno : 0;
    if (socket.sock < 0) error = httplib::Error::Connection;
    ++connections_;
    return socket.sock >= 0;
  }

 private:
  bool process_socket(const Socket& socket, std::function<bool(httplib::Stream&)> exchange) override {
    UnixStream stream(socket.sock, buffer_);
    return exchange(stream);
  }

  std::string path_;
  std::vector<char> buffer_ = std::vector<char>(256 << 10);
  int connect_error_ = 0;
  std::uint64_t connections_ = 0;
};

Error cannot_connect(const std::string& path, int error) {
  Error told = fail_errno(error, path, "connect to the server's admin socket").error();
  told.code = Code::unavailable;
  switch (error) {
    case ENOENT:
      told.what = "there is no admin socket";
      told.remedy =
          "start the server with `tidemarkd run --data DIR`, or name its socket with --socket or its data "
          "directory with --data";
      break;
    case ECONNREFUSED:
      told.what = "the admin socket is there, but no server answers";
      told.remedy = "tidemarkd has stopped: start it again and see its log for why";
      break;
    case EACCES:
    case EPERM:
      told.code = Code::permission_denied;
      told.what = "not allowed to open the admin socket";
      told.remedy = "whoever can open it is an administrator: run this as root or as the user that runs tidemarkd";
      break;
    case ENAMETOOLONG: told.remedy = "the name of a socket has at most 107 bytes"; break;
    default: told.remedy = "check that this is the admin socket of a running tidemarkd"; break;
  }
  return told;
}

Code code_named(const std::string& name) {
  for (std::uint16_t number = 1; number <= static_cast<std::uint16_t>(Code::internal); ++number)
    if (to_string(static_cast<Code>(number)) == name) return static_cast<Code>(number);
  return Code::internal;  // of a server of the future; its words still count
}

std::string text_of(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

Error told_by_server(int status, const std::string& body, const std::string& path) {
  const json answer = json::parse(body, nullptr, false);
  if (answer.is_object() && answer.contains("error") && answer["error"].is_object()) {
    const json& error = answer["error"];
    return {code_named(text_of(error, "code")), text_of(error, "object"), text_of(error, "what"),
            text_of(error, "remedy")};
  }
  return {Code::internal, path, "the server answered with HTTP status " + std::to_string(status) + " and no reason",
          "check that this is the admin socket of a tidemarkd of the same version"};
}

constexpr std::size_t kErrorBodyMax = 64 << 10;

}  // namespace

struct AdminClient::Impl {
  explicit Impl(std::string socket_path) : path(std::move(socket_path)), http(path) {}
  std::string path;
  UnixClient http;
  std::atomic<bool> stopped = false;

  struct Outcome {
    int status = 0;
    std::string epoch;
  };

  Result<Outcome> send_once(const StreamRequest& wanted, const std::string& body, const Receiver& receiver,
                            bool& answered);
  Result<Outcome> send(const StreamRequest& wanted, const std::string& body, const Receiver& receiver);
  Result<json> call(const std::string& method, const std::string& target, const std::string& body);
  bool health = false;  // the request is for the health: a 503 is an answer
};

Result<AdminClient::Impl::Outcome> AdminClient::Impl::send_once(const StreamRequest& wanted, const std::string& body,
                                                                const Receiver& receiver, bool& answered) {
  if (stopped) return fail(Code::cancelled, path, "interrupted");
  httplib::Request request;
  request.method = wanted.method;
  request.path = wanted.path;
  if (!body.empty()) {
    request.body = body;
    request.headers.emplace("Content-Type", "application/json");
  }
  if (wanted.range)
    request.headers.emplace("Range", "bytes=" + std::to_string(wanted.range->offset) + "-" +
                                         std::to_string(wanted.range->offset + wanted.range->length - 1));
  Outcome outcome;
  std::string error_body;
  Status received;
  request.response_handler = [&](const httplib::Response& response) {
    answered = true;
    outcome.status = response.status;
    outcome.epoch = response.get_header_value("Tidemark-Epoch");
    if (response.status / 100 != 2) return true;
    if (wanted.range && response.status != 206)
      received =
          fail(Code::protocol, path, "the server did not honour a byte range", "use a tidemarkd of the same version");
    else if (wanted.epoch && outcome.epoch != std::to_string(*wanted.epoch))
      received =
          fail(Code::protocol, path,
               "asked for epoch " + std::to_string(*wanted.epoch) + ", was answered with '" + outcome.epoch + "'",
               "use a tidemarkd of the same version");
    return received.has_value();
  };
  request.content_receiver = [&](const char* data, std::size_t size, std::uint64_t, std::uint64_t) {
    if (outcome.status / 100 != 2) {
      if (error_body.size() + size > kErrorBodyMax) return false;
      error_body.append(data, size);
      return true;
    }
    received = receiver(std::as_bytes(std::span(data, size)));
    return received.has_value();
  };
  httplib::Response response;
  httplib::Error error = httplib::Error::Success;
  const bool sent = http.send(request, response, error);
  if (!received) return std::unexpected(std::move(received).error());
  if (stopped) return fail(Code::cancelled, path, "interrupted");
  if (!sent && error == httplib::Error::Connection) return std::unexpected(cannot_connect(path, http.connect_error()));
  if (health && sent && outcome.status == 503) {
    TIDEMARK_TRY(receiver(std::as_bytes(std::span(error_body))));
    return outcome;
  }
  if (outcome.status != 0 && outcome.status / 100 != 2)
    return std::unexpected(told_by_server(outcome.status, error_body, path));
  if (!sent)
    return fail(Code::unavailable, path,
                answered ? "the connection to the server broke in the middle of its answer"
                         : "the server closed the connection without an answer",
                "tidemarkd has stopped or hangs: see its log, then try again");
  return outcome;
}

Result<AdminClient::Impl::Outcome> AdminClient::Impl::send(const StreamRequest& wanted, const std::string& body,
                                                           const Receiver& receiver) {
  const std::uint64_t connections = http.connections();
  bool answered = false;
  auto outcome = send_once(wanted, body, receiver, answered);
  // A kept connection may have been closed by the server just now, between two requests. Reading twice does no harm.
  const bool reused = http.connections() == connections;
  if (!outcome && reused && !answered && wanted.method == "GET" && outcome.error().code == Code::unavailable)
    return send_once(wanted, body, receiver, answered);
  return outcome;
}

Result<json> AdminClient::Impl::call(const std::string& method, const std::string& target, const std::string& body) {
  std::string text;
  StreamRequest request;
  request.method = method;
  request.path = target;
  TIDEMARK_TRY(send(request, body, [&](std::span<const std::byte> bytes) -> Status {
    text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return {};
  }));
  if (text.empty()) return json(nullptr);
  json answer = json::parse(text, nullptr, false);
  if (answer.is_discarded())
    return fail(Code::protocol, path, "the server's answer is not JSON",
                "check that this is the admin socket of a tidemarkd");
  return answer;
}

AdminClient::AdminClient(std::string socket_path) : impl_(std::make_unique<Impl>(std::move(socket_path))) {}
AdminClient::~AdminClient() = default;

Result<json> AdminClient::get(const std::string& path) { return impl_->call("GET", path, {}); }
Result<json> AdminClient::post(const std::string& path, const json& body) {
  return impl_->call("POST", path, body.dump());
}
Result<json> AdminClient::patch(const std::string& path, const json& body) {
  return impl_->call("PATCH", path, body.dump());
}
Result<json> AdminClient::put(const std::string& path, const json& body) {
  return impl_->call("PUT", path, body.dump());
}
Result<json> AdminClient::remove(const std::string& path) { return impl_->call("DELETE", path, {}); }

Result<json> AdminClient::get_health() {
  impl_->health = true;
  auto answer = impl_->call("GET", "/v1/health", {});
  impl_->health = false;
  if (answer && !answer->contains("partitions") && answer->contains("error"))
    return std::unexpected(told_by_server(503, answer->dump(), impl_->path));
  return answer;
}

Status AdminClient::stream(const StreamRequest& request, const Receiver& receiver) {
  TIDEMARK_CHECK(!request.range || request.range->length > 0);
  TIDEMARK_TRY(impl_->send(request, {}, receiver));
  return {};
}

void AdminClient::stop() {
  impl_->stopped = true;
  impl_->http.stop();
}

bool AdminClient::stopped() const { return impl_->stopped; }

const std::string& AdminClient::socket_path() const { return impl_->path; }

std::string path_segment(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                       c == '.' || c == '_' || c == '~';
    if (plain) {
      encoded += c;
    } else {
      encoded += '%';
      encoded += kDigits[byte >> 4];
      encoded += kDigits[byte & 15];
    }
  }
  return encoded;
}

std::string machine_path(std::string_view machine, std::string_view rest) {
  return "/v1/machines/" + path_segment(machine) + std::string(rest);
}

}  // namespace tidemark::cli
