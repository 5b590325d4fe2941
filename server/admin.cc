#include "server/admin.h"

#include <httplib.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <charconv>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "server/admin_routes.h"
#include "server/admin_socket.h"
#include "server/json_shapes.h"
#include "server/logging.h"
#include "server/moment.h"

namespace tidemark::server {
namespace {

constexpr std::size_t kBodyMax = 64 << 10;

// A fixed number of threads; the acceptor waits while all are busy and one more connection is in line for each.
class BoundedTasks final : public httplib::TaskQueue {
 public:
  explicit BoundedTasks(std::size_t threads) : queue_max_(threads) {
    for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
  }
  void enqueue(std::function<void()> task) override {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [this] { return tasks_.size() < queue_max_ || stopping_; });
    tasks_.push_back(std::move(task));
    wake_.notify_one();
  }
  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    room_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

 private:
  void run() {
    ::pthread_setname_np(::pthread_self(), "tm-admin");
    while (true) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      room_.notify_one();
      task();
    }
  }

  const std::size_t queue_max_;
  std::mutex mutex_;
  std::condition_variable wake_, room_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

struct AdminServer::Impl {
  UnixHttpServer http;
  std::string path;
  std::thread thread;
};

AdminServer::AdminServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AdminServer::~AdminServer() { stop(); }

Result<std::unique_ptr<AdminServer>> AdminServer::start(Node& node, const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  auto& http = impl->http;
  http.new_task_queue = [] { return new BoundedTasks(kThreads); };  // httplib deletes it
  http.set_payload_max_length(kBodyMax);
  http.set_keep_alive_timeout(2);
  http.set_read_timeout(10);
  http.set_write_timeout(30);
  // Ranges are our own business: httplib would cut error bodies and does not check them against the size.
  http.set_pre_routing_handler([](const httplib::Request& request, httplib::Response&) {
    const_cast<httplib::Request&>(request).ranges.clear();
    return httplib::Server::HandlerResponse::Unhandled;
  });
  http.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return;
    const int status = response.status;
    if (status == 404) {
      answer(response, Error{Code::not_found, request.method + " " + request.path, "there is no such thing in this API",
                             "see docs/admin_api.md"});
    } else {
      answer(response,
             Error{Code::invalid_argument, request.method + " " + request.path, "the request is not understood", {}});
    }
    response.status = status;
  });
  http.set_exception_handler(
      [](const httplib::Request& request, httplib::Response& response, std::exception_ptr thrown) {
        std::string what = "unknown";
        try {
          std::rethrow_exception(thrown);
        } catch (const std::exception& exception) {
          what = exception.what();
        } catch (...) {
        }
        spdlog::error("admin request failed{}{}{}", kv("method", request.method), kv("path", request.path),
                      kv("why", what));
        answer(response, Error{Code::internal, request.path, what, {}});
      });
  add_server_routes(http, node);
  add_machine_routes(http, node);
  add_point_routes(http, node);
  add_data_routes(http, node);
  add_retention_routes(http, node);
  add_clone_routes(http, node);
  add_diff_routes(http, node);
  add_integrity_routes(http, node);
  add_space_routes(http, node);
  add_client_routes(http, node);
  http.listen_on(TIDEMARK_TRY(listen_unix(path)));
  impl->thread = std::thread([http = &impl->http] { http->listen_after_bind(); });
  while (!http.is_running()) std::this_thread::yield();  // stop() before that would not be heard
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(impl)));
}

void AdminServer::stop() {
  if (!impl_->thread.joinable()) return;
  impl_->http.stop();
  impl_->thread.join();
  ::unlink(impl_->path.c_str());
}

void answer(httplib::Response& response, const nlohmann::json& body) {
  response.set_content(dump(body) + "\n", "application/json");
}

void answer(httplib::Response& response, const Error& error) {
  response.status = http_status(error.code);
  answer(response, to_json(error));
}

void answer(httplib::Response& response, const Result<nlohmann::json>& result) {
  if (result) {
    answer(response, *result);
  } else {
    answer(response, result.error());
  }
}

namespace {

// Names are known of partitions that are or were open.
Result<MachineId> known_machine(const Node& node, const std::string& name_or_id) {
  auto id = node.names.resolve(name_or_id);
  if (id) return id;
  for (const auto& shard : node.shards)
    for (const auto& host : shard->hosts())
      if (host->share() == nullptr)
        return fail(Code::unavailable, name_or_id,
                    "no such machine in the partitions that serve, and partition " +
                        std::to_string(host->id().value()) + " is " + to_string(host->state()),
                    "`tidemark health` says why; a machine's id is known all the same");
  return id;
}

}  // namespace

