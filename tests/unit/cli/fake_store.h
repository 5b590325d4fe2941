// A machine "web1" with disks in memory behind a FakeAdmin: what an export asks for, and ways to go wrong.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/crypto.h"
#include "base/hex.h"
#include "base/random.h"
#include "base/units.h"
#include "fake_admin.h"

namespace tidemark::cli {

struct FakeDisk {
  std::string name;
  std::string content;
};

// 6 MiB and a bit: data, a long zero range, data, zeroes too short to be told, and a short last granule.
inline std::string sample_content(std::uint64_t seed) {
  Random random(seed);
  std::string content(6_MiB + 1234, '\0');
  const auto fill = [&](std::size_t from, std::size_t size) {
    random.fill(std::as_writable_bytes(std::span(content)).subspan(from, size));
  };
  fill(0, 300'000);
  fill(3_MiB, 20_KiB);
  fill(5_MiB + 17, content.size() - 5_MiB - 17);
  return content;
}

// Set up before the first request; from then on its fields change under change(): an export that failed may leave
// requests behind that are still being answered.
class FakeStore {
 public:
  std::vector<FakeDisk> disks;
  std::optional<std::size_t> cut_data_after;  // the server dies while it sends data
  bool hang = false;
  std::string damaged;  // of the verification
  std::atomic<int> released = 0;

  void change(const std::function<void()>& fields) {
    const std::lock_guard lock(mutex_);
    fields();
  }

  FakeAdmin::Response answer(const FakeAdmin::Request& request) {
    const std::lock_guard lock(mutex_);
    using nlohmann::json;
    const std::string points = "/v1/machines/web1/points/";
    if (request.target == "/v1/machines/web1") return {.body = R"({"id": "0123456789abcdef0123456789abcdef"})"};
    if (request.target == points + "epoch%3A7/hold" && request.method == "POST")
      return {.body = R"({"hold": "h1", "epoch": 7, "lease_seconds": 60})"};
    if (request.target == "/v1/holds/h1" && request.method == "DELETE") {
      ++released;
      return {.body = "null"};
    }
    if (request.target == points + "latest" || request.target == points + "-15m") {
      json point = {
          {"epoch", 7}, {"time", "2026-11-20T10:15:03.250000Z"}, {"consistency", "crash"}, {"disks", json::array()}};
      for (std::size_t i = 0; i < disks.size(); ++i)
        point["disks"].push_back({{"disk", i}, {"name", disks[i].name}, {"size", disks[i].content.size()}});
      return {.body = point.dump()};
    }
    if (request.target == points + "epoch%3A7/verify" && request.method == "POST") {
      json last = {{"ok", damaged.empty()}, {"sha256", json::object()}, {"damaged", json::array()}};
      if (!damaged.empty()) last["damaged"].push_back(damaged);
      return {.body =
                  R"({"disk": 0, "done": 10, "total": 20})"
                  "\n" +
                  (damaged.empty()
                       ? std::string()
                       : json{{"disk", "vda"}, {"offset", 4096}, {"length", 4096}, {"what", damaged}}.dump() + "\n") +
                  last.dump() + "\n"};
    }
    const std::string prefix = points + "epoch%3A7/disks/";
    if (request.target.starts_with(prefix)) {
      const std::size_t disk = std::stoul(request.target.substr(prefix.size()));
      const std::string& content = disks.at(disk).content;
      if (request.target.ends_with("/map")) {
        const json ranges = {{{"offset", 0}, {"length", 300'000}, {"zero", false}},
                             {{"offset", 1_MiB}, {"length", 2_MiB}, {"zero", true}},
                             {{"offset", 3_MiB}, {"length", content.size() - 3_MiB}, {"zero", false}}};
        return {.body = json{{"size", content.size()}, {"ranges", ranges}}.dump()};
      }
      const auto [first, last] = request.range.value();
      FakeAdmin::Response response{
          .status = 206, .body = content.substr(first, last - first + 1), .headers = "Tidemark-Epoch: 7\r\n"};
      response.cut_after = cut_data_after;
      response.hang = hang;
      return response;
    }
    return {
        .status = 404,
        .body =
            R"({"error": {"code": "not-found", "object": "web9", "what": "no such machine", "remedy": "list them"}})"};
  }

 private:
  std::mutex mutex_;
};

}  // namespace tidemark::cli
