// A point of a machine, as the server tells of it; what export, diff and mount begin with.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "cli/client.h"

namespace tidemark::cli {

struct Disk {
  std::uint64_t number = 0;
  std::string name;
  std::uint64_t size = 0;
};

struct Point {
  nlohmann::json answer;
  std::uint64_t epoch = 0;
  std::vector<Disk> disks;
};

std::unexpected<Error> odd_answer(std::string what);

std::string point_path(const std::string& machine, const std::string& at, const std::string& rest = {});
inline std::string exactly(std::uint64_t epoch) { return "epoch:" + std::to_string(epoch); }

// The point that `at` means.
Result<Point> read_point(AdminClient& client, const std::string& machine, const std::string& at);
// Leaves only the disk of this name (or number); empty: all of them. Code::not_found names those there are.
Status choose_disk(Point& point, const std::string& machine, const std::string& disk);

// Keeps a point from being dropped as long as it lives, by renewing a lease at the server.
class PointHold {
 public:
  static Result<PointHold> take(AdminClient& client, const std::string& machine, const Point& point);
  PointHold(PointHold&& other) noexcept;
  PointHold& operator=(PointHold&&) = delete;
  ~PointHold();
  // To be called again and again, at least every few seconds. An error: the point may go.
  Status renew();

 private:
  PointHold(AdminClient& client, std::string path, std::chrono::seconds every);
  AdminClient* client_;
  std::string path_;
  std::chrono::seconds every_;
  std::chrono::steady_clock::time_point renewed_;
};

}  // namespace tidemark::cli
