// What TLS costs a server: CPU of the thread that serves, the clients being on another thread or in another process.
// handshakes: items a second of CPU, full (both certificates), resumed, and of who enrols (no client certificate);
// both_ends_ms is the CPU of one, server and client together.
// receiving: bytes a second of CPU. idle: bytes of heap per connection.
#include <benchmark/benchmark.h>
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <asio/executor_work_guard.hpp>
#include <asio/post.hpp>
#include <atomic>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "net/acceptor.h"
#include "net/certificates.h"
#include "net/tls_context.h"
#include "net/tls_stream.h"

namespace tidemark::net {
namespace {

using asio::ip::tcp;

double cpu_seconds(clockid_t clock) {
  timespec time{};
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}
double thread_cpu_seconds() { return cpu_seconds(CLOCK_THREAD_CPUTIME_ID); }
double process_cpu_seconds() { return cpu_seconds(CLOCK_PROCESS_CPUTIME_ID); }

struct Pki {
  KeyAndCertificate authority = make_authority("bench", Clock::system().wall_us()).value();
  KeyAndCertificate server = issue_server(authority, {}, Clock::system().wall_us()).value();
  std::shared_ptr<TlsContext> server_context() const {
    return TlsContext::server({server.certificate_pem, server.key_pem, authority.certificate_pem}, TicketKeys::make())
        .value();
  }
  std::shared_ptr<TlsContext> agent_context() const {
    const auto request = make_request("bench").value();
    std::array<std::byte, MachineId::kSize> id{};
    id.fill(std::byte{1});
    const auto certificate =
        issue_machine(authority, request.csr_pem, MachineId(id), Clock::system().wall_us()).value();
    return TlsContext::agent({certificate, request.key_pem, authority.certificate_pem}).value();
  }
  std::shared_ptr<TlsContext> enrolling_context() const {
    return TlsContext::enrolling(describe_certificate(authority.certificate_pem)->sha256).value();
  }
};

// One end. Greets with a byte after the handshake if it is told to, so that a client has its ticket when it has that.
struct End final : TlsStream::Handler {
  std::unique_ptr<TlsStream> stream;
  std::function<void()> on_ready, on_bytes, on_room;
  std::vector<std::byte> space = std::vector<std::byte>(256 << 10);
  std::uint64_t received = 0;
  bool greets = false, ended = false;

  void on_handshake(const Peer&) override {
    if (greets) stream->write(std::as_bytes(std::span("x", 1)));
    if (on_ready) on_ready();
  }
  std::span<std::byte> read_space() override { return space; }
  void on_read(std::size_t size) override {
    received += size;
    if (on_bytes) on_bytes();
  }
  void on_writable() override {
    if (on_room) on_room();
  }
  void on_closed(const std::optional<Error>&) override { ended = true; }
};

// Clients on a loop and thread of their own.
struct ClientThread {
  asio::io_context io;
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  ReceiveBuffer buffer;
  std::unique_ptr<End> end;  // touched on the thread only, once it runs
  std::thread thread{[this] { io.run(); }};

