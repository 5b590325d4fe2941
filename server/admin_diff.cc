// What changed between two points, and holds on points. On the admin API's threads.
#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/json_shapes.h"
#include "server/logging.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

struct DiskWork {
  DiskReport disk;
  std::shared_ptr<storage::Changes> changes;
};

class Differences {
 public:
  Differences(Node& node, httplib::DataSink& sink, bool compare) : node_(node), sink_(sink), compare_(compare) {}

  // False: the client left, the server stops, or something cannot be read (which is told).
  bool disk(const DiskWork& work) {
    std::uint64_t changed = 0;
    if (!tell({{"disk", work.disk.disk},
               {"name", work.disk.name},
               {"from_size", work.changes->from_size()},
               {"to_size", work.changes->to_size()}}))
      return false;
    for (;;) {
      if (node_.stopping) return false;
      auto ranges = work.changes->next();
      if (ranges && ranges->empty()) break;
      if (ranges && compare_) ranges = work.changes->differing(*ranges);
      if (!ranges) {
        spdlog::error("comparison of points ended{}{}", kv("disk", work.disk.name), kv(ranges.error()));
        tell(to_json(ranges.error()));
        return false;
      }
      for (const auto& range : *ranges) {
        changed += range.length;
        if (!tell({{"disk", work.disk.disk}, {"offset", range.offset}, {"length", range.length}, {"zero", range.zero}}))
          return false;
      }
    }
    totals_.push_back({{"disk", work.disk.disk}, {"name", work.disk.name}, {"changed_bytes", changed}});
    total_ += changed;
    return flush();
  }
  bool finish(std::uint64_t from, std::uint64_t to) {
    return tell({{"ok", true},
                 {"from", from},
                 {"to", to},
                 {"compared", compare_},
                 {"changed_bytes", total_},
                 {"disks", totals_}}) &&
           flush();
  }

 private:
  static constexpr std::size_t kTextMax = 64 << 10;
  bool tell(const json& line) {
    text_ += dump(line) + "\n";
    return text_.size() < kTextMax || flush();
  }
  bool flush() {
    const bool written = text_.empty() || sink_.write(text_.data(), text_.size());
    text_.clear();
    return written;
  }

  Node& node_;
  httplib::DataSink& sink_;
  const bool compare_;
  std::string text_;
  json totals_ = json::array();
  std::uint64_t total_ = 0;
};

Status diff(Node& node, const httplib::Request& request, httplib::Response& response) {
  const std::string name = request.matches[1];
  const auto place = TIDEMARK_TRY(find_place(node, name));
  const auto report = TIDEMARK_TRY(find_report(place));
  const auto from = TIDEMARK_TRY(exact_point(node, place, name, request.get_param_value("from")));
  const auto to = TIDEMARK_TRY(exact_point(node, place, name, request.get_param_value("to")));
  if (from.number() > to.number())
    return fail(Code::invalid_argument, name, "`from` is the newer of the two points", "change them over");
  const std::string only = request.get_param_value("disk");
  const std::string compare = request.get_param_value("compare");
  auto work = std::make_shared<std::vector<DiskWork>>();
  for (const auto& size : to.disks()) {
    const auto disk = TIDEMARK_TRY(find_disk(report.disks, to, std::to_string(size.disk())));
    if (!only.empty() && only != disk.name && only != std::to_string(disk.disk)) continue;
    work->push_back(
        {disk, TIDEMARK_TRY(place.partition->changes(place.id, DiskId(disk.disk), EpochNumber(from.number()),
                                                     EpochNumber(to.number()), kIndexTimeout))});
  }
  if (work->empty())
    return fail(Code::not_found, only, "no such disk at the newer point", "GET the point for its disks");
  response.set_chunked_content_provider(
      "application/jsonl", [&node, work, held = place.partition, first = from.number(), last = to.number(),
                            compare = compare == "1" || compare == "true"](std::size_t, httplib::DataSink& sink) {
        Differences differences(node, sink, compare);
        for (const DiskWork& one : *work)
          if (!differences.disk(one)) return false;
        if (!differences.finish(first, last)) return false;
        sink.done();
        return true;
      });
  return {};
}

Result<json> hold(Node& node, const httplib::Request& request) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto point = TIDEMARK_TRY(exact_point(node, place, request.matches[1], request.matches[2]));
  ReadHolds::Held held{.partition = place.partition, .readers = {}};
  for (const auto& disk : point.disks())
    held.readers.push_back(
        TIDEMARK_TRY(place.partition->read(place.id, DiskId(disk.disk()), EpochNumber(point.number()), kIndexTimeout)));
  return json{{"hold", TIDEMARK_TRY(node.holds.take(std::move(held)))},
              {"epoch", point.number()},
              {"lease_seconds", ReadHolds::kLease.count()}};
}

}  // namespace

void add_diff_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/machines/([^/]+)/diff", [&node](const httplib::Request& request, httplib::Response& response) {
    if (const auto begun = diff(node, request, response); !begun) answer(response, begun.error());
  });
  http.Post(
      "/v1/machines/([^/]+)/points/([^/]+)/hold",
      [&node](const httplib::Request& request, httplib::Response& response) { answer(response, hold(node, request)); });
  http.Put("/v1/holds/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    const auto renewed = node.holds.renew(request.matches[1]);
    answer(response, renewed ? Result<json>(json{{"lease_seconds", ReadHolds::kLease.count()}})
                             : std::unexpected(renewed.error()));
  });
  http.Delete("/v1/holds/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    node.holds.release(request.matches[1]);
    response.status = 204;
  });
}

}  // namespace tidemark::server