Result<MachinePlace> find_place(Node& node, const std::string& name_or_id) {
  MachinePlace place;
  place.id = TIDEMARK_TRY(known_machine(node, name_or_id));
  const PartitionId partition = node.partition_for(place.id);
  place.shard = &node.shard_for(partition);
  place.host = place.shard->host(partition);
  place.partition = place.host->share();
  if (place.partition == nullptr)
    return fail(Code::unavailable, "partition " + std::to_string(partition.value()),
                "it is " + std::string(to_string(place.host->state())),
                "`tidemark health` and the server's log say why");
  return place;
}

Result<MachineReport> find_report(const MachinePlace& place) {
  auto report = TIDEMARK_TRY(place.shard->call([place]() -> std::optional<MachineReport> {
    const auto* machine = place.host->find(place.id);
    if (machine == nullptr || machine->record.removed()) return std::nullopt;
    return place.host->report(*machine);
  }));
  if (!report) return fail(Code::not_found, place.id.to_string(), "no such machine", "`tidemark machines` lists them");
  return std::move(*report);
}

Result<storage::pb::EpochEntry> find_point(Node& node, const MachinePlace& place, const std::string& at) {
  const Moment moment = TIDEMARK_TRY(parse_at(at, node.clock.wall_us()));
  if (moment.time_us && *moment.time_us > node.clock.wall_us())
    return fail(Code::invalid_argument, at, "this moment is in the future", "`latest` means the newest point");
  if (!moment.epoch) return place.partition->point_at(place.id, moment.time_us, kIndexTimeout);
  const auto points = TIDEMARK_TRY(place.partition->epochs(place.id, 0, false, kIndexTimeout));  // newest first
  for (const auto& point : points)
    if (point.number() <= moment.epoch->value()) return point;
  return fail(Code::not_found, at, "no point at or before this epoch",
              points.empty() ? "the machine has no points yet"
                             : "the oldest point is epoch:" + std::to_string(points.back().number()));
}

Result<storage::pb::EpochEntry> exact_point(Node& node, const MachinePlace& place, const std::string& name,
                                            const std::string& at) {
  if (at.empty()) return fail(Code::invalid_argument, "at", "it is missing", "give latest, a time, an age, or epoch:N");
  const Moment moment = TIDEMARK_TRY(parse_at(at, node.clock.wall_us()));
  const auto point = TIDEMARK_TRY(find_point(node, place, at));
  if (moment.epoch && point.number() != moment.epoch->value())
    return fail(Code::not_found, name + " " + at, "there is no such point: it was dropped, or never was one",
                "the newest one before it is epoch:" + std::to_string(point.number()) + "; `tidemark points " + name +
                    "` lists them");
  return point;
}

Result<std::size_t> limit_of(const httplib::Request& request, std::size_t usual, std::size_t max) {
  if (!request.has_param("limit")) return usual;
  const std::string text = request.get_param_value("limit");
  std::size_t limit = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), limit);
  if (error != std::errc() || end != text.data() + text.size() || limit == 0 || limit > max)
    return fail(Code::invalid_argument, "limit", "is \"" + text + "\"", "allowed is 1 to " + std::to_string(max));
  return limit;
}

Result<DiskReport> find_disk(const std::vector<DiskReport>& disks, const storage::pb::EpochEntry& point,
                             const std::string& disk) {
  for (const auto& known : disks) {
    if (known.name != disk && std::to_string(known.disk) != disk) continue;
    for (const auto& size : point.disks())
      if (size.disk() == known.disk) return DiskReport{known.disk, known.name, size.size()};
    return fail(Code::not_found, disk, "the machine did not have this disk at that point",
                "GET the point for its disks");
  }
  return fail(Code::not_found, disk, "the machine has no such disk",
              "GET the machine for its disks; a number or a name is taken");
}

Result<OpenDisk> open_disk(Node& node, const httplib::Request& request) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto report = TIDEMARK_TRY(find_report(place));
  const auto point = TIDEMARK_TRY(find_point(node, place, request.matches[2]));
  const auto disk = TIDEMARK_TRY(find_disk(report.disks, point, request.matches[3]));
  auto reader =
      TIDEMARK_TRY(place.partition->read(place.id, DiskId(disk.disk), EpochNumber(point.number()), kIndexTimeout));
  return OpenDisk{report.name + "/" + disk.name, point.number(), place.partition, std::move(reader)};
}

}  // namespace tidemark::server
