#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/crypto.h"
#include "base/hex.h"
#include "server/admin_routes.h"
#include "server/http_range.h"
#include "server/json_shapes.h"
#include "server/logging.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

constexpr std::size_t kStep = 1_MiB;
constexpr std::size_t kDamagedMax = 1000;  // listed
constexpr auto kProgressEvery = std::chrono::milliseconds(250);

// Gives [offset, offset + length) to `take`, piece by piece; what is known to be zero is not read.
template <typename Take>
Status walk(storage::Reader& reader, std::uint64_t offset, std::uint64_t length, std::vector<std::byte>& buffer,
            Take take) {
  static const std::vector<std::byte> kZeroes(kStep);
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const auto ranges = TIDEMARK_TRY(reader.map(offset, end - offset));
    if (ranges.empty()) return fail(Code::internal, "map", "it has no range at " + std::to_string(offset));
    for (const auto& range : ranges) {
      std::uint64_t at = std::max(range.offset, offset);
      const std::uint64_t range_end = std::min(range.offset + range.length, end);
      while (at < range_end) {
        const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kStep, range_end - at));
        if (range.zero) {
          TIDEMARK_TRY(take(at, std::span(kZeroes).first(n)));
        } else {
          buffer.resize(kStep);
          TIDEMARK_TRY(reader.read(at, std::span(buffer).first(n)));
          TIDEMARK_TRY(take(at, std::span<const std::byte>(buffer).first(n)));
        }
        at += n;
      }
      offset = std::max(offset, range_end);
    }
  }
  return {};
}

std::unexpected<Error> cut_off() { return fail(Code::cancelled, {}, "the client left or the server stops"); }

Status stream_data(Node& node, const httplib::Request& request, httplib::Response& response) {
  const auto disk = TIDEMARK_TRY(open_disk(node, request));
  const std::uint64_t size = disk.reader->disk_size();
  response.set_header("Tidemark-Epoch", std::to_string(disk.epoch));
  response.set_header("Accept-Ranges", "bytes");
  const auto range = parse_http_range(request.get_header_value("Range"), size);
  if (!range) {
    response.set_header("Content-Range", "bytes */" + std::to_string(size));
    answer(response, range.error());
    response.status = 416;
    return {};
  }
  const HttpRange wanted = range->value_or(HttpRange{0, size});
  if (*range) {
    response.status = 206;
    response.set_header("Content-Range", "bytes " + std::to_string(wanted.offset) + "-" +
                                             std::to_string(wanted.offset + wanted.length - 1) + "/" +
                                             std::to_string(size));
  }
  if (wanted.length == 0) {
    response.set_content("", "application/octet-stream");
    return {};
  }
  auto buffer = std::make_shared<std::vector<std::byte>>();
  response.set_content_provider(
      wanted.length, "application/octet-stream",
      [&node, disk, wanted, buffer](std::size_t offset, std::size_t length, httplib::DataSink& sink) {
        // httplib asks again for what is left, until all is written.
        const std::uint64_t step = std::min<std::uint64_t>(length, 16 * kStep);
        const auto walked =
            walk(*disk.reader, wanted.offset + offset, step, *buffer,
                 [&](std::uint64_t, std::span<const std::byte> bytes) -> Status {
                   if (node.stopping || !sink.write(reinterpret_cast<const char*>(bytes.data()), bytes.size()))
                     return cut_off();
                   return {};
                 });
        // Cut short, the client sees less than Content-Length: never wrong bytes.
        if (!walked && walked.error().code != Code::cancelled)
          spdlog::error("export cut off{}{}", kv("disk", disk.what), kv(walked.error()));
        return walked.has_value();
      });
  return {};
}

class Verification {
 public:
  Verification(Node& node, const storage::Partition& partition, httplib::DataSink& sink)
      : node_(node), partition_(partition), sink_(sink) {}

