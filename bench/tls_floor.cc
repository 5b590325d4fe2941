// The floor under an ingest server: what no server that terminates TLS can beat on this machine.
//
// One TLS 1.3 connection on loopback, both ends with certificates. The sink is a bare SSL_read loop that drops the
// data, or writes it in 1 MiB direct pieces through io_uring with an fdatasync every 8 MiB; the source sends
// incompressible bytes. Each end is a process of its own, so that the operating system accounts its CPU time. Prints
// one JSON object: seconds of CPU (user + system) of the sink per GiB, and MiB/s.
//
// usage: tls_floor MIB [FILE]
#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/clock.h"
#include "base/random.h"
#include "net/certificates.h"

namespace {

using tidemark::AlignedBuffer;
constexpr std::size_t kPiece = 1 << 20;
constexpr unsigned kPieces = 8;  // in flight, and between two fdatasyncs

[[noreturn]] void die(const char* what) {
  std::perror(what);
  ERR_print_errors_fp(stderr);
  std::exit(1);
}

template <typename T>
T must(tidemark::Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "tls_floor: %s\n", result.error().message().c_str());
    std::exit(1);
  }
  return std::move(*result);
}

SSL_CTX* make_context(bool server, const std::string& certificate, const std::string& key, const std::string& ca) {
  SSL_CTX* context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384");
  const auto read = [](const std::string& pem) { return BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())); };
  X509* own = PEM_read_bio_X509(read(certificate), nullptr, nullptr, nullptr);
  X509* root = PEM_read_bio_X509(read(ca), nullptr, nullptr, nullptr);
  EVP_PKEY* private_key = PEM_read_bio_PrivateKey(read(key), nullptr, nullptr, nullptr);
  if (SSL_CTX_use_certificate(context, own) != 1 || SSL_CTX_use_PrivateKey(context, private_key) != 1 ||
      X509_STORE_add_cert(SSL_CTX_get_cert_store(context), root) != 1)
    die("certificates");
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return context;
}

class DiskSink {
 public:
  DiskSink(const char* path, std::uint64_t size) : file_(open(path, O_CREAT | O_RDWR | O_DIRECT, 0600)) {
    if (file_ < 0 || posix_fallocate(file_, 0, static_cast<off_t>(size)) != 0) die(path);
    if (io_uring_queue_init(64, &ring_, 0) != 0) die("io_uring");
  }
  // Queues a piece; the buffer is the caller's again when wait_for() says so.
  void write(unsigned buffer, std::span<const std::byte> piece) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    io_uring_prep_write(sqe, file_, piece.data(), static_cast<unsigned>(piece.size()), offset_);
    io_uring_sqe_set_data64(sqe, buffer);
    busy_[buffer] = true;
    ++in_flight_;
    offset_ += piece.size();
    if (++since_sync_ == kPieces) {
      since_sync_ = 0;
      sqe = io_uring_get_sqe(&ring_);
      io_uring_prep_fsync(sqe, file_, IORING_FSYNC_DATASYNC);
      sqe->flags |= IOSQE_IO_DRAIN;
      io_uring_sqe_set_data64(sqe, kPieces);
      ++in_flight_;
    }
    io_uring_submit(&ring_);
  }
  void wait_for(unsigned buffer) {
    while (busy_[buffer]) reap();
  }
  void finish() {
    while (in_flight_ > 0) reap();
    if (fdatasync(file_) != 0) die("fdatasync");
  }

 private:
  void reap() {
    io_uring_cqe* cqe = nullptr;
    if (io_uring_wait_cqe(&ring_, &cqe) != 0 || cqe->res < 0) die("write");
    const auto buffer = io_uring_cqe_get_data64(cqe);
    if (buffer < kPieces) busy_[buffer] = false;
    io_uring_cqe_seen(&ring_, cqe);
    --in_flight_;
  }
  int file_;
  io_uring ring_{};
  bool busy_[kPieces] = {};
  unsigned in_flight_ = 0, since_sync_ = 0;
  std::uint64_t offset_ = 0;
};

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

void sink(int socket, SSL_CTX* context, std::uint64_t size, const char* path) {
  SSL* ssl = SSL_new(context);
  SSL_set_fd(ssl, socket);
  if (SSL_accept(ssl) != 1) die("accept");
  std::vector<AlignedBuffer> buffers;
  for (unsigned i = 0; i < kPieces; ++i) buffers.emplace_back(kPiece);
  std::optional<DiskSink> disk;
  if (path != nullptr) disk.emplace(path, size);
  const double cpu_start = cpu_seconds();
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t total = 0;
  unsigned at = 0;
  for (std::size_t filled = 0;;) {
    const int n = SSL_read(ssl, buffers[at].data() + filled, static_cast<int>(kPiece - filled));
    if (n <= 0) break;
    total += static_cast<std::uint64_t>(n);
    filled += static_cast<std::size_t>(n);
    if (filled < kPiece) continue;
    filled = 0;
    if (!disk) continue;
    disk->write(at, buffers[at].span());
    at = (at + 1) % kPieces;
    disk->wait_for(at);
  }
  if (disk) disk->finish();
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double gib = static_cast<double>(total) / static_cast<double>(1 << 30);
  close(socket);
  if (total != size) die("bytes are missing");
  std::printf("{\"cpu_s_per_gib\": %.4f, \"mib_per_s\": %.0f, \"disk\": %s}\n", (cpu_seconds() - cpu_start) / gib,
              gib * 1024 / wall, path != nullptr ? "true" : "false");
}

void blast(const sockaddr_in& address, SSL_CTX* context, std::uint64_t size) {
  const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(socket_fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die("connect");
  const int on = 1;
  setsockopt(socket_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  SSL* ssl = SSL_new(context);
  SSL_set_fd(ssl, socket_fd);
  if (SSL_connect(ssl) != 1) die("connect");
  std::vector<std::byte> piece(kPiece);
  tidemark::Random(1).fill(piece);
  for (std::uint64_t sent = 0; sent < size; sent += kPiece)
    if (SSL_write(ssl, piece.data(), static_cast<int>(kPiece)) != static_cast<int>(kPiece)) die("write");
  SSL_shutdown(ssl);
  // Wait for the other end: closing with its tickets unread would reset the connection and lose what is on the way.
  for (char rest[4096]; read(socket_fd, rest, sizeof rest) > 0;) {
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t mib = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  if (mib == 0) {
    std::fprintf(stderr, "usage: tls_floor MIB [FILE]\n");
    return 2;
  }
  const auto now = tidemark::Clock::system().wall_us();
  const auto authority = must(tidemark::net::make_authority("floor", now));
  const auto server = must(tidemark::net::issue_server(authority, {"localhost"}, now));
  const auto request = must(tidemark::net::make_request("client"));
  const auto client =
      must(tidemark::net::issue_machine(authority, request.csr_pem, tidemark::MachineId({std::byte{1}}), now));

  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    die("listen");
  const pid_t child = fork();
  if (child == 0) {
    blast(address, make_context(false, client, request.key_pem, authority.certificate_pem), mib << 20);
    std::_Exit(0);
  }
  SSL_CTX* context = make_context(true, server.certificate_pem, server.key_pem, authority.certificate_pem);
  sink(accept(listener, nullptr, nullptr), context, mib << 20, argc > 2 ? argv[2] : nullptr);
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? 0 : 1;
}