  void run(std::function<void()> function) { asio::post(io, std::move(function)); }
  ~ClientThread() {
    run([this] { end.reset(); });
    work.reset();
    thread.join();
  }
};

enum class Kind : std::uint8_t { full, resumed, enrolling };

void handshake(benchmark::State& state, Kind kind) {
  const Pki pki;
  const auto server_context = pki.server_context();
  std::vector<std::shared_ptr<TlsContext>> contexts;  // one that has met the server before resumes
  for (int i = 0; i < (kind == Kind::full ? 64 : 1); ++i) {
    contexts.push_back(kind == Kind::enrolling ? pki.enrolling_context() : pki.agent_context());
  }
  const auto fresh_agent = [&] { return pki.agent_context(); };
  asio::io_context io;
  ReceiveBuffer buffer;
  tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
  const tcp::endpoint address = acceptor.local_endpoint();
  ClientThread client;
  std::atomic<int> met{0};
  std::int64_t resumed = 0;
  double both_ends = 0;
  std::size_t turn = 0;
  for (auto _ : state) {
    if (kind == Kind::full && turn == contexts.size()) {  // their tickets are spent: new ones, off the clock
      for (auto& context : contexts) context = fresh_agent();
      turn = 0;
    }
    const auto context = contexts[turn++ % contexts.size()];
    const int before = met;
    const double all_start = process_cpu_seconds();
    client.run([&, context] {
      tcp::socket socket(client.io);
      socket.connect(address);
      client.end = std::make_unique<End>();
      client.end->on_bytes = [&met] { ++met; };
      client.end->stream = std::make_unique<TlsStream>(std::move(socket), context, client.buffer, *client.end);
      client.end->stream->start();
    });
    tcp::socket socket(io);
    acceptor.accept(socket);
    const double start = thread_cpu_seconds();
    End end;
    end.greets = true;
    end.stream = std::make_unique<TlsStream>(std::move(socket), server_context, buffer, end);
    end.stream->start();
    while (met == before && !end.ended) {
      io.restart();
      io.run_one_for(std::chrono::milliseconds(1));
    }
    TIDEMARK_CHECK(!end.ended);
    resumed += end.stream->peer().resumed ? 1 : 0;
    end.stream.reset();
    state.SetIterationTime(thread_cpu_seconds() - start);
    both_ends += process_cpu_seconds() - all_start;
  }
  state.SetItemsProcessed(state.iterations());
  state.counters["resumed"] = static_cast<double>(resumed) / static_cast<double>(state.iterations());
  state.counters["both_ends_ms"] = both_ends * 1e3 / static_cast<double>(state.iterations());
}

void receive(benchmark::State& state) {
  const Pki pki;
  asio::io_context io;
  ReceiveBuffer buffer;
  tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
  const tcp::endpoint address = acceptor.local_endpoint();
  ClientThread client;
  const std::vector<std::byte> block(static_cast<std::size_t>(state.range(0)), std::byte{0x5a});
  client.run([&] {
    tcp::socket socket(client.io);
    socket.connect(address);
    client.end = std::make_unique<End>();
    End& end = *client.end;
    end.stream = std::make_unique<TlsStream>(std::move(socket), pki.agent_context(), client.buffer, end);
    end.on_ready = end.on_room = [&end, &block] {
      while (end.stream->write(block)) {
      }
    };
    end.stream->start();
  });
  tcp::socket socket(io);
  acceptor.accept(socket);
  End end;
  end.stream = std::make_unique<TlsStream>(std::move(socket), pki.server_context(), buffer, end);
  end.stream->start();
  constexpr std::uint64_t kBytesPerIteration = 32 << 20;
  std::uint64_t total = 0;
  for (auto _ : state) {
    const std::uint64_t from = end.received;
    const double start = thread_cpu_seconds();
    while (end.received < from + kBytesPerIteration && !end.ended) {
      io.restart();
      io.run_one_for(std::chrono::milliseconds(10));
    }
    TIDEMARK_CHECK(!end.ended);
    total += end.received - from;
    state.SetIterationTime(thread_cpu_seconds() - start);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(total));
  end.stream.reset();
}

// The clients live in a child process, so that this one's heap holds the servers' ends only.
void idle(benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  double bytes = 0;
  for (auto _ : state) {
    const Pki pki;
    const auto agent = pki.agent_context();
    const auto server_context = pki.server_context();
    asio::io_context io;
    ReceiveBuffer buffer;
    tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
    acceptor.listen(4096);
    int stop[2];
    TIDEMARK_CHECK(::pipe(static_cast<int*>(stop)) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(stop[1]);
      asio::io_context clients;
      ReceiveBuffer shared;
      std::vector<std::unique_ptr<End>> ends;
      for (std::size_t i = 0; i < count; ++i) {
        tcp::socket socket(clients);
        socket.connect(acceptor.local_endpoint());
        ends.push_back(std::make_unique<End>());
        ends.back()->stream = std::make_unique<TlsStream>(std::move(socket), agent, shared, *ends.back());
        ends.back()->stream->start();
        clients.restart();
        clients.poll();
      }
      std::thread([&] {
        char byte = 0;
        static_cast<void>(!::read(stop[0], &byte, 1));
        ::_exit(0);
      }).detach();
      clients.restart();
      clients.run();
      ::_exit(0);
    }
    ::close(stop[0]);
    const auto connect = [&](std::vector<std::unique_ptr<End>>& ends, std::size_t n) {
      for (std::size_t i = 0; i < n; ++i) {
        tcp::socket socket(io);
        acceptor.accept(socket);
        ends.push_back(std::make_unique<End>());
        ends.back()->space = {};
        ends.back()->space.shrink_to_fit();
        bool ready = false;
        ends.back()->on_ready = [&ready] { ready = true; };
        ends.back()->stream = std::make_unique<TlsStream>(std::move(socket), server_context, buffer, *ends.back());
        ends.back()->stream->start();
        while (!ready) {
          io.restart();
          io.run_one_for(std::chrono::milliseconds(10));
        }
        ends.back()->on_ready = nullptr;
      }
    };
    std::vector<std::unique_ptr<End>> warm, measured;
    connect(warm, count / 10);  // what is loaded once is not counted
    measured.reserve(count);
    const std::size_t before = ::mallinfo2().uordblks;
    connect(measured, count - count / 10);
    bytes = static_cast<double>(::mallinfo2().uordblks - before) / static_cast<double>(measured.size());
    ::close(stop[1]);
    ::waitpid(child, nullptr, 0);
  }
  state.counters["bytes_per_connection"] = bytes;
}

BENCHMARK_CAPTURE(handshake, full, Kind::full)->UseManualTime();
BENCHMARK_CAPTURE(handshake, resumed, Kind::resumed)->UseManualTime();
BENCHMARK_CAPTURE(handshake, enrolling, Kind::enrolling)->UseManualTime();
BENCHMARK(receive)->Arg(4 << 10)->Arg(64 << 10)->Arg(1 << 20)->UseManualTime();
BENCHMARK(idle)->Arg(1000)->Iterations(1);

}  // namespace
}  // namespace tidemark::net