  // False: the client left.
  bool disk(storage::Reader& reader, const DiskReport& disk) {
    disk_ = disk;
    Sha256Stream digest;
    bool whole = true;
    std::vector<std::byte> buffer;
    for (std::uint64_t at = 0; at < disk.size;) {
      const std::uint64_t n = std::min<std::uint64_t>(16 * kStep, disk.size - at);
      const auto walked = walk(reader, at, n, buffer, [&](std::uint64_t, std::span<const std::byte> bytes) -> Status {
        if (node_.stopping) return cut_off();
        if (whole) digest.update(bytes);
        return {};
      });
      if (!walked && walked.error().code == Code::cancelled) return false;
      if (!walked) {
        whole = false;
        // That says nothing of what is stored.
        if (const auto damage = partition_.index_damage()) {
          tell(to_json(*damage));
          return false;
        }
        if (!find_damage(reader, at, n)) return false;
      }
      at += n;
      const auto now = std::chrono::steady_clock::now();
      if (now - told_ < kProgressEvery && at != disk.size) continue;
      told_ = now;
      if (!tell({{"disk", disk.disk}, {"done", at}, {"total", disk.size}})) return false;
    }
    if (whole) digests_[disk.name] = to_hex(digest.finish());
    return true;
  }
  bool finish() {
    return tell(
        {{"ok", damaged_count_ == 0}, {"sha256", digests_}, {"damaged", damaged_}, {"damaged_count", damaged_count_}});
  }
  std::uint64_t damaged() const { return damaged_count_; }

 private:
  // Something in this range cannot be read: by blocks, what.
  bool find_damage(storage::Reader& reader, std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> buffer(limits::kBlockPlainSizeMax);
    for (std::uint64_t at = offset; at < offset + length; at += buffer.size()) {
      if (node_.stopping) return false;
      const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), offset + length - at));
      const auto read = reader.read(at, std::span(buffer).first(n));
      if (read) continue;
      ++damaged_count_;
      if (damaged_.size() == kDamagedMax) continue;
      damaged_.push_back({{"disk", disk_.name}, {"offset", at}, {"length", n}, {"what", read.error().message()}});
      if (!tell(damaged_.back())) return false;  // at once, not only at the end
    }
    return true;
  }
  bool tell(const json& line) {
    const std::string text = dump(line) + "\n";
    return sink_.write(text.data(), text.size());
  }

  Node& node_;
  const storage::Partition& partition_;
  httplib::DataSink& sink_;
  DiskReport disk_;
  json digests_ = json::object();
  json damaged_ = json::array();
  std::uint64_t damaged_count_ = 0;
  std::chrono::steady_clock::time_point told_;
};

Status verify(Node& node, const httplib::Request& request, httplib::Response& response) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto report = TIDEMARK_TRY(find_report(place));
  const auto point = TIDEMARK_TRY(find_point(node, place, request.matches[2]));
  using Work = std::vector<std::pair<DiskReport, std::shared_ptr<storage::Reader>>>;
  auto work = std::make_shared<Work>();
  for (const auto& size : point.disks()) {
    const auto disk = TIDEMARK_TRY(find_disk(report.disks, point, std::to_string(size.disk())));
    work->emplace_back(disk, TIDEMARK_TRY(place.partition->read(place.id, DiskId(disk.disk),
                                                                EpochNumber(point.number()), kIndexTimeout)));
  }
  response.set_header("Tidemark-Epoch", std::to_string(point.number()));
  response.set_chunked_content_provider(
      "application/jsonl", [&node, work, held = place.partition, name = report.name, epoch = point.number()](
                               std::size_t, httplib::DataSink& sink) {
        Verification verification(node, *held, sink);
        for (const auto& [disk, reader] : *work)
          if (!verification.disk(*reader, disk)) return false;
        if (!verification.finish()) return false;
        if (verification.damaged() != 0)
          spdlog::error("verification found damage{}{}{}", kv("machine", name), kv("epoch", epoch),
                        kv("damaged", verification.damaged()));
        sink.done();
        return true;
      });
  return {};
}

}  // namespace

void add_data_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/machines/([^/]+)/points/([^/]+)/disks/([^/]+)/data",
           [&node](const httplib::Request& request, httplib::Response& response) {
             if (const auto streamed = stream_data(node, request, response); !streamed)
               answer(response, streamed.error());
           });
  http.Post("/v1/machines/([^/]+)/points/([^/]+)/verify",
            [&node](const httplib::Request& request, httplib::Response& response) {
              if (const auto begun = verify(node, request, response); !begun) answer(response, begun.error());
            });
}

}  // namespace tidemark::server
