#include <httplib.h>

#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/json_shapes.h"
#include "server/retention_json.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

constexpr std::size_t kPointsDefault = 1000;
constexpr std::size_t kPointsMax = 100'000;
constexpr std::uint64_t kMapStep = 1_GiB;

Result<json> list_points(Node& node, const httplib::Request& request) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto report = TIDEMARK_TRY(find_report(place));
  const std::size_t limit = TIDEMARK_TRY(limit_of(request, kPointsDefault, kPointsMax));
  const std::string text = request.get_param_value("fuzzy");
  const bool fuzzy = text == "1" || text == "true";
  // What holds one depends on all the others.
  const auto all = TIDEMARK_TRY(place.partition->epochs(place.id, 0, true, kIndexTimeout));
  const auto view = TIDEMARK_TRY(retention_view(place));
  const auto holds = holds_json(view, all);
  json list = json::array();
  for (std::size_t i = 0; i < all.size() && list.size() < limit; ++i) {
    if (!fuzzy && !storage::ladder_epoch(all[i]).point) continue;
    list.push_back(point_to_json(all[i], report.disks));
    list.back().update(holds[i]);
  }
  return json{{"points", std::move(list)}};
}

Result<json> one_point(Node& node, const httplib::Request& request) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto report = TIDEMARK_TRY(find_report(place));
  const auto point = TIDEMARK_TRY(find_point(node, place, request.matches[2]));
  const auto all = TIDEMARK_TRY(place.partition->epochs(place.id, 0, true, kIndexTimeout));
  const auto holds = holds_json(TIDEMARK_TRY(retention_view(place)), all);
  json one = point_to_json(point, report.disks);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (all[i].number() == point.number()) one.update(holds[i]);
  return one;
}

// The map is written as it is found: a disk can have millions of ranges.
Status stream_map(Node& node, const httplib::Request& request, httplib::Response& response) {
  const auto disk = TIDEMARK_TRY(open_disk(node, request));
  response.set_header("Tidemark-Epoch", std::to_string(disk.epoch));
  response.set_chunked_content_provider("application/json", [&node, disk](std::size_t, httplib::DataSink& sink) {
    const std::uint64_t size = disk.reader->disk_size();
    std::string text = "{\"size\": " + std::to_string(size) + ", \"ranges\": [";
    bool first = true;
    for (std::uint64_t at = 0; at < size;) {
      if (node.stopping) return false;
      const auto ranges = disk.reader->map(at, std::min(kMapStep, size - at));
      if (!ranges || ranges->empty())
        return false;  // the connection is cut: a map that is short is never taken for whole
      for (const auto& range : *ranges) {
        text += first ? "\n" : ",\n";
        first = false;
        text += "{\"offset\": " + std::to_string(range.offset) + ", \"length\": " + std::to_string(range.length) +
                ", \"zero\": " + (range.zero ? "true}" : "false}");
        at = range.offset + range.length;
      }
      if (text.size() > 64 << 10) {
        if (!sink.write(text.data(), text.size())) return false;
        text.clear();
      }
    }
    text += "\n]}\n";
    if (!sink.write(text.data(), text.size())) return false;
    sink.done();
    return true;
  });
  return {};
}

}  // namespace

void add_point_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/machines/([^/]+)/points", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, list_points(node, request));
  });
  http.Get("/v1/machines/([^/]+)/points/([^/]+)",
           [&node](const httplib::Request& request, httplib::Response& response) {
             answer(response, one_point(node, request));
           });
  http.Get("/v1/machines/([^/]+)/points/([^/]+)/disks/([^/]+)/map",
           [&node](const httplib::Request& request, httplib::Response& response) {
             if (const auto streamed = stream_map(node, request, response); !streamed)
               answer(response, streamed.error());
           });
}

}  // namespace tidemark::server
