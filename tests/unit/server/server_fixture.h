// A whole server in the test's process, on a data directory of its own.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <sstream>
#include <string>

#include "admin_client.h"
#include "base/crypto.h"
#include "base/hex.h"
#include "base/random.h"
#include "scripted_agent.h"
#include "server/directory.h"
#include "server/server.h"
#include "storage/system_files.h"
#include "temporary_directory.h"

namespace tidemark::server {

// The system's time, moved ahead at will; what is measured by it can be made to stand still.
class AheadClock final : public Clock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  WallMicros wall_us() const override { return Clock::system().wall_us() + ahead_us_ + leapt_us_; }
  Time monotonic() const override {
    const Time held = held_;
    return (held != Time() ? held : Clock::system().monotonic()) + std::chrono::microseconds(ahead_us_);
  }
  void advance(std::chrono::microseconds by) { ahead_us_ += by.count(); }
  void leap(std::chrono::microseconds by) { leapt_us_ += by.count(); }  // the wall clock alone
  void hold() { held_ = Clock::system().monotonic(); }

 private:
  std::atomic<std::int64_t> ahead_us_{0}, leapt_us_{0};
  std::atomic<Time> held_{};
};

class ServerTest : public testing::Test {
 protected:
  ServerTest() {
    config.server.listen = "127.0.0.1:0";
    config.server.pin = false;
    config.storage.segment_size = 8_MiB;
    config.storage.free_space_min = 0;
    const auto made = create_directory(storage::system_files(), Directory(data),
                                       {.partitions = 2, .name = "test", .addresses = {}}, Clock::system());
    EXPECT_TRUE(made) << made.error().message();
  }
  void start() {
    auto started = Server::start(data, config, storage::system_files(), clock);
    ASSERT_TRUE(started) << started.error().message();
    server = std::move(*started);
  }
  void restart() {
    server.reset();
    start();
  }
  AdminAnswer admin(const std::string& method, const std::string& target, const std::string& body = {},
                    const std::string& headers = {}) {
    return server::admin(server->admin_socket(), method, target, body, headers);
  }
  std::string token(const std::string& body = "{}") {
    const auto answer = admin("POST", "/v1/tokens", body);
    EXPECT_EQ(answer.status, 200) << answer.body;
    return answer.json().value("token", "");
  }
  Identity enrolled(const std::string& name = "web1") {
    auto identity = enrol(io, token(), name);
    EXPECT_TRUE(identity) << identity.error().message();
    return identity.value_or(Identity{});
  }
  std::unique_ptr<ScriptedAgent> connect(const Identity& who, wire::AgentMemory memory = {}, char fingerprint = 'f',
                                         char boot = 'b') {
    return std::make_unique<ScriptedAgent>(io, server->address(), who, std::move(memory), fingerprint, boot);
  }
  nlohmann::json machine(const std::string& name = "web1") { return admin("GET", "/v1/machines/" + name).json(); }
  // Sends an initial epoch of one disk and waits until it is durable.
  std::vector<std::byte> initial(ScriptedAgent& agent, std::uint64_t size = 256_KiB, std::uint64_t seed = 1) {
    std::vector<std::byte> plain(size);
    Random(seed).fill(plain);
    const auto disk = agent.open_disk("vda", size);
    agent.begin(agent.session.next_epoch().value(), pb::INITIAL);
    agent.send(disk, 0, plain);
    EXPECT_TRUE(agent.commit());
    return plain;
  }
  // The sum of all samples whose line begins so; -1 when there is none.
  double metric(const std::string& line_start) {
    std::istringstream lines(admin("GET", "/metrics").body);
    double sum = 0;
    bool found = false;
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with(line_start)) continue;
      found = true;
      sum += std::stod(line.substr(line.rfind(' ') + 1));
    }
    return found ? sum : -1;
  }
  static std::string text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  TemporaryDirectory top;
  std::string data = top / "data";
  Config config;
  AheadClock clock;
  asio::io_context io;
  std::unique_ptr<Server> server;
};

}  // namespace tidemark::server
