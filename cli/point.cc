#include "cli/point.h"

#include <algorithm>

#include "cli/format.h"

namespace tidemark::cli {

using nlohmann::json;

std::unexpected<Error> odd_answer(std::string what) {
  return fail(Code::protocol, "admin API", std::move(what), "use a tidemarkd of the same version");
}

std::string point_path(const std::string& machine, const std::string& at, const std::string& rest) {
  return machine_path(machine, "/points/" + path_segment(at) + rest);
}

Result<Point> read_point(AdminClient& client, const std::string& machine, const std::string& at) {
  Point point;
  point.answer = TIDEMARK_TRY(client.get(point_path(machine, at)));
  const auto epoch = number_at(point.answer, "epoch");
  if (!epoch) return odd_answer("a point without an epoch");
  point.epoch = *epoch;
  for (const json& entry : array_at(point.answer, "disks")) {
    const auto number = number_at(entry, "disk");
    const auto size = number_at(entry, "size");
    if (!number || !size) return odd_answer("a disk without a number or a size");
    std::string name = text_at(entry, "name");
    if (name.empty()) name = "disk" + std::to_string(*number);
    point.disks.push_back({*number, std::move(name), *size});
  }
  if (point.disks.empty()) return odd_answer("a point without disks");
  return point;
}

Status choose_disk(Point& point, const std::string& machine, const std::string& disk) {
  if (disk.empty()) return {};
  std::string known;
  for (const Disk& one : point.disks) known += (known.empty() ? "" : ", ") + one.name;
  const bool named = std::ranges::any_of(point.disks, [&](const Disk& one) { return one.name == disk; });
  std::erase_if(point.disks,
                [&](const Disk& one) { return named ? one.name != disk : std::to_string(one.number) != disk; });
  if (point.disks.empty())
    return fail(Code::not_found, machine + "/" + disk, "no such disk at this point", "its disks are " + known);
  return {};
}

PointHold::PointHold(AdminClient& client, std::string path, std::chrono::seconds every)
    : client_(&client), path_(std::move(path)), every_(every), renewed_(std::chrono::steady_clock::now()) {}
PointHold::PointHold(PointHold&& other) noexcept
    : client_(std::exchange(other.client_, nullptr)),
      path_(std::move(other.path_)),
      every_(other.every_),
      renewed_(other.renewed_) {}

PointHold::~PointHold() {
  // When nobody is told, it ends by itself.
  if (client_ != nullptr) static_cast<void>(client_->remove(path_));
}

Result<PointHold> PointHold::take(AdminClient& client, const std::string& machine, const Point& point) {
  const json made = TIDEMARK_TRY(client.post(point_path(machine, exactly(point.epoch), "/hold"), json::object()));
  const std::string id = text_at(made, "hold");
  const auto lease = number_at(made, "lease_seconds");
  if (id.empty() || !lease || *lease < 3) return odd_answer("a hold without an id or a lease");
  return PointHold(client, "/v1/holds/" + path_segment(id), std::chrono::seconds(*lease / 3));
}

Status PointHold::renew() {
  const auto now = std::chrono::steady_clock::now();
  if (now - renewed_ < every_) return {};
  TIDEMARK_TRY(client_->put(path_, json::object()));
  renewed_ = now;
  return {};
}

}  // namespace tidemark::cli
