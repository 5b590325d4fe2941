#include "agent/point_request.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "agent/text_file.h"

namespace tidemark::agent {
namespace {

using RequestJson = nlohmann::json;

std::filesystem::path request_path(const StateDir& dir) { return dir.path() / "point.request"; }
std::filesystem::path answer_path(const StateDir& dir) { return dir.path() / "point.answer"; }

std::string dump_line(const RequestJson& json) {
  return json.dump(-1, ' ', false, RequestJson::error_handler_t::replace) + "\n";
}

Result<PointRequest> parse_request(const std::string& text, const std::string& name) {
  try {
    const RequestJson json = RequestJson::parse(text);
    PointRequest request;
    request.id = json.at("id").get<std::string>();
    request.agent = json.at("agent").get<pid_t>();
    request.application = json.at("application").get<bool>();
    request.final = json.at("final").get<bool>();
    request.timeout = std::chrono::milliseconds(json.at("timeout_ms").get<std::int64_t>());
    return request;
  } catch (const std::exception& error) {
    return fail(Code::corrupt, name, std::string("is no request for a point: ") + error.what(), "remove it");
  }
}

Result<PointAnswer> parse_answer(const std::string& text, const std::string& name) {
  try {
    const RequestJson json = RequestJson::parse(text);
    PointAnswer answer;
    answer.id = json.at("id").get<std::string>();
    if (!json.at("error").is_null()) {
      const RequestJson& error = json.at("error");
      answer.error =
          Error{static_cast<Code>(error.at("code").get<std::uint16_t>()), error.at("object").get<std::string>(),
                error.at("what").get<std::string>(), error.at("remedy").get<std::string>()};
    }
    answer.epoch = EpochNumber(json.at("epoch").get<std::uint64_t>());
    answer.time_us = json.at("time_us").get<WallMicros>();
    answer.consistency = json.at("consistency").get<std::string>();
    answer.final = json.at("final").get<bool>();
    answer.hooks_failure = json.at("hooks_failure").get<std::string>();
    answer.post_hooks_failure = json.at("post_hooks_failure").get<std::string>();
    answer.seconds = json.at("seconds").get<double>();
    answer.frozen_seconds = json.at("frozen_seconds").get<double>();
    answer.held_seconds = json.at("held_seconds").get<double>();
    return answer;
  } catch (const std::exception& error) {
    return fail(Code::corrupt, name, std::string("is no answer about a point: ") + error.what(), "remove it");
  }
}

std::string answer_text(const PointAnswer& answer) {
  RequestJson error = nullptr;
  if (answer.error) {
    error = {{"code", static_cast<std::uint16_t>(answer.error->code)},
             {"object", answer.error->object},
             {"what", answer.error->what},
             {"remedy", answer.error->remedy}};
  }
  return dump_line({{"id", answer.id},
                    {"error", error},
                    {"epoch", answer.epoch.value()},
                    {"time_us", answer.time_us},
                    {"consistency", answer.consistency},
                    {"final", answer.final},
                    {"hooks_failure", answer.hooks_failure},
                    {"post_hooks_failure", answer.post_hooks_failure},
                    {"seconds", answer.seconds},
                    {"frozen_seconds", answer.frozen_seconds},
                    {"held_seconds", answer.held_seconds}});
}

}  // namespace

void PointRequests::drop_stale() {
  const auto path = request_path(dir_);
  if (::unlink(path.c_str()) == 0)
    spdlog::info("a point that was asked for before this start is not made: ask again file={}", path.string());
}

const PointRequest* PointRequests::current() {
  const auto path = request_path(dir_);
  const auto text = read_text_file(path, 4096);
  if (!text) {
    if (current_) spdlog::info("the request for a point was taken back id={}", current_->id);
    current_.reset();
    return nullptr;
  }
  const auto now = clock_.monotonic();
  auto request = parse_request(*text, path.string());
  if (!request || request->agent != ::getpid()) {
    if (*text != std::exchange(ignored_, *text))
      spdlog::warn("a request for a point is ignored why=\"{}\"",
                   request ? "it is for another process" : request.error().message());
    current_.reset();
    return nullptr;
  }
  if (!current_ || current_->id != request->id) {
    spdlog::info("a point is asked for id={} application={} final={}", request->id, request->application,
                 request->final);
    drop_at_ = now + request->timeout;
    current_ = std::move(*request);
  }
  if (now >= drop_at_) {
    PointAnswer late;
    late.error = Error{Code::timed_out, "point", "it could not be made in time", "see `tidemark-agent status`"};
    answer(std::move(late));
    return nullptr;
  }
  return &*current_;
}

void PointRequests::answer(PointAnswer answer) {
  if (!current_) return;
  answer.id = current_->id;
  current_.reset();
  if (answer.error) spdlog::info("no point for who asked id={} why=\"{}\"", answer.id, answer.error->message());
  if (auto written = write_file_atomically(answer_path(dir_), answer_text(answer), 0600); !written)
    spdlog::error("the answer to who asked for a point could not be written error=\"{}\"", written.error().message());
  ::unlink(request_path(dir_).c_str());  // gone already where it was taken back
}

void PointRequests::refuse(const Error& error) {
  if (current() == nullptr) return;
  PointAnswer no;
  no.error = error;
  answer(std::move(no));
}

Result<PointAsker> PointAsker::start(const StateDir& dir) {
  const auto path = dir.path() / "point.lock";
  FileDescriptor lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return fail_errno(errno, path.string(), "open");
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno(errno, path.string(), "lock");
    return fail(Code::busy, "point", "somebody else is asking for a point", "wait until that command has ended");
  }
  ::unlink(answer_path(dir).c_str());  // of somebody who did not wait for it
  return PointAsker(dir, std::move(lock));
}

Status PointAsker::ask(const PointRequest& request) {
  return write_file_atomically(request_path(*dir_),
                               dump_line({{"id", request.id},
                                          {"agent", request.agent},
                                          {"application", request.application},
                                          {"final", request.final},
                                          {"timeout_ms", request.timeout.count()}}),
                               0600);
}

Result<std::optional<PointAnswer>> PointAsker::answer(const std::string& id) {
  const auto path = answer_path(*dir_);
  const auto text = read_text_file(path);
  if (!text && text.error().code == Code::not_found) return std::optional<PointAnswer>{};
  if (!text) return std::unexpected(text.error());
  PointAnswer answer = TIDEMARK_TRY(parse_answer(*text, path.string()));
  if (answer.id != id) return std::optional<PointAnswer>{};
  ::unlink(path.c_str());
  return answer;
}

void PointAsker::take_back() { ::unlink(request_path(*dir_).c_str()); }

}  // namespace tidemark::agent
